"""What came in: an arrival is stored with its cursor and the runs that it makes due, in one transaction (I1)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import func, insert, select, update

from shared.arrivals import Report
from shared.cuts import Cut
from shared.errors import Conflict, NotFound
from shared.ledger import configuration, datasets, deliveries, numbering, planning
from shared.ledger.session import Transaction
from shared.ledger.tables import arrival, report
from shared.ledger.transitions import transition
from shared.notices import NoticeType


@dataclass(frozen=True)
class Receipt:
    """What became of a report. `arrival` is None for a nudge until the watcher has looked."""

    arrival: int | None
    repeated: bool
    nudged: bool
    runs: tuple[int, ...] = ()


@transition
def receive(tx: Transaction, told: Report, origin: str = "rest") -> Receipt:
    """Take a report from outside, by `rest` or `stream`: the same one (source, id) is taken once (I2); where a source can be looked at,
    it is a nudge.

    Raises `NotFound` for a dataset that the configuration does not name, `Conflict` for an id that another dataset used.

    arrival: none → stored
    run: none → waiting; waiting → same
    By: the API; the watcher, from the stream
    Fence: source and id of the report
    Again: the first answer, and nothing changes
    """
    tx.lock("configuration", shared=True)
    config = configuration.in_force(tx).catalog
    if told.dataset not in config.datasets:
        raise NotFound(
            f"there is no dataset {told.dataset!r}; known are: {', '.join(sorted(config.datasets)) or 'none'}"
        )
    same = [f"report {told.source} {told.event_id}"] if told.event_id is not None else []  # also of another dataset
    tx.lock(f"dataset {told.dataset}", *same)
    pollable = not config.datasets[told.dataset].reported
    if told.event_id is not None:
        first = tx.execute(
            select(report).where(report.c.source == told.source, report.c.event_id == told.event_id)
        ).first()
        if first is not None and first.dataset != told.dataset:
            raise Conflict(
                f"the id {told.event_id!r} of {told.source} was used for dataset {first.dataset}; give each report an id of its own"
            )
        if first is not None:
            return Receipt(first.arrival_id, repeated=True, nudged=pollable)
    if pollable:
        datasets.nudge(tx, told.dataset)
        _file(tx, told, None)
        return Receipt(None, repeated=False, nudged=True)
    datasets.ensure(tx, told.dataset)
    before = datasets.known(tx, [told.dataset]).get(told.dataset)
    id, planned = _store(tx, told.dataset, before, _grown(before, told), told.rows, origin, told=told)
    _file(tx, told, id)
    return Receipt(id, repeated=False, nudged=False, runs=planned)


def _grown(before: Cut | None, told: Report) -> Cut:
    """The cut after a report: one that comes late does not take it back, and after one of unknown size the total is not known."""
    known = before or Cut(upto=None, rows=0)
    upto = told.to_point if told.to_point is not None else known.upto
    if isinstance(upto, int) and isinstance(known.upto, int):
        upto = max(upto, known.upto)
    return Cut(upto=upto, rows=known.rows + told.rows if known.rows is not None and told.rows is not None else None)


@transition
def observe(tx: Transaction, dataset: str, before: Cut | None, after: Cut, rows: int | None, owner: str) -> int:
    """Store what a watcher saw in a source and move its cursor; raises `Fenced` when another watcher did it first.

    The nudges that are open are answered with this arrival.

    arrival: none → stored
    run: none → waiting; waiting → same
    By: the watcher that holds the dataset
    Fence: the cut that the look began at, and the lease
    Again: refused, as `Fenced`
    """
    tx.lock("configuration", shared=True)
    tx.lock(f"dataset {dataset}")
    named = _open_nudges(dataset).where(report.c.fingerprint.is_(None))  # a key is no name of the sender's
    nudge = tx.execute(named.order_by(report.c.id).limit(1)).first()
    id, _ = _store(tx, dataset, before, after, rows, "sql", owner=owner, nudge=nudge)
    tx.execute(update(report).where(report.c.dataset == dataset, report.c.arrival_id.is_(None)).values(arrival_id=id))
    return id


def _open_nudges(dataset: str) -> Any:
    return select(report).where(report.c.dataset == dataset, report.c.arrival_id.is_(None))


def _store(
    tx: Transaction,
    dataset: str,
    before: Cut | None,
    after: Cut,
    rows: int | None,
    origin: str,
    *,
    told: Report | None = None,
    owner: str | None = None,
    nudge: Any = None,
) -> tuple[int, tuple[int, ...]]:
    values: dict[str, Any] = {
        "dataset": dataset,
        "above": told.from_point if told else before.upto if before else None,
        "upto": told.to_point if told else after.upto,
        "rows": rows,
        "origin": origin,
        "source": told.source if told else nudge.source if nudge else None,
        "event_id": told.event_id if told else nudge.event_id if nudge else None,
        "traceparent": told.traceparent if told else None,
        "observed_at": tx.now,
    }
    values |= numbering.lifted(tx, arrival)
    id = int(tx.execute(insert(arrival).values(**values)).inserted_primary_key[0])
    datasets.move(tx, dataset, before, replace(after, arrival=id), owner)
    data = {
        "arrival": id,
        "dataset": dataset,
        "from": values["above"],
        "to": values["upto"],
        "rows": rows,
        "origin": origin,
    }
    what = "new data of unknown size" if rows is None else f"{rows:,} new rows"
    planned = planning.plan_for_dataset(tx, dataset, f"{what} in {dataset}", values["traceparent"])
    deliveries.tell(tx, NoticeType.ARRIVAL_OBSERVED, dataset, None, data, values["traceparent"])
    return id, tuple(planned)


def _file(tx: Transaction, told: Report, arrival_id: int | None) -> None:
    if told.event_id is not None:
        tx.execute(
            insert(report).values(
                source=told.source,
                event_id=told.event_id,
                dataset=told.dataset,
                arrival_id=arrival_id,
                received_at=tx.now,
            )
        )


def find(tx: Transaction, id: int) -> Any:
    """One arrival; raises `NotFound`."""
    row = tx.execute(select(arrival).where(arrival.c.id == id)).first()
    if row is None:
        raise NotFound(f"there is no arrival {id}")
    return row


def find_all(tx: Transaction, *, dataset: str | None, before: int | None, limit: int) -> list[Any]:
    """Newest first, with an id below `before`."""
    query = select(arrival).order_by(arrival.c.id.desc()).limit(limit)
    if dataset is not None:
        query = query.where(arrival.c.dataset == dataset)
    if before is not None:
        query = query.where(arrival.c.id < before)
    return list(tx.execute(query))


def newest(tx: Transaction, dataset: str) -> int:
    return int(
        tx.execute(select(func.coalesce(func.max(arrival.c.id), 0)).where(arrival.c.dataset == dataset)).scalar_one()
    )


def covered_by(tx: Transaction, cut: dict[str, Any], after: dict[str, Any]) -> list[int]:
    """Ids of the arrivals that `cut` covers and the earlier cut `after` does not."""
    ids: list[int] = []
    for name, part in cut.items():
        upper, lower = part.get("arrival") or 0, (after.get(name) or {}).get("arrival") or 0
        query = select(arrival.c.id).where(arrival.c.dataset == name, arrival.c.id > lower, arrival.c.id <= upper)
        ids.extend(tx.execute(query.order_by(arrival.c.id).limit(1000)).scalars())
    return sorted(ids)
