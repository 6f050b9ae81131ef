"""Who tidies the shared stores, and when: one janitor at a time among all bridges, whose turns are rows of the ledger."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import structlog

from services.registry_bridge.tidy import Tidy, Turn
from shared.catalog import Keep
from shared.errors import HeadraceError, Transient
from shared.ledger import Ledger, configuration, repeats, retention
from shared.retention import Report

EVERY = timedelta(hours=6)
AGAIN_AFTER = timedelta(minutes=10)
LEASE = timedelta(minutes=1)
RENEW_S = 15.0
LOOK_EVERY_S = 15.0
log = structlog.get_logger()
Tell = Callable[[str, int], None]


class Busy(Transient):
    """Another janitor has the turn."""


@dataclass
class Janitor:
    """Takes a turn every six hours and soon after a change of `keep`; after a failure in ten minutes. `leaving` ends a turn early: the next takes it up."""

    ledger: Ledger
    tidy: Tidy
    owner: str
    leaving: threading.Event = field(default_factory=threading.Event)
    by: str | None = None  # the person whose turn it is

    def __post_init__(self) -> None:
        self._looked_at = time.monotonic()  # a process that has just started has better things to do

    def look(self) -> float | None:
        """Take a turn if one is due; how long to wait until the next look. Whatever happens in it is recorded, and stops nothing else."""
        pause = self._looked_at + LOOK_EVERY_S - time.monotonic()
        if pause > 0:
            return pause
        self._looked_at = time.monotonic()
        with self.ledger.read() as tx:
            keep = configuration.in_force(tx).catalog.keep.model_dump(mode="json")
            due = retention.is_due(tx, keep, EVERY, AGAIN_AFTER)
        if due:
            try:
                self.take_turn()
            except HeadraceError as error:
                log.warning("tidying_postponed", error=error.message)
            except Exception:  # the edge: nothing that the janitor meets may stop registrations and deliveries
                log.exception("tidying_failed")
        return LOOK_EVERY_S

    def take_turn(self, tell: Tell = lambda what, done: None) -> Report:
        """Tidy now; raises `Busy` while another does, and `Fenced` when this turn has passed to another."""
        id, keep, now = self._begin()
        if id is None:
            raise Busy("another janitor tidies at this moment; `headrace status` shows what it took when it has ended")
        turn = Turn(keep, now, check=self._fence(id), tell=tell)
        try:
            self.tidy.run(turn)
        except BaseException as error:  # a Ctrl-C too: what is left is done soon, and not in six hours
            turn.report.errors.append(str(error) or type(error).__name__)
            raise
        finally:
            self._end(id, turn.report)
        return turn.report

    @repeats
    def _begin(self) -> tuple[int | None, Keep, datetime]:
        with self.ledger.write() as tx:
            keep = configuration.in_force(tx).catalog.keep
            return retention.begin(tx, self.owner, keep.model_dump(mode="json"), LEASE, self.by), keep, tx.now

    def look_only(self, tell: Tell = lambda what, done: None) -> Report:
        """What a turn would take now, without taking it; needs no turn."""
        with self.ledger.read() as tx:
            turn = Turn(configuration.in_force(tx).catalog.keep, tx.now, dry=True, tell=tell)
        return self.tidy.run(turn)

    @repeats
    def _end(self, id: int, report: Report) -> None:
        with self.ledger.write() as tx:
            retention.end(tx, id, report.to_json(), "\n".join(report.errors)[:4000] or None)
        log.info("tidied", turn=id, taken=report.to_json(), errors=report.errors)

    def _fence(self, id: int) -> Callable[[], None]:
        """Raises when the turn has passed to another, or this process leaves; keeps the lease meanwhile."""
        renewed = time.monotonic()

        def check() -> None:
            nonlocal renewed
            if self.leaving.is_set():
                raise Transient("the process that tidied was asked to leave")
            if time.monotonic() - renewed >= RENEW_S:
                with self.ledger.write() as tx:
                    retention.renew(tx, id, LEASE)
                renewed = time.monotonic()

        return check
