"""What came in: an arrival is stored with its cursor and the runs that it makes due, in one transaction (I1)."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import func, select, update

from shared.arrivals import Report
from shared.cuts import Cut
from shared.errors import NotFound, Permanent
from shared.ledger import configuration, datasets, deliveries, numbering, planning, runs
from shared.ledger.deliveries import Told
from shared.ledger.insertion import insert_all
from shared.ledger.planning import News
from shared.ledger.reports import Known, Name, Sent, Taken
from shared.ledger.session import Transaction
from shared.ledger.tables import arrival, report
from shared.ledger.transitions import name_of, transition
from shared.notices import NoticeType


@dataclass(frozen=True)
class Receipt:
    """What became of a report. `arrival` is None for a nudge until the watcher has looked."""

    arrival: int | None
    repeated: bool
    nudged: bool
    runs: tuple[int, ...] = ()


@transition
def receive(tx: Transaction, told: Report, origin: str = "rest", key: Name | None = None) -> Receipt:
    """Take a report from outside, by `rest` or `stream`: the same one (source, id), or one with the same key of the same caller, is taken
    once (I2); where a source can be looked at, it is a nudge.

    Raises `NotFound` for a dataset that the configuration does not name, `Conflict` for an id that another dataset used, `Refused` for a key
    that another report used.

    arrival: none → stored
    run: none → waiting; waiting → same
    By: the API; the watcher, from the stream
    Fence: source and id of the report; the caller's name and its key
    Again: the first answer, and nothing changes
    """
    (answer,) = receive_all(tx, [Sent(told, origin, key)])
    if isinstance(answer, Permanent):
        raise answer
    return answer


def receive_all(tx: Transaction, told: Sequence[Sent]) -> list[Receipt | Permanent]:
    """`receive` each, in their order: a few hundred at most. One that may not be taken gets its error, and costs the others nothing.

    The models that use a dataset are planned once, for all of its reports.
    """
    with tx.doing(name_of(receive)):
        tx.lock("configuration", shared=True)
        catalog = configuration.in_force(tx).catalog.datasets
        pollable = {name for name, one in catalog.items() if not one.reported}
        _lock(tx, told, catalog)
        known = Known(tx, told)
        admitted = [_admit(known, one, catalog) for one in told]
        for name in {taken.dataset for taken in known.new} & pollable:
            datasets.nudge(tx, name)
        _take(tx, [taken for taken in known.new if taken.dataset not in pollable])
        known.file(tx)
        return [_receipt(one, pollable) for one in admitted]


def _lock(tx: Transaction, told: Sequence[Sent], catalog: Collection[str]) -> None:
    """All at once, and so in the same order everywhere: the datasets, and the names, which reports of other datasets may use too."""
    datasets = {f"dataset {one.report.dataset}" for one in told if one.report.dataset in catalog}
    tx.lock(*datasets, *(f"report {source} {id}" for one in told for source, id in one.names))


def _admit(known: Known, one: Sent, catalog: Collection[str]) -> tuple[Taken, bool] | Permanent:
    try:
        return known.admit(one, catalog)
    except Permanent as error:
        return error


def _receipt(admitted: tuple[Taken, bool] | Permanent, pollable: Collection[str]) -> Receipt | Permanent:
    if isinstance(admitted, Permanent):
        return admitted
    taken, repeated = admitted
    return Receipt(taken.arrival, repeated, taken.dataset in pollable, () if repeated else taken.runs)


def _take(tx: Transaction, new: Sequence[Taken]) -> None:
    """Store what is told of datasets that have no source of their own; each learns its arrival and its runs."""
    sent = [one.sent for one in new if one.sent is not None]
    cuts = datasets.ensure_all(tx, list(dict.fromkeys(one.report.dataset for one in sent)))
    for one in sent:
        cuts[one.report.dataset] = _grown(cuts[one.report.dataset], one.report)
    for taken, (id, planned) in zip(new, _store(tx, [_growth(one) for one in sent], cuts), strict=True):
        taken.arrival, taken.runs = id, planned


def _growth(one: Sent) -> dict[str, Any]:
    told = one.report
    return {
        "dataset": told.dataset,
        "above": told.from_point,
        "upto": told.to_point,
        "rows": told.rows,
        "origin": one.origin,
        "source": told.source,
        "event_id": told.event_id,
        "traceparent": told.traceparent,
    }


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
    datasets.fence(tx, dataset, before, owner)
    named = _open_nudges(dataset).where(report.c.fingerprint.is_(None))  # a key is no name of the sender's
    nudge = tx.execute(named.order_by(report.c.id).limit(1)).first()
    seen = {
        "dataset": dataset,
        "above": before.upto if before else None,
        "upto": after.upto,
        "rows": rows,
        "origin": "sql",
        "source": nudge.source if nudge else None,
        "event_id": nudge.event_id if nudge else None,
        "traceparent": None,
    }
    ((id, _),) = _store(tx, [seen], {dataset: after})
    tx.execute(update(report).where(report.c.dataset == dataset, report.c.arrival_id.is_(None)).values(arrival_id=id))
    return id


def _open_nudges(dataset: str) -> Any:
    return select(report).where(report.c.dataset == dataset, report.c.arrival_id.is_(None))


def _store(
    tx: Transaction, growths: Sequence[dict[str, Any]], cuts: Mapping[str, Cut | None]
) -> list[tuple[int, tuple[int, ...]]]:
    """An arrival and a notice for each, in their order, the cuts as they are after the last, and the runs; all held by the caller."""
    if not growths:
        return []
    ids = numbering.next_ids(tx, arrival, len(growths))
    rows = [{"id": id, **one} for id, one in zip(ids, growths, strict=True)]
    insert_all(tx, arrival, rows, observed_at=tx.now)
    of: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        of.setdefault(row["dataset"], []).append(row)
    for dataset, own in of.items():
        datasets.move(tx, dataset, replace(cuts[dataset] or Cut(None), arrival=own[-1]["id"]))
    planned = planning.plan_for_datasets(tx, {dataset: _news(dataset, own) for dataset, own in of.items()})
    deliveries.tell_all(tx, NoticeType.ARRIVAL_OBSERVED, None, [_told(row) for row in rows])
    return [(row["id"], planned[row["dataset"]]) for row in rows]


def _news(dataset: str, rows: Sequence[dict[str, Any]]) -> News:
    sizes = [row["rows"] for row in rows]
    what = "new data of unknown size" if None in sizes else f"{sum(sizes):,} new rows"
    return News(f"{what} in {dataset}", next((row["traceparent"] for row in rows if row["traceparent"]), None))


def _told(row: Mapping[str, Any]) -> Told:
    data = {
        "arrival": row["id"],
        "dataset": row["dataset"],
        "from": row["above"],
        "to": row["upto"],
        "rows": row["rows"],
        "origin": row["origin"],
    }
    return Told(row["dataset"], data, row["traceparent"])


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


def answered_by(tx: Transaction, row: Any) -> list[int]:
    """Ids of the arrivals that a run sees and that no trained run before it has seen; one on a sample answers none."""
    return covered_by(tx, row.cut, runs.trained_cut_before(tx, row.model, row.id)) if row.sample is None else []


def covered_by(tx: Transaction, cut: dict[str, Any], after: dict[str, Any]) -> list[int]:
    """Ids of the arrivals that `cut` covers and the earlier cut `after` does not."""
    ids: list[int] = []
    for name, part in cut.items():
        upper, lower = part.get("arrival") or 0, (after.get(name) or {}).get("arrival") or 0
        query = select(arrival.c.id).where(arrival.c.dataset == name, arrival.c.id > lower, arrival.c.id <= upper)
        ids.extend(tx.execute(query.order_by(arrival.c.id).limit(1000)).scalars())
    return sorted(ids)
