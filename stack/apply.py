"""Put a headrace.toml in force: validated, stored as one row, and every due time worked out anew in the same transaction."""

from __future__ import annotations

import argparse
import getpass
import sys
from pathlib import Path

from shared import catalog
from shared.errors import HeadraceError
from shared.ledger import Ledger, planning, repeats
from shared.ledger.schema import check_schema
from shared.settings import Settings, load


@repeats
def put_in_force(path: Path, settings: Settings) -> bool:
    """Validate the file and put it in force; False when it is already. Raises `ConfigurationError` with file and line."""
    new = catalog.load(path)
    ledger = Ledger(settings.ledger_url)
    try:
        check_schema(ledger)
        with ledger.write() as tx:
            return planning.put_in_force(tx, new, getpass.getuser())
    finally:
        ledger.close()


def main(arguments: argparse.Namespace) -> int:
    """`python -m stack apply FILE`, with HEADRACE_SETTINGS or HEADRACE_LEDGER_URL … in the environment."""
    try:
        changed = put_in_force(Path(arguments.config), load())
    except HeadraceError as error:
        print(error.message, file=sys.stderr)
        return 2
    print(f"{arguments.config} is in force" if changed else f"{arguments.config} was in force already")
    return 0
