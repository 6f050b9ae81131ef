"""What a deployment does once before its processes start, and again at each upgrade: tables, the operator's token, headrace.toml."""

from __future__ import annotations

import argparse
import getpass
import sys
import time
from pathlib import Path

from shared.errors import HeadraceError, Unavailable
from shared.ledger import Ledger, repeats, schema, tokens
from shared.settings import Settings, load, variable
from stack.apply import put_in_force

OPERATOR, TOKEN = "operator", "HEADRACE_OPERATOR_TOKEN"
LOOK_S = 1.0


def main(args: argparse.Namespace) -> int:
    """The exit code: 0 when all is as it must be, whoever made it so."""
    try:
        prepare(args.config, load(), args.patience)
    except HeadraceError as error:
        print(error.message, file=sys.stderr)
        return 1
    print(f"the ledger is ready, and {args.config} is in force")
    return 0


def prepare(config: Path, settings: Settings, patience_s: float) -> None:
    """Bring the ledger to what this version needs and put `config` in force; may be called any number of times.

    The token of HEADRACE_OPERATOR_TOKEN, where that is set, counts afterwards as the operator's.
    """
    migrate(settings.ledger_url, patience_s)
    if secret := variable(TOKEN):
        _register(settings.ledger_url, secret)
    put_in_force(config, settings)


def migrate(url: str, patience_s: float) -> None:
    """`schema.migrate` for a database that may still be coming up; raises `Unavailable` when it has not come by then."""
    deadline, told = time.monotonic() + patience_s, False
    while True:
        try:
            schema.migrate(url)
            return
        except Unavailable as error:
            if time.monotonic() > deadline:
                raise
            if not told:
                print(f"{error.message} (for {patience_s:.0f} s at most)", file=sys.stderr, flush=True)
            told = True
        time.sleep(LOOK_S)


@repeats
def _register(url: str, secret: str) -> None:
    ledger = Ledger(url)
    try:
        with ledger.write() as tx:
            tokens.register(tx, OPERATOR, tuple(tokens.Scope), secret, getpass.getuser())
    finally:
        ledger.close()
