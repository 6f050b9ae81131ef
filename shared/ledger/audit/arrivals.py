"""I1 and I2: what came in is there once, and no cursor has passed over anything."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import func, select

from shared.audit import Sheet
from shared.ledger.audit.walk import walk
from shared.ledger.session import Ledger, Transaction
from shared.ledger.tables import arrival, dataset, report
from shared.retention import REPORTS_AT_LEAST

_WHO = "find out who wrote to the ledger beside Headrace, or restore it from a copy"


@dataclass
class _Road:
    """How far the arrivals of a dataset go, one after the other: the cursor that they make."""

    upto: Any = None
    last: int | None = None

    def go(self, row: Any) -> None:
        """What a source was seen to hold is where the cursor goes; a report that comes late does not take it back."""
        self.last = row.id
        if row.origin == "sql":
            self.upto = row.upto
        elif row.upto is not None:
            both = isinstance(row.upto, int) and isinstance(self.upto, int)
            self.upto = max(row.upto, self.upto) if both else row.upto


def cursors(ledger: Ledger, sheet: Sheet) -> None:
    """Each arrival of a source begins where the one before ended, and the cursor stands where the newest ends."""
    with ledger.read() as tx:
        cuts = {row.name: row.cut or {} for row in tx.execute(select(dataset.c.name, dataset.c.cut))}
    roads: dict[str, _Road] = {name: _Road() for name in cuts}

    def look(_: Transaction, rows: Sequence[Any]) -> None:
        for row in rows:
            if row.id <= (cuts.get(row.dataset, {}).get("arrival") or 0):  # else it came after the cursors were read
                _follow(sheet, roads[row.dataset], row)
        sheet.looked("I1", "arrivals", len(rows))

    columns = arrival.c.id, arrival.c.dataset, arrival.c.above, arrival.c.upto, arrival.c.origin
    walk(ledger, select(*columns), arrival.c.id, look)
    for name, cut in cuts.items():
        _arrived(sheet, name, cut, roads[name])
    sheet.looked("I1", "datasets", len(cuts))


def _follow(sheet: Sheet, road: _Road, row: Any) -> None:
    if row.origin == "sql" and row.above != road.upto:
        sheet.violated(
            "I1",
            "gap",
            f"arrival {row.id} of {row.dataset} begins above {row.above}, but the one before ended at {road.upto}",
            f"what lies between was told twice or never; {_WHO}, and `headrace retrain` its models",
            dataset=row.dataset,
            arrival=row.id,
        )
    road.go(row)


def _arrived(sheet: Sheet, name: str, cut: dict[str, Any], road: _Road) -> None:
    if cut.get("arrival") != road.last or cut.get("upto") != road.upto:
        sheet.violated(
            "I1",
            "cursor",
            f"the cursor of {name} stands at {cut.get('upto')} (arrival {cut.get('arrival')}), but its arrivals end at {road.upto} (arrival {road.last})",
            f"what lies between has no arrival and no fate; {_WHO}, and `headrace retrain` its models, which takes all that is there",
            dataset=name,
        )


def reports(ledger: Ledger, sheet: Sheet) -> None:
    """The same report is known once, and belongs to an arrival of the dataset that it spoke of."""

    def look(_: Transaction, rows: Sequence[Any]) -> None:
        for row in rows:
            if row.arrival_id is not None and row.arrived_at != row.dataset:
                sheet.violated(
                    "I1",
                    "report",
                    f"report {row.id} about {row.dataset} names arrival {row.arrival_id}, which is {'missing' if row.arrived_at is None else f'of {row.arrived_at}'}",
                    f"a report that was acknowledged has no arrival of its own: send it again under a new id; {_WHO}",
                    report=row.id,
                )
        sheet.looked("I2", "reports", len(rows))

    query = select(report.c.id, report.c.dataset, report.c.arrival_id, arrival.c.dataset.label("arrived_at"))
    walk(ledger, query.outerjoin(arrival, arrival.c.id == report.c.arrival_id), report.c.id, look)
    with ledger.read() as tx:
        _twice(tx, sheet)


def _twice(tx: Transaction, sheet: Sheet) -> None:
    same = report.c.source, report.c.event_id
    for row in tx.execute(select(*same, func.min(report.c.id)).group_by(*same).having(func.count() > 1)):
        sheet.violated(
            "I2",
            "report_twice",
            f"the report {row.event_id!r} of {row.source!r} is there more than once",
            f"the unique index of the table `report` is gone: {_WHO}",
            source=row.source,
            event=row.event_id,
        )
    same = arrival.c.source, arrival.c.event_id
    when = func.max(arrival.c.observed_at), func.min(arrival.c.observed_at)
    query = select(*same, func.max(arrival.c.id).label("last"), func.count().label("number"), *when)
    for row in tx.execute(query.where(arrival.c.event_id.is_not(None)).group_by(*same).having(func.count() > 1)):
        if row[4] - row[5] < REPORTS_AT_LEAST:  # a report is known again for so long, and may then come as a new one
            sheet.violated(
                "I2",
                "arrival_twice",
                f"the report {row.event_id!r} of {row.source!r} made {row.number} arrivals, the last of them {row.last}",
                "the models that use it count its rows twice: say so to whoever reads their numbers, and report this as a defect",
                arrival=row.last,
            )
