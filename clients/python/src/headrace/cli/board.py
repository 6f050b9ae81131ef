"""How a campaign is shown while it goes on: a table that is drawn anew on a terminal, a line for each change elsewhere."""

from __future__ import annotations

import sys
from collections import Counter
from contextlib import contextmanager
from typing import Any, Callable, Dict, Iterator, List, Tuple

from headrace.cli import show
from headrace.cli.following import Followed, Following

Show = Callable[[], None]
_ORDER = ("running", "retrying", "registering", "judging")


@contextmanager
def board(following: Following, *, quiet: bool) -> Iterator[Show]:
    """What shows how things stand, each time that it is called."""
    if quiet:
        yield lambda: None
    elif sys.stdout.isatty() and show.has_rich():
        with _live(following) as draw:
            yield draw
    else:
        yield Lines(following)


class Lines:
    """A line for each run whose stage has changed, or that has come a tenth further."""

    def __init__(self, following: Following) -> None:
        self._following = following
        self._told: Dict[str, Tuple[str, int]] = {}

    def __call__(self) -> None:
        for model, one in self._following.entries.items():
            at = (one.stage, int(one.done * 10))
            if self._told.get(model) != at:
                self._told[model] = at
                print(f"{model}: run {one.run['id']} {line(one)}", flush=True)


def line(one: Followed) -> str:
    """`running 50% fitting, about 12 s left`; a result with its version."""
    words = [one.stage]
    if one.stage == "running":
        words += [f"{one.done:.0%}", one.what] if one.run["progress"] else []
    elif one.version is not None and one.result is not None:
        words += [f"(version {one.version['version']})"]
    left = one.run.get("left_s") if one.stage == "running" else None
    said = " ".join(filter(None, words))
    return show.text(f"{said}, about {show.span(left)} left" if left else said)


def summary(following: Following) -> str:
    """`3 of 50: 1 promoted, 2 rejected; 2 running, 45 waiting; about 12 min left`."""
    entries = following.entries.values()
    ended = Counter(one.result for one in entries if one.result is not None)
    going = Counter(one.stage for one in entries if one.result is None)
    parts = [", ".join(f"{number} {name}" for name, number in counted.items()) for counted in (ended, going)]
    left = following.left_s() if going else None
    parts.append(f"about {show.span(left)} left" if left else "")
    return f"{sum(ended.values())} of {len(entries)}: {'; '.join(filter(None, parts))}"


def in_order(entries: List[Followed], most: int) -> Tuple[List[Followed], int]:
    """As many as there is room for, and how many are left out: what moves first, then what has ended last in the list, then what waits."""

    def rank(one: Followed) -> int:
        return 0 if one.stage in _ORDER else 1 if one.result is not None else 2

    ordered = sorted(entries, key=rank)
    return (ordered, 0) if len(ordered) <= most else (ordered[: max(0, most - 1)], len(ordered) - max(0, most - 1))


@contextmanager
def _live(following: Following) -> Iterator[Show]:
    from rich.console import Console
    from rich.live import Live

    console = Console(highlight=False)
    with Live(console=console, auto_refresh=False, transient=True) as live:
        yield lambda: live.update(_drawn(following, console.size.height), refresh=True)


def _drawn(following: Following, height: int) -> Any:
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    shown, left_out = in_order(list(following.entries.values()), max(3, height - 4))
    rows = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("model", "run", "state", "", "left", "what"):
        rows.add_column(column, no_wrap=True, overflow="ellipsis", ratio=1 if column == "what" else None)
    for one in shown:
        left = one.run.get("left_s") if one.stage == "running" else None
        rows.add_row(
            Text(one.model),
            str(one.run["id"]),
            Text(one.stage, style=show.colour(one.stage)),
            ProgressBar(total=1.0, completed=one.done, width=20),
            show.span(left) if left else "",
            Text(show.text(one.what)),
        )
    entries = following.entries
    total = ProgressBar(total=float(len(entries)), completed=sum(one.done for one in entries.values()), width=30)
    head = Table.grid(padding=(0, 2))
    head.add_row(total, Text(summary(following), style="bold"))
    more = [Text(f"… and {left_out} more", style="bright_black")] if left_out else []
    return Group(head, rows, *more)
