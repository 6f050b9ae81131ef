"""One process of the stack: started under a warden, watched until it serves, started again with patience when it ends."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from headrace.warded import Warded

FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 30.0
STEADY_S = 10.0  # up for so long, and the next end counts as the first again
ENDINGS_AT_START = 3
LOG_BYTES = 8 * 1024**2


class State(StrEnum):
    WAITING = "waiting"
    STARTING = "starting"
    UP = "up"
    DOWN = "down"  # ended; starts again after a pause
    STOPPED = "stopped"


@dataclass(frozen=True)
class Service:
    """What to start, and how to see that it serves.

    `serves` gets the pid and answers within a second. `after` names what must be up before. Of two ranks the lower is stopped first.
    """

    name: str
    argv: tuple[str, ...]
    serves: Callable[[int], bool]
    cwd: Path
    environment: Mapping[str, str] = field(repr=False)
    after: tuple[str, ...] = ()
    rank: int = 0
    limit_s: float = 60.0
    grace_s: float = 10.0


class Process:
    """A service and its life. One thread calls `start` and `step`; any thread may look."""

    def __init__(self, service: Service, log: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self.service = service
        self.log = log
        self.state = State.WAITING
        self.since = clock()
        self.said = ""
        self.was_up = False
        self.took_s = 0.0
        self._clock = clock
        self._warded: Warded | None = None
        self._endings = 0
        self._timed_out = False
        self._again_at = 0.0

    @property
    def name(self) -> str:
        return self.service.name

    @property
    def pid(self) -> int | None:
        """Of the service itself, not of its warden; None when it does not run."""
        return self._warded.pid if self._warded else None

    @property
    def seconds(self) -> float:
        """How long it has been in its state."""
        return self._clock() - self.since

    @property
    def failure(self) -> str | None:
        """Why it is given up before it has ever been up; afterwards it is started again for ever."""
        given_up = not self.was_up and (self._timed_out or self._endings >= ENDINGS_AT_START)
        return self.said if given_up else None

    def start(self) -> None:
        _rotate(self.log)
        service = self.service
        try:
            self._warded = Warded.start(service.argv, log=self.log, cwd=service.cwd, env=service.environment)
        except OSError as error:
            self._ended(f"could not be started ({error})")
        else:
            self._enter(State.STARTING)

    def step(self) -> bool:
        """Look once and do what is due; whether the state changed. Takes a second at most."""
        before = self.state, self._endings
        if self.state is State.DOWN and self._clock() >= self._again_at:
            self.start()
        elif self._warded is not None:
            self._watch(self._warded)
        return before != (self.state, self._endings)

    def _watch(self, warded: Warded) -> None:
        if ending := warded.poll():
            self._ended(f"ended ({ending})")
        elif self.state is State.STARTING and self.service.serves(warded.pid):
            self.was_up = True
            self.took_s = self.seconds
            self._enter(State.UP)
        elif self.state is State.STARTING and self.seconds > self.service.limit_s:
            self._timed_out = True
            warded.kill()
            self._ended(f"did not come up within {self.service.limit_s:.0f} s")

    def _ended(self, said: str) -> None:
        steady = self.state is State.UP and self.seconds > STEADY_S
        self._endings = 1 if steady else self._endings + 1
        pause_s = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** min(self._endings - 1, 10))
        self._again_at = self._clock() + pause_s
        self._warded = None
        self.said = said
        self._enter(State.DOWN)

    def stop(self) -> None:
        """Ask it to end, and make it end when its grace is over. Returns when nothing of it is left."""
        if self._warded is not None:
            self._warded.terminate(self.service.grace_s)
        self._gone()

    def kill(self) -> None:
        """End it and all that it started, at once; also from another thread while `stop` waits."""
        if (warded := self._warded) is not None:
            warded.kill()
        self._gone()

    def _gone(self) -> None:
        self._warded = None
        self._enter(State.STOPPED)

    def _enter(self, state: State) -> None:
        self.state = state
        self.since = self._clock()

    def last_lines(self, count: int = 20) -> list[str]:
        """The end of its log."""
        try:
            with self.log.open("rb") as stream:
                stream.seek(max(0, stream.seek(0, 2) - 64 * 1024))
                return stream.read().decode(errors="replace").splitlines()[-count:]
        except OSError:
            return []


def _rotate(log: Path) -> None:
    if log.exists() and log.stat().st_size > LOG_BYTES:
        log.replace(log.with_name(log.name + ".1"))
