"""A free slot looks into the ledger: the doorbell may be lost, and no outage of Redis stops work."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Protocol

import structlog

from shared.errors import Unavailable

PATIENCE = timedelta(seconds=0.5)  # the watcher has just rung for what is younger
HEARD_WITHIN_S = 2.0
TELL_EVERY_S = 5.0
EX_DEAF = 70
Due = int | tuple[int, str]
log = structlog.get_logger()


class Work(Protocol):
    """The worker's view of the ledger; see `claims.LedgerWork`."""

    def due(self, patience: timedelta) -> Due | None: ...
    def is_open(self, due: Due) -> bool: ...
    def tell(self, busy: int) -> None: ...
    def leave(self) -> None: ...


class Slots:
    """How many attempts may run at once in this process, whoever started them."""

    def __init__(self, number: int) -> None:
        self._free = threading.BoundedSemaphore(number)
        self._lock = threading.Lock()
        self.number = number
        self.busy = 0
        self.freed = threading.Event()

    def take(self) -> bool:
        if not self._free.acquire(blocking=False):
            return False
        with self._lock:
            self.busy += 1
        return True

    def give_back(self) -> None:
        with self._lock:
            self.busy -= 1
        self._free.release()
        self.freed.set()


@dataclass
class Lookout:
    """Looks every `every_s` and after each attempt, while a slot is free: rings for what is due, so that Flower sees every attempt; if the
    ring cannot be published or nobody hears it within 2 s, this process does the work itself. A ring that was published and not heard
    makes the process deaf: unless a message comes after all, it exits when idle, loudly, to be started again."""

    work: Work
    slots: Slots
    ring: Callable[[Due], bool]
    do: Callable[[Due], None]
    leaving: threading.Event
    every_s: float

    def __post_init__(self) -> None:
        self.deaf = False
        self._told_at = 0.0
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        self._spawn(self._run, "lookout")

    def stop(self, timeout_s: float) -> None:
        """Wait for what was started here; `leaving` must be set."""
        deadline = time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        try:
            self.work.leave()
        except Unavailable:
            log.warning("leave_not_told")

    def heard(self) -> None:
        """A message came: the line to Redis works."""
        self.deaf = False

    def _run(self) -> None:
        while not self.leaving.is_set():
            try:
                self._tell()
                self._look()
            except Unavailable as error:
                log.warning("ledger_unavailable", error=error.message)
            except Exception:  # the edge: this loop is what heals the rest, so it must not die quietly
                log.exception("lookout_failed")
                os._exit(EX_DEAF)
            self.slots.freed.wait(self.every_s * random.uniform(0.8, 1.2))
            self.slots.freed.clear()

    def _tell(self) -> None:
        if time.monotonic() - self._told_at >= TELL_EVERY_S:
            self.work.tell(self.slots.busy)
            self._told_at = time.monotonic()

    def _look(self) -> None:
        if self.deaf and self.slots.busy == 0:
            log.error(
                "worker_is_deaf", advice="published messages are not heard; this process exits to be started again"
            )
            os._exit(EX_DEAF)
        if self.slots.busy >= self.slots.number or (due := self.work.due(PATIENCE)) is None:
            return
        published = self.ring(due)
        if published and self._was_heard(due):
            return
        if not self.leaving.is_set() and self.slots.take():
            self.deaf = self.deaf or published
            log.warning("claims_without_bell", due=due, published=published)
            self._spawn(lambda: self._do(due), f"direct-{due}")

    def _was_heard(self, due: Due) -> bool:
        deadline = time.monotonic() + HEARD_WITHIN_S
        while time.monotonic() < deadline and not self.leaving.is_set():
            if not self.work.is_open(due):
                return True
            time.sleep(0.05)
        return self.leaving.is_set()

    def _do(self, due: Due) -> None:
        try:
            self.do(due)
        finally:
            self.slots.give_back()

    def _spawn(self, target: Callable[[], None], name: str) -> None:
        self._threads = [thread for thread in self._threads if thread.is_alive()]
        thread = threading.Thread(target=target, name=name, daemon=True)
        self._threads.append(thread)
        thread.start()
