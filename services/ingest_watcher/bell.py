"""The bell: tells the workers of a compute class which run has become due, once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import structlog

from services.ingest_watcher.loop import Wake
from shared.ledger import Ledger, Transaction, configuration, runs, workers

LONGEST_WAIT_S = 5.0  # the wall clock may be set meanwhile
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 10.0

log = structlog.get_logger()


class Doorbell(Protocol):
    """`ring` sends one message to the queue of a compute class; False when that cannot be reached, within a few seconds."""

    def ring(self, run: int, compute_class: str) -> bool: ...

    def close(self) -> None: ...


class Bell:
    """Rings when a run becomes due and a slot is free for it, so that fifty runs behind a long one leave nothing in Redis; the slot that
    becomes free is told at once, and looks for itself too. While the broker is away it asks ever more seldom.

    A crash between the ring and its note rings twice; the second finds the run claimed.
    """

    def __init__(self, ledger: Ledger, connect: Callable[[tuple[str, ...]], Doorbell], wake: Wake) -> None:
        self._ledger, self._connect, self._wake = ledger, connect, wake
        self._changes = ledger.watch()
        self._doorbell: Doorbell | None = None
        self._classes: tuple[str, ...] = ()
        self._pause_s = 0.0

    def step(self) -> None:
        self._changes.poll()
        with self._ledger.read() as tx:
            classes = tuple(configuration.in_force(tx).catalog.compute_classes)
            due, next_due, now = self._to_ring(tx, classes), runs.next_due(tx), tx.now
        doorbell = self._connected(classes)
        if due:
            self._ring(doorbell, due)
        else:
            left_s = (next_due - now).total_seconds() if next_due is not None else LONGEST_WAIT_S
            self._changes.wait(min(max(left_s, 0.0), LONGEST_WAIT_S), self._wake.stopped)

    def _to_ring(self, tx: Transaction, classes: tuple[str, ...]) -> list[Any]:
        slots = workers.free_slots(tx, workers.TOLD_WITHIN)
        free = {name: number for name, number in slots.items() if number > 0 and name in classes}
        found = []
        for run in runs.unrung(tx, list(free)):
            if free[run.compute_class] > 0:
                free[run.compute_class] -= 1
                found.append(run)
        return found

    def close(self) -> None:
        self._changes.close()
        if self._doorbell is not None:
            self._doorbell.close()

    def _connected(self, classes: tuple[str, ...]) -> Doorbell:
        if self._doorbell is not None and classes == self._classes:
            return self._doorbell
        if self._doorbell is not None:
            self._doorbell.close()
        self._doorbell, self._classes = self._connect(classes), classes
        return self._doorbell

    def _ring(self, doorbell: Doorbell, due: list[Any]) -> None:
        rung = []
        for run in due:
            if not doorbell.ring(run.id, run.compute_class):
                break
            rung.append(run.id)
        if rung:
            with self._ledger.write() as tx:
                runs.rung(tx, rung)
            log.info("runs.rung", runs=rung)
        self._pace(reached=len(rung) == len(due))

    def _pace(self, reached: bool) -> None:
        if reached:
            self._pause_s = 0.0
            return
        if not self._pause_s:
            log.warning("broker.away", advice="runs start all the same: workers with a free slot look in the ledger")
        self._pause_s = min(max(self._pause_s * 2, FIRST_PAUSE_S), LONGEST_PAUSE_S)
        self._wake.wait(self._pause_s)
