"""Which sides of which points have been struck: files in one directory, which all processes of a test share."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from shared.points import Side


@dataclass(frozen=True)
class Strike:
    """A process that was killed, and where it stood: all that its commit was made of, or the one call."""

    points: tuple[str, ...]
    side: Side
    process: str
    pid: int
    at: float


@dataclass(frozen=True)
class Board:
    """Each side of each point is struck once, by whoever gets there first."""

    directory: Path

    def strike(self, process: str, points: tuple[str, ...], side: Side, spare: Callable[[], bool]) -> None:
        """The function at the points of a process: dies there, unless both were struck before or `spare` says to leave it alive."""
        if all(self._mark(name, side).exists() for name in points) or spare():
            return
        fresh = [name for name in points if self._take(name, side)]
        if fresh:
            self._record(Strike(tuple(fresh), side, process, os.getpid(), time.time()))
            os.kill(os.getpid(), signal.SIGKILL)
            signal.pause()  # the signal is on its way

    def strikes(self) -> list[Strike]:
        found = [json.loads(path.read_text()) for path in self.directory.glob("strike-*.json")]
        return sorted(
            (Strike(**{**one, "points": tuple(one["points"])}) for one in found), key=lambda strike: strike.at
        )

    def left(self, points: Iterable[str]) -> list[str]:
        """The sides that nobody has reached yet."""
        sides: tuple[Side, Side] = ("before", "after")
        struck = {path.name.rpartition(": ")[2] for path in self.directory.iterdir()}
        return [f"{side} {name}" for name in points for side in sides if f"{name}.{side}" not in struck]

    def _mark(self, name: str, side: Side) -> Path:
        return self.directory / f"{name}.{side}"

    def _take(self, name: str, side: Side) -> bool:
        try:
            self._mark(name, side).touch(exist_ok=False)
        except FileExistsError:
            return False
        return True

    def _record(self, strike: Strike) -> None:
        name = f"{strike.pid}-{threading.get_ident()}"  # two threads of one process may come to two points at once
        draft = self.directory / f"draft-{name}"
        draft.write_text(json.dumps(strike.__dict__))
        draft.replace(self.directory / f"strike-{name}.json")
