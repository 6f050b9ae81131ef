"""The names that a report is known again by: its own source and id, and the Idempotency-Key of its caller (I2)."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import bindparam, select

from shared.arrivals import Report, fingerprint
from shared.errors import Conflict, NotFound, Refused
from shared.ledger.insertion import insert_all
from shared.ledger.session import Transaction
from shared.ledger.tables import report

Name = tuple[str, str]


@dataclass(frozen=True)
class Sent:
    """A report as it came: by which way (`rest` or `stream`), and under whose Idempotency-Key: the caller's name and the key."""

    report: Report
    origin: str = "rest"
    key: Name | None = None

    @property
    def own_name(self) -> Name | None:
        """Source and id, as the sender gives them."""
        return (self.report.source, self.report.event_id) if self.report.event_id is not None else None

    @property
    def key_name(self) -> Name | None:
        """Under a source that no sender can give itself: theirs have no control characters."""
        return (f"\tidempotency-key {self.key[0]}", self.key[1]) if self.key is not None else None

    @property
    def names(self) -> tuple[Name, ...]:
        return tuple(name for name in (self.key_name, self.own_name) if name is not None)


@dataclass
class Taken:
    """A report that counts, under whichever of its names. `arrival` is empty for a nudge until the watcher has looked."""

    dataset: str
    arrival: int | None = None
    sent: Sent | None = None  # where it is new
    runs: tuple[int, ...] = ()


class Known:
    """The reports that some new ones may repeat: those that the ledger has, and those that come earlier with them."""

    def __init__(self, tx: Transaction, told: Sequence[Sent]) -> None:
        self._known: dict[Name, tuple[Taken, str | None]] = {}
        self._unfiled: list[Name] = []
        self.new: list[Taken] = []
        names = {name for one in told for name in one.names}
        if names:
            sources, ids = (sorted(set(part)) for part in zip(*names, strict=True))
            for row in tx.execute(_KNOWN, {"sources": sources, "ids": ids}):
                taken = Taken(row.dataset, row.arrival_id)
                self._known[row.source, row.event_id] = (taken, row.fingerprint)

    def admit(self, one: Sent, datasets: Collection[str]) -> tuple[Taken, bool]:
        """What counts for it, and whether that is an earlier report. Raises as `arrivals.receive` does."""
        first = self._find(one, datasets)
        taken = first or Taken(one.report.dataset, sent=one)
        if first is None:
            self.new.append(taken)
        for name in one.names:
            if name not in self._known:
                self._known[name] = (taken, fingerprint(one.report) if name == one.key_name else None)
                self._unfiled.append(name)
        return taken, first is not None

    def _find(self, one: Sent, datasets: Collection[str]) -> Taken | None:
        told = one.report
        if one.key is not None and one.key_name in self._known:
            first, said = self._known[one.key_name]
            if said != fingerprint(told):
                raise Refused(
                    f"Idempotency-Key: {one.key[1]!r} was used for another report about {first.dataset}, which counts; "
                    "take a key of its own for each report, and the same one only to repeat it"
                )
            return first
        if told.dataset not in datasets:
            known = ", ".join(sorted(datasets)) or "none"
            raise NotFound(f"there is no dataset {told.dataset!r}; known are: {known}")
        if one.own_name not in self._known:
            return None
        first, _ = self._known[one.own_name]
        if first.dataset != told.dataset:
            raise Conflict(
                f"the id {told.event_id!r} of {told.source} was used for dataset {first.dataset}; give each report an id of its own"
            )
        return first

    def file(self, tx: Transaction) -> None:
        """Write down the names that are new, as soon as it is known which arrivals they stand for."""
        insert_all(tx, report, [self._row(name) for name in self._unfiled], received_at=tx.now)

    def _row(self, name: Name) -> dict[str, Any]:
        taken, said = self._known[name]
        named = {"source": name[0], "event_id": name[1], "fingerprint": said}
        return named | {"dataset": taken.dataset, "arrival_id": taken.arrival}


# All pairs of these sources and ids: more than was asked for, and found by the index, which SQLite passes by for rows `IN (VALUES …)`.
_KNOWN = select(report.c.source, report.c.event_id, report.c.dataset, report.c.arrival_id, report.c.fingerprint).where(
    report.c.source.in_(bindparam("sources", expanding=True)), report.c.event_id.in_(bindparam("ids", expanding=True))
)
