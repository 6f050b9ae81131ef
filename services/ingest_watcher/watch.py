"""The watch over one dataset: held by one watcher at a time, it turns growth into arrivals."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Protocol

import structlog

from services.ingest_watcher.loop import Wake
from shared.cuts import Cut
from shared.errors import Fenced, HeadraceError
from shared.ledger import Ledger, arrivals, datasets
from shared.points import point

TICK_S = 0.02
TAKE_OVER_S = 1.0
_LOOK = point("source look", __name__)

log = structlog.get_logger()


@dataclass(frozen=True)
class Look:
    """Something new: how far the dataset goes now, and how many rows have come."""

    after: Cut
    rows: int


class Source(Protocol):
    """A body of data that can be looked at.

    `look` raises a `HeadraceError` that says what to do; the same `before` may be asked about again. Where `tells` is true, `stirred` is cheap
    and says whether anything was committed since its last call. `settles_in_s` says when to look again although nothing stirs.
    """

    @property
    def tells(self) -> bool: ...

    def look(self, before: Cut | None) -> Look | None: ...

    def stirred(self) -> bool: ...

    def settles_in_s(self) -> float | None: ...

    def close(self) -> None: ...


class DatasetWatch:
    """Looks when the source stirs, at a nudge and at each poll, while it holds the dataset's lease.

    The lease only spares work; what keeps an arrival single is that the ledger's cursor is moved from where this look began, or not at all.
    """

    def __init__(
        self,
        ledger: Ledger,
        dataset: str,
        open_source: Callable[[], Source],
        wake: Wake,
        *,
        owner: str,
        lease: timedelta,
        poll: timedelta,
    ) -> None:
        self._ledger, self._dataset, self._open, self._wake = ledger, dataset, open_source, wake
        self._owner, self._lease, self._poll_s = owner, lease, poll.total_seconds()
        self._renew_s = lease.total_seconds() / 3
        self._source: Source | None = None
        self._held, self._renew_at = False, 0.0
        self._cut: Cut | None = None
        self._nudged: datetime | None = None
        self._noted: tuple[str | None, datetime | None] | None = None  # error and nudge of the last look written down

    def nudge(self, at: datetime | None) -> None:
        """Somebody says that there is something new; may be called from any thread, and again with the same nudge."""
        if at != self._nudged:
            self._nudged = at
            self._wake.call()

    def step(self) -> None:
        if not self._hold():
            self._wake.wait(min(self._renew_s, TAKE_OVER_S))
            return
        nudge = self._nudged  # before the look: one that comes meanwhile has data that this look may not see
        try:
            with _LOOK:
                look = self._opened().look(self._cut)
        except HeadraceError as error:
            self._note(error.message, nudge)
        else:
            if look is not None:
                self._observe(look, nudge)
            else:
                self._note(None, nudge)
        self._rest(nudge)

    def close(self) -> None:
        """Give the watch back, so that the next watcher need not wait for the lease to run out."""
        if self._source is not None:
            self._source.close()
        if self._held:
            with self._ledger.write() as tx:
                datasets.take(tx, self._dataset, self._owner, timedelta(0))

    def _opened(self) -> Source:
        if self._source is None:
            self._source = self._open()
        return self._source

    def _hold(self) -> bool:
        if self._held and time.monotonic() < self._renew_at:
            return True
        with self._ledger.write() as tx:
            taken = datasets.take(tx, self._dataset, self._owner, self._lease)
            if taken:
                self._cut = datasets.known(tx, [self._dataset]).get(self._dataset)
            if taken and self._noted is not None:
                datasets.looked(tx, self._dataset, self._noted[0])
        if taken and not self._held:
            log.info("watch.taken", dataset=self._dataset)
        self._held, self._renew_at = taken, time.monotonic() + self._renew_s
        return taken

    def _observe(self, look: Look, nudge: datetime | None) -> None:
        try:
            with self._ledger.write() as tx:
                arrival = arrivals.observe(tx, self._dataset, self._cut, look.after, look.rows, self._owner)
                datasets.looked(tx, self._dataset, None)
        except Fenced as fenced:
            self._held = False
            log.info("watch.passed_on", dataset=self._dataset, why=fenced.message)
            return
        self._cut, self._noted = replace(look.after, arrival=arrival), (None, nudge)
        log.info("arrival.observed", dataset=self._dataset, arrival=arrival, rows=look.rows, upto=look.after.upto)

    def _note(self, error: str | None, nudge: datetime | None) -> None:
        """Write down what the look gave, if that is news: an idle poll writes nothing."""
        if self._noted == (error, nudge):
            return
        if error is not None and (self._noted is None or self._noted[0] != error):
            log.warning("dataset.unreadable", dataset=self._dataset, why=error)
        with self._ledger.write() as tx:
            datasets.looked(tx, self._dataset, error)
        self._noted = error, nudge

    def _rest(self, nudge: datetime | None) -> None:
        """Wait for the next reason to look."""
        source, now = self._source, time.monotonic()
        until = min(now + self._poll_s, self._renew_at)
        if source is not None and (settles_s := source.settles_in_s()) is not None:
            until = min(until, now + settles_s)
        while self._held and self._nudged == nudge and not self._wake.stopped.is_set():
            left = until - time.monotonic()
            if left <= 0 or (source is not None and source.stirred()):
                return
            self._wake.wait(min(left, TICK_S) if source is not None and source.tells else left)
