"""What the demo shows: chapters, lines with the time since the start, and a moving bar for all that takes longer than a second."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

Update = Callable[..., None]


class Show:
    """Lines and bars; plain lines where there is no terminal."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._started = time.monotonic()

    def chapter(self, title: str) -> None:
        self.console.print()
        self.console.rule(f"[bold cyan]{escape(title)}", align="left")

    def line(self, text: str, mark: str = "•", style: str = "") -> None:
        since = time.monotonic() - self._started
        body = f"[{style}]{escape(text)}[/]" if style else escape(text)
        self.console.print(f"[dim]{since:6.1f} s[/]  {mark} {body}", highlight=False)

    def seen(self, text: str) -> None:
        self.line(text, "[green]✓[/]")

    def quote(self, text: str) -> None:
        for line in text.splitlines():
            style = "green" if line.startswith("+") else "red" if line.startswith("-") else "italic"
            self.console.print(f"            [{style}]{escape(line)}[/]", highlight=False)

    @contextmanager
    def working(self, text: str) -> Iterator[Update]:
        """A bar while something goes on; `update(fraction=…, text=…)` moves it."""
        columns = (
            TextColumn("          "),
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(28),
            TimeElapsedColumn(),
        )
        with Progress(*columns, console=self.console, transient=True, disable=not self.console.is_terminal) as progress:
            task = progress.add_task(escape(text), total=None)

            def update(fraction: float | None = None, text: str | None = None) -> None:
                if fraction is not None:
                    progress.update(task, total=1.0, completed=fraction)
                if text is not None:
                    progress.update(task, description=escape(text))

            yield update
