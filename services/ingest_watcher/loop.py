"""A thread that repeats one step: an error is told and tried again, never swallowed, and a thread that ends by itself is noticed."""

from __future__ import annotations

import threading
import time
from typing import Protocol

import structlog

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.2, 10.0
_TOLD_AGAIN_S = 60.0

log = structlog.get_logger()


class Body(Protocol):
    """The work of a loop: `step` does it once and waits for the next time itself; `close`, always called, gives back what it holds."""

    def step(self) -> None: ...

    def close(self) -> None: ...


class Wake:
    """What a loop waits on: a time, a call, or the end."""

    def __init__(self) -> None:
        self.stopped = threading.Event()
        self._called = threading.Event()

    def call(self) -> None:
        self._called.set()

    def stop(self) -> None:
        self.stopped.set()
        self._called.set()

    def wait(self, timeout_s: float) -> None:
        """Return after `timeout_s`, at a call (also one made since the last wait) or at the end."""
        if not self.stopped.is_set():
            self._called.wait(timeout_s)
            self._called.clear()


class Loop:
    """A body on its own thread."""

    def __init__(self, name: str, body: Body, wake: Wake) -> None:
        self.name = name
        self.body = body
        self._wake = wake
        self._told: tuple[str, float] | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def call(self) -> None:
        self._wake.call()

    def stop(self) -> None:
        """Ask it to end; returns at once."""
        self._wake.stop()

    def join(self, timeout_s: float) -> bool:
        self._thread.join(max(0.0, timeout_s))
        return not self._thread.is_alive()

    @property
    def died(self) -> bool:
        """Whether it has ended although nobody stopped it."""
        return not self._thread.is_alive() and not self._wake.stopped.is_set()

    def _run(self) -> None:
        with structlog.contextvars.bound_contextvars(loop=self.name):
            try:
                self._repeat()
            finally:
                self._close()

    def _repeat(self) -> None:
        pause_s = FIRST_PAUSE_S
        while not self._wake.stopped.is_set():
            try:
                self.body.step()
                pause_s, self._told = FIRST_PAUSE_S, None
            except Exception as error:  # noqa: BLE001  the edge of the loop: told, and tried again
                self._tell(error)
                self._wake.wait(pause_s)
                pause_s = min(pause_s * 2, LONGEST_PAUSE_S)

    def _tell(self, error: Exception) -> None:
        """Log it, the same one once a minute."""
        what, now = repr(error), time.monotonic()
        if self._told is None or self._told[0] != what or now - self._told[1] > _TOLD_AGAIN_S:
            self._told = what, now
            log.error("loop.failed", exc_info=error)

    def _close(self) -> None:
        try:
            self.body.close()
        except Exception as error:  # what it held runs out by itself
            log.error("loop.not_closed", exc_info=error)
