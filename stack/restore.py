"""Go back to an older copy of the ledger, so that nothing is doubled by it: what was named since the copy is never named again."""

from __future__ import annotations

import argparse
import getpass
import os
import sys
from pathlib import Path

from shared.errors import ConfigurationError, HeadraceError
from shared.ledger import Ledger, copies, repeats, restored, schema
from shared.ledger.restored import Anew
from shared.ledger.sqlite import Sqlite
from shared.settings import Settings, load
from stack.state import StateDirectory

_NO_COPY = "name the copy to go back to: `python -m stack restore COPY`; copies lie in {folder}"
_PUT_BACK = (
    "on PostgreSQL put the copy back with its own tools (pg_restore), then run `python -m stack restore` without a name"
)


def main(args: argparse.Namespace) -> int:
    """`python -m stack restore [COPY]`: 0 when the ledger goes on from the copy."""
    try:
        restore(args.copy, load(), args.reason)
    except HeadraceError as error:
        print(error.message, file=sys.stderr)
        return 1
    return 0


def restore(copy: Path | None, settings: Settings, reason: str) -> None:
    """Put the copy in the ledger's place, migrate it, and begin anew. The stack must be stopped, and stays out meanwhile."""
    path = Sqlite.path_of(settings.ledger_url)
    if path is None and copy is not None:
        raise ConfigurationError(_PUT_BACK)
    if path is not None and copy is None:
        raise ConfigurationError(_NO_COPY.format(folder=path.parent / copies.FOLDER))
    lock = StateDirectory(settings.state_dir).lock()
    try:
        if path is not None and copy is not None:
            _put_back(copy, path)
        schema.migrate(settings.ledger_url)
        _tell(_begin_anew(settings.ledger_url, reason or f"back to {copy.name if copy else 'a copy'}"))
    finally:
        os.close(lock)


def _put_back(copy: Path, path: Path) -> None:
    copies.check(copy)
    if path.exists():
        kept = copies.set_aside(path, wanted=copy)
        print(f"the ledger as it was lies in {kept}")
    copies.put_back(copy, path)


@repeats
def _begin_anew(url: str, reason: str) -> Anew:
    ledger = Ledger(url)
    try:
        with ledger.write() as tx:
            return restored.begin_anew(tx, getpass.getuser(), reason)
    finally:
        ledger.close()


def _tell(done: Anew) -> None:
    print(f"runs, arrivals and notices have numbers above {done.above} from now on")
    if done.cancelled:
        old, new = (", ".join(map(str, runs)) or "none" for runs in (done.cancelled, done.planned))
        print(f"open in the copy were the runs {old}: they are cancelled, and {new} take their place")
    print("start the stack, then run `make audit`: it names what MLflow has that the ledger does not know any more")
