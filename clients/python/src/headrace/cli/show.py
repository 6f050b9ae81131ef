"""How answers look: tables and colour on a terminal, aligned plain text elsewhere, JSON where asked for."""

from __future__ import annotations

import json
import re
import sys
from datetime import datetime, timezone
from typing import Any, Mapping, Optional, Sequence, Tuple

Row = Sequence[object]

_COLOURS = {
    "promoted": "green", "trained": "green", "promote": "green", "delivered": "green",
    "running": "cyan", "registering": "cyan", "judging": "cyan", "sample": "cyan", "retrying": "yellow", "awaiting": "yellow", "undecided": "yellow",
    "rejected": "red", "reject": "red", "failed": "red",
    "waiting": "blue", "cancelled": "bright_black", "superseded": "bright_black",
}  # fmt: skip
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]+")


def as_json(value: object) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))


def table(columns: Sequence[str], rows: Sequence[Row], *, empty: str) -> None:
    """Rows under their columns; `empty` is said instead of a table without rows."""
    cells = [[text(value) for value in row] for row in rows]
    if not cells:
        print(empty)
    elif sys.stdout.isatty() and has_rich():
        _rich_table(columns, cells)
    else:
        _plain_table([[column.upper() for column in columns], *cells])


def facts(pairs: Sequence[Tuple[str, object]]) -> None:
    """Name and value, a line each; a fact that is not known is left out."""
    known = [(name, text(value)) for name, value in pairs if value not in (None, "", [], {})]
    width = max((len(name) for name, _ in known), default=0)
    for name, value in known:
        print(f"{bold(name.ljust(width))}  {value}")


def heading(words: str) -> None:
    print(f"\n{bold(words)}")


def bold(words: str) -> str:
    return f"\033[1m{words}\033[0m" if sys.stdout.isatty() else words


def colour(word: str) -> str:
    """Of a state or a result."""
    return _COLOURS.get(word, "")


def text(value: object) -> str:
    """One line: a server's words can't move the cursor or break a table."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    return _CONTROL.sub(" ", str(value))


def ago(moment: Optional[str]) -> Optional[str]:
    """How long since an ISO time, or how long until it."""
    if not moment:
        return None
    then = datetime.fromisoformat(moment.replace("Z", "+00:00"))
    seconds = (datetime.now(timezone.utc) - then).total_seconds()
    return f"{span(seconds)} ago" if seconds >= 0 else f"in {span(-seconds)}"


def span(seconds: float) -> str:
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"


def size(size_bytes: float) -> str:
    for unit in ("B", "kB", "MB"):
        if size_bytes < 1000:
            return f"{size_bytes:.0f} {unit}" if unit == "B" else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1000
    return f"{size_bytes:.1f} GB"


def used(told: Optional[Mapping[str, Any]]) -> Optional[str]:
    """What a training took of a machine, in a few words."""
    if not told:
        return None
    words = [f"{span(told['cpu_s'])} CPU", f"{size(told['memory_bytes'])} memory"]
    words += [f"{span(told['gpu_s'])} GPU"] if told["gpu_s"] else []
    words += [f"{size(told[f'{what}_bytes'])} {what}" for what in ("read", "written") if told[f"{what}_bytes"]]
    return ", ".join(words)


def sample(text: str) -> str:
    """`a sample of 1% of the rows`, `a sample of 20,000 rows`."""
    return f"a sample of {int(text):,} rows" if text.isdigit() else f"a sample of {text} of the rows"


def pairs(values: Optional[Mapping[str, Any]]) -> str:
    return ", ".join(f"{name} {text(value)}" for name, value in sorted((values or {}).items()))


def _plain_table(lines: Sequence[Sequence[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(*lines)]  # noqa: B905 (3.9 has no strict)
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip())  # noqa: B905


def has_rich() -> bool:
    try:
        import rich  # noqa: F401
    except ImportError:  # pip install headrace[cli] brings it; without it the text is plain
        return False
    return True


def _rich_table(columns: Sequence[str], cells: Sequence[Sequence[str]]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=SIMPLE_HEAD, header_style="bold", pad_edge=False)
    for column in columns:
        drawn.add_column(column, overflow="fold")
    for row in cells:
        # Text, not markup: a model called "[red]" is a name.
        drawn.add_row(*(Text(cell, style=colour(cell)) for cell in row))
    Console(highlight=False).print(drawn)
