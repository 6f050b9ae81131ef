"""`python -m stack tidy`: what the janitors do by themselves, now and by hand; with `--dry-run` what they would do, and why the rest stays."""

from __future__ import annotations

import argparse
import getpass
import sys

from headrace.cli.show import size
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from services.registry_bridge.janitor import Janitor
from services.registry_bridge.mlflow_registry import MlflowRegistry
from services.registry_bridge.tidy import Tidy
from services.trainer.tidy import DiskTidy
from shared.blobs import make_blobs
from shared.errors import HeadraceError
from shared.ledger import Ledger, configuration
from shared.ledger.schema import check_schema
from shared.logs import make_logs
from shared.retention import Report
from shared.settings import Settings, load

Titled = tuple[str, Report]


def main(arguments: argparse.Namespace) -> int:
    """The exit code is 1 when something was left for the next time."""
    try:
        reports = _tidy(load(), dry=arguments.dry_run)
    except HeadraceError as error:
        print(error.message, file=sys.stderr)
        return 1
    return show_reports(reports, dry=arguments.dry_run)


def _tidy(settings: Settings, *, dry: bool) -> list[Titled]:
    ledger = Ledger(settings.ledger_url)
    try:
        check_schema(ledger)
        stores = make_blobs(settings.blobs_url), make_logs(settings.logs_url)
        tidy = Tidy(ledger, MlflowRegistry(settings.mlflow_url), *stores)
        janitor = Janitor(ledger, tidy, settings.worker, by=getpass.getuser())
        with _progress() as progress:
            shown = progress.add_task("begins")

            def tell(what: str, done: int) -> None:
                progress.update(shown, description=f"{what}: {done}")

            reports = [("shared stores", janitor.look_only(tell) if dry else janitor.take_turn(tell))]
            if (settings.state_dir / "trainer").is_dir():
                tell("this machine's trainer disk", 0)
                reports.append(("this trainer's disk", _tidy_disk(settings, ledger, dry)))
        return reports
    finally:
        ledger.close()


def _tidy_disk(settings: Settings, ledger: Ledger, dry: bool) -> Report:
    with ledger.read() as tx:
        catalog = configuration.in_force(tx).catalog
    return DiskTidy(settings.state_dir, lambda: catalog).tidy(dry=dry)


def _progress() -> Progress:
    columns = SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
    return Progress(*columns, console=Console(stderr=True), transient=True)


def show_reports(reports: list[Titled], *, dry: bool) -> int:
    """Print them; the exit code."""
    console = Console(highlight=False)
    for title, report in reports:
        console.print(_table(title, report, "would be taken" if dry else "was taken"))
    errors = [error for _, report in reports for error in report.errors]
    for error in errors:
        print(f"left for the next time: {error}", file=sys.stderr)
    return 1 if errors else 0


def _table(title: str, report: Report, verb: str) -> Table:
    table = Table("kind", verb, "bytes", "stays, because", title=title, title_justify="left")
    for kind in sorted({*report.taken, *report.kept}):
        count = report.taken.get(kind)
        number, size_bytes = (count.number, count.size_bytes) if count is not None else (0, 0)
        why = "\n".join(f"{many}: {reason}" for reason, many in sorted(report.kept.get(kind, {}).items()))
        table.add_row(kind, str(number), size(size_bytes) if size_bytes else "", why)
    if not table.row_count:
        table.add_row("nothing is there yet", "", "", "")
    return table
