"""What an operator does to the ledger from the command line: bring it up to date, make tokens."""

from __future__ import annotations

import argparse
import getpass
import sys
from collections.abc import Callable

from shared.errors import HeadraceError, NotFound, Refused
from shared.ledger import Ledger, schema, tokens
from shared.settings import load


def migrate(args: argparse.Namespace) -> int:
    return _told(_migrate)


def create_token(args: argparse.Namespace) -> int:
    return _told(lambda: print(create(args.name, args.scopes)))


def revoke_token(args: argparse.Namespace) -> int:
    return _told(lambda: revoke(args.name))


def revoke(name: str) -> None:
    ledger = Ledger(load().ledger_url)
    try:
        with ledger.write() as tx:
            if not tokens.revoke(tx, name, getpass.getuser()):
                raise NotFound(f"there is no token {name!r}")
    finally:
        ledger.close()


def _migrate() -> None:
    if copy := schema.migrate(load().ledger_url):
        print(f"the ledger's tables have changed; as it was before it lies in {copy}")


def create(name: str, scopes: str) -> str:
    try:
        wanted = tuple(tokens.Scope(scope.strip()) for scope in scopes.split(","))
    except ValueError as error:
        raise Refused(f"{error}: the scopes are {', '.join(tokens.Scope)}") from error
    ledger = Ledger(load().ledger_url)
    try:
        with ledger.write() as tx:
            return tokens.create(tx, name, wanted, getpass.getuser())
    finally:
        ledger.close()


def _told(command: Callable[[], object]) -> int:
    try:
        command()
    except HeadraceError as error:
        print(error, file=sys.stderr)
        return 1
    return 0
