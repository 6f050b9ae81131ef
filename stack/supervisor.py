"""Keeps a set of processes running: starts them in order, starts again what ends, stops them in order."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

from shared.errors import HeadraceError
from stack.processes import Process, Service, State

TICK_S = 0.05
Told = Callable[[Process], None]


class NotUp(HeadraceError):
    """A process of the stack did not come up."""

    def __init__(self, process: Process) -> None:
        lines = "\n".join(f"  | {line}" for line in process.last_lines()) or "  | (nothing)"
        super().__init__(f"{process.name} {process.failure or process.said}; the last lines of {process.log}:\n{lines}")


class Supervisor:
    """`tell` hears of every change of state, in the supervisor's own thread; `meanwhile` is called there between two looks."""

    def __init__(self, logs: Path, tell: Told, meanwhile: Callable[[], None] = lambda: None) -> None:
        self.processes: list[Process] = []
        self._logs = logs
        self._tell = tell
        self._meanwhile = meanwhile
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="supervisor", daemon=True)
        self._error: BaseException | None = None

    def add(self, *services: Service) -> None:
        """Start these too, each as soon as what it comes after is up. A name that is known already is passed over."""
        known = {process.name for process in self.processes}
        new = [
            Process(service, self._logs / f"{service.name}.log") for service in services if service.name not in known
        ]
        self.processes = [*self.processes, *new]  # a new list: other threads walk over the old one

    def start(self) -> None:
        self._thread.start()

    def _run(self) -> None:
        try:
            while not self._stopping.wait(TICK_S):
                self._look()
                self._meanwhile()
        except BaseException as error:  # noqa: BLE001 - the edge: `check` raises it where the stack is waited for
            self._error = error

    def _look(self) -> None:
        up = {process.name for process in self.processes if process.state is State.UP}
        for process in self.processes:
            if self._stopping.is_set():
                return
            if process.state is State.WAITING and up.issuperset(process.service.after):
                process.start()
                self._tell(process)
            elif process.step():
                self._tell(process)

    def check(self) -> None:
        """Raise what ended the supervisor itself, if anything did."""
        if self._error is not None:
            raise RuntimeError("the supervisor stopped watching") from self._error

    def wait_up(self, stop: threading.Event) -> bool:
        """Wait until every process is up; False when `stop` was set before. Raises `NotUp`."""
        while not all(process.was_up for process in self.processes):
            self.check()
            for process in self.processes:
                if process.failure:
                    raise NotUp(process)
            if stop.wait(TICK_S):
                return False
        return True

    def stop(self, now: threading.Event) -> None:
        """Stop all, rank by rank; once `now` is set, or when this is interrupted, kill what is left. May be called twice."""
        self._stopping.set()
        try:
            if self._thread.ident is not None:
                self._thread.join()
            for processes in _by_rank(self.processes):
                self._stop_together(processes, now)
        except BaseException:
            self._kill()
            raise

    def _stop_together(self, processes: list[Process], now: threading.Event) -> None:
        threads = [threading.Thread(target=process.stop, name=f"stop {process.name}") for process in processes]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            if now.wait(TICK_S):
                self._kill()
                break
        for thread in threads:
            thread.join()
        for process in processes:
            self._tell(process)

    def _kill(self) -> None:
        for process in self.processes:
            process.kill()


def _by_rank(processes: list[Process]) -> list[list[Process]]:
    ranks: dict[int, list[Process]] = defaultdict(list)
    for process in processes:
        if process.state is not State.STOPPED:
            ranks[process.service.rank].append(process)
    return [ranks[rank] for rank in sorted(ranks)]
