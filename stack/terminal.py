"""What the operator sees: a live table while the stack comes up, where it listens, and what happens after."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.panel import Panel
from rich.table import Table

from stack.endpoints import Endpoints
from stack.processes import Process, State

_MARKS = {
    State.WAITING: "[dim]·[/]",
    State.STARTING: "[yellow]…[/]",
    State.UP: "[green]✓[/]",
    State.DOWN: "[red]✗[/]",
    State.STOPPED: "[dim]■[/]",
}


class Terminal:
    """Lines without a terminal, a live table with one."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._live = False

    def say(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def tell(self, process: Process) -> None:
        """A change of state, where the table does not show it."""
        if process.state is State.DOWN:
            self.say(f"{process.name} {process.said}; it is started again (log: {process.log})")
        elif process.state is State.UP and not self._live:
            self.say(f"{process.name} is up after {process.took_s:.1f} s")

    @contextmanager
    def starting(self, processes: Callable[[], Sequence[Process]]) -> Iterator[None]:
        """Show the processes come up, for as long as this is open."""
        if not self.console.is_terminal:
            yield
            return
        with Live(
            console=self.console, get_renderable=lambda: _table(processes()), refresh_per_second=8, transient=True
        ):
            self._live = True
            try:
                yield
            finally:
                self._live = False

    def ready(self, endpoints: Endpoints, state: Path) -> None:
        password = Path(endpoints.flower_password_file).read_text(encoding="utf-8").strip()
        rows = [
            ("API", endpoints.api),
            ("MLflow", endpoints.mlflow),
            (
                "Flower",
                f"{endpoints.flower}  (user {endpoints.flower_user}, password {password})",
            ),
            ("token", endpoints.token_file),
            ("logs", str(state / "logs")),
            ("next", f"HEADRACE_STATE={state} .venv/bin/headrace status"),
        ]
        if not self.console.is_terminal:
            for name, value in rows:
                self.say(f"{name:7} {value}")
            return
        table = Table.grid(padding=(0, 2))
        for name, value in rows:
            table.add_row(f"[bold]{name}[/]", value)
        self.console.print(
            Panel(table, title="Headrace is up", subtitle="Ctrl-C stops it", border_style="green", expand=False)
        )


def _table(processes: Sequence[Process]) -> Table:
    table = Table.grid(padding=(0, 2))
    for process in processes:
        seconds = process.took_s if process.state is State.UP else process.seconds
        table.add_row(_MARKS[process.state], process.name, str(process.state), f"{seconds:.1f} s")
    return table
