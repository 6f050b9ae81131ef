"""What the operator sees of an audit: a line for each invariant, what is wrong under it, and what to do about it."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape

from shared.errors import HeadraceError
from shared.settings import load
from stack.audit.look import Tell, audit
from stack.audit.report import INVARIANTS, Report, by_advice

SHOWN = 10
_MARKS = {"ok": ("ok   ", "[green]✓[/]"), "wrong": ("WRONG", "[bold red]✗[/]"), "unread": ("?    ", "[yellow]?[/]")}


def main(args: argparse.Namespace) -> int:
    """0 clean; 1 violations; 2 something could not be looked at, and nothing wrong was found in the rest."""
    try:
        settings = load()
    except HeadraceError as error:
        print(error.message, file=sys.stderr)
        return 2
    with _progress(quiet=args.json or args.quiet) as tell:
        report = audit(settings, deep=args.deep, pause_s=args.pause, tell=tell)
    if args.json:
        print(json.dumps(report.to_json(), indent=1))
    elif report.exit_code or not args.quiet:
        show(report, Console(highlight=False, soft_wrap=True))
    return report.exit_code


@contextmanager
def _progress(*, quiet: bool) -> Iterator[Tell]:
    """What is looked at, on a terminal alone."""
    console = Console(stderr=True)
    if quiet or not console.is_terminal:
        yield lambda what, done: None
        return
    with console.status("looks") as status:
        yield lambda what, done: status.update(f"looks at {what}: {done:,}")


def show(report: Report, console: Console) -> None:
    pretty = console.is_terminal
    console.print(f"[bold]Audit[/] of {escape(report.ledger)} at {report.at:%Y-%m-%d %H:%M:%S}Z\n")
    for name, title in INVARIANTS.items():
        found, unread = report.of(name), report.unread_of(name)
        plain, colour = _MARKS["wrong" if found else "unread" if unread else "ok"]
        looked = ", ".join(f"{number:,} {what}" for what, number in report.looked(name).items())
        console.print(f"{colour if pretty else plain} {name:6} {title}")
        if looked:
            console.print(f"{' ' * (2 if pretty else 6)}       [dim]{escape(looked)}[/]")
        _show_violations(report, name, console)
    for one in report.unread:
        console.print(f"\n[yellow]not looked at: {escape(one.what)}[/]\n  {escape(one.why)}")
    console.print(f"\n{_sum(report)} [dim]({report.seconds:.1f} s)[/]")


def _show_violations(report: Report, name: str, console: Console) -> None:
    for do, group in by_advice(report.of(name)).items():
        for one in group[:SHOWN]:
            console.print(f"    [red]•[/] {escape(one.what)}")
        if len(group) > SHOWN:
            console.print(f"    • … and {len(group) - SHOWN} more like these; --json names them")
        console.print(f"      [bold]→ {escape(do)}[/]")
    if report.more(name):
        console.print(f"    • and {report.more(name):,} more, which are not named")


def _sum(report: Report) -> str:
    number = len(report.violations) + report.unnamed
    left = "; not everything could be looked at" if report.unread else ""
    if number:
        return f"[bold red]{number:,} {'thing is' if number == 1 else 'things are'} not as {'it' if number == 1 else 'they'} must be{left}[/]"
    return f"[yellow]Nothing wrong was found{left}[/]" if report.unread else "[bold green]All is as it must be[/]"
