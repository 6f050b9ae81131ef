"""What keeps a claim alive while something slow happens, and tells it when to stop."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

import structlog

from services.trainer.failures import Cancelled, Leaving, Lost, Stopped
from services.trainer.told import Told
from shared.errors import Fenced, Unavailable

Beat = Callable[[Told], str | None]  # what is told in, a person's wish to stop out; raises Fenced
NEWS_S = 1.0
log = structlog.get_logger()


class Heart:
    """Beats every `interval_s` in a thread of its own until left, and once a second while there is news; a ledger that does not answer
    costs beats, not the claim.

    `stopped` is set as soon as the claim is lost, a person cancels or `leaving` is set; `check` then raises why.
    """

    def __init__(self, beat: Beat, interval_s: float, leaving: threading.Event) -> None:
        self._beat = beat
        self._interval_s = interval_s
        self._leaving = leaving
        self._ended = threading.Event()
        self._why: Stopped | None = None
        self._thread = threading.Thread(target=self._run, name="heart", daemon=True)
        self.stopped = threading.Event()
        self.told = Told()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    def check(self) -> None:
        """Raise why the work must stop, if it must."""
        if self._leaving.is_set() and self._why is None:
            self._stop(Leaving("the worker shuts down"))
        if self._why is not None:
            raise self._why

    def _run(self) -> None:
        told, beaten_at = self.told, time.monotonic()
        while not self._ended.wait(min(NEWS_S, self._interval_s)):
            if self.told is not told or time.monotonic() - beaten_at >= self._interval_s:
                told, beaten_at = self.told, time.monotonic()
                self._beat_once(told)
            if isinstance(self._why, Lost):
                return
        if self.told is not told:
            self._beat_once(self.told)

    def _beat_once(self, told: Told) -> None:
        try:
            if (reason := self._beat(told)) is not None:
                self._stop(Cancelled(reason))
        except Fenced as error:
            self._stop(Lost(error.message))
        except Unavailable as error:
            log.warning("heartbeat_missed", error=error.message)
        except Exception:  # the edge of a thread: without it the claim would run out while the child trains on
            log.exception("heartbeat_failed")

    def _stop(self, why: Stopped) -> None:
        self._why = self._why or why
        self.stopped.set()
