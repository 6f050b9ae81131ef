"""`python -m stack envs`: the model environments on this machine's trainer disk; with `--prune` all that nobody uses is taken away."""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict

from headrace.cli.show import size, span
from rich.console import Console
from rich.table import Table

from services.trainer.disk import Disk
from services.trainer.stock import Stocked, environments
from services.trainer.tidy import DiskTidy
from shared.catalog import Catalog
from shared.errors import HeadraceError
from shared.ledger import Ledger, configuration
from shared.ledger.schema import check_schema
from shared.settings import Settings, load
from stack.tidy import show_reports


def main(arguments: argparse.Namespace) -> int:
    """The exit code is 1 when something went wrong."""
    try:
        settings = load()
        if arguments.prune:
            report = DiskTidy(settings.state_dir, lambda: _catalog(settings)).tidy(
                dry=arguments.dry_run, everything=True
            )
            return show_reports([("this trainer's disk", report)], dry=arguments.dry_run)
        found = environments(Disk(settings.state_dir / "trainer"))
    except HeadraceError as error:
        print(error.message, file=sys.stderr)
        return 1
    if arguments.json:
        print(json.dumps([asdict(one) for one in found], indent=2))
    else:
        Console(highlight=False).print(_table(found))
    return 0


def _catalog(settings: Settings) -> Catalog:
    ledger = Ledger(settings.ledger_url)
    try:
        check_schema(ledger)
        with ledger.read() as tx:
            return configuration.in_force(tx).catalog
    finally:
        ledger.close()


def _table(found: list[Stocked]) -> Table:
    total = size(sum(one.size_bytes for one in found))
    table = Table(
        "environment", "size", "last used", "in use by", "packages", title=f"{len(found)} environments, {total}"
    )
    for one in found:
        users = ", ".join(one.users) or ("a trainer" if one.in_use else "")
        table.add_row(
            one.name[:12], size(one.size_bytes), f"{span(time.time() - one.used_at)} ago", users, _few(one.packages)
        )
    return table


def _few(packages: tuple[str, ...]) -> str:
    more = len(packages) - 4
    return " ".join(packages[:4]) + (f" and {more} more" if more > 0 else "")
