"""Reports that come in over REST, and what became of each arrival."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Self

from fastapi import APIRouter, Path, Query
from pydantic import ConfigDict, Field

from services.ingest_watcher.reports import OPENAPI, Key, Reported
from shared.cuts import Point
from shared.http import Here, Paged, Reader, Stores, Submitter
from shared.ledger import Transaction, arrivals, deliveries, fates, rejections
from shared.ledger.fates import Fate, FateKind
from shared.ledger.reports import Sent
from shared.lifecycle import DeliveryState
from shared.problems import EVERYWHERE, WITH_BODY, problems
from shared.values import Strict

router = APIRouter(prefix="/v1", tags=["arrivals"], responses=EVERYWHERE)


class Accepted(Strict):
    """A report that is stored."""

    arrival: int | None = Field(description="null for a nudge until the watcher has looked")
    dataset: str
    repeated: bool = Field(
        description="this source has sent this id, or this caller this key, before; nothing was stored anew"
    )
    nudged: bool = Field(description="the dataset has a source of its own, and the watcher looks there now")
    runs: tuple[int, ...] = Field(description="the runs that it joined or made due")


class ArrivalDelivery(Strict):
    """What a subscription was told about the outcome."""

    id: str
    subscription: str
    state: DeliveryState
    attempts: int


class ArrivalFate(Strict):
    """What became of an arrival for one model."""

    model: str
    fate: FateKind
    run: int | None
    version: int | None
    verdict: str | None
    sentence: str
    deliveries: tuple[ArrivalDelivery, ...]


class ArrivalSummary(Strict):
    """One growth of a dataset: what lies above `from`, up to `to`."""

    model_config = ConfigDict(populate_by_name=True)

    id: int
    dataset: str
    from_point: Point = Field(alias="from")
    to_point: Point = Field(alias="to")
    rows: int | None = Field(description="null where it is not known")
    origin: str = Field(description="`sql` where a watcher saw it, `rest` or `stream` by where it was reported")
    source: str | None
    event_id: str | None
    observed_at: datetime

    @classmethod
    def read(cls, row: Any, **more: object) -> Self:
        same = {
            name: getattr(row, name)
            for name in ("id", "dataset", "rows", "origin", "source", "event_id", "observed_at")
        }
        return cls.model_validate({**same, "from": row.above, "to": row.upto, **more})


class Arrival(ArrivalSummary):
    """An arrival with exactly one fate for each model that uses its dataset."""

    fates: tuple[ArrivalFate, ...]


class RejectedEntry(Strict):
    """An entry of the stream that is no report, and why; it lies in `headrace:rejected`, and can be sent again from there."""

    entry: str = Field(description="its id in `headrace:arrivals`")
    source: str | None = Field(description="what the event says of its sender, where that could be read")
    reason: str
    excerpt: str = Field(description="the beginning of the event")
    at: datetime


class RejectionPage(Strict):
    items: tuple[RejectedEntry, ...]
    next: str | None


class ArrivalPage(Strict):
    items: tuple[ArrivalSummary, ...]
    next: str | None


@router.post(
    "/events",
    status_code=202,
    responses=WITH_BODY | problems(404, 409),
    openapi_extra=OPENAPI,
)
def receive(caller: Submitter, stores: Here, key: Key, report: Reported) -> Accepted:
    """Report that a dataset has grown. 202 says that the report is stored; the same source and id, or Idempotency-Key, again is the same."""
    receipt = stores.intake.take(Sent(report, key=(caller.name, key) if key is not None else None))
    runs = _runs(stores, receipt.arrival) if receipt.repeated and receipt.arrival else receipt.runs
    return Accepted(
        arrival=receipt.arrival, dataset=report.dataset, repeated=receipt.repeated, nudged=receipt.nudged, runs=runs
    )


def _runs(stores: Stores, arrival: int) -> tuple[int, ...]:
    """The runs that an earlier report is in by now."""
    with stores.ledger.read() as tx:
        return tuple(sorted({fate.run for fate in fates.of_arrival(tx, arrival) if fate.run is not None}))


@router.get("/arrivals")
def list_arrivals(
    _: Reader, stores: Here, page: Paged, dataset: Annotated[str | None, Query(max_length=64)] = None
) -> ArrivalPage:
    """Arrivals, newest first."""
    with stores.ledger.read() as tx:
        rows = arrivals.find_all(tx, dataset=dataset, before=page.before, limit=page.limit + 1)
    shown, after = page.cut(rows, lambda row: row.id)
    return ArrivalPage(items=tuple(ArrivalSummary.read(row) for row in shown), next=after)


@router.get("/arrivals/{id}", responses=problems(404))
def show_arrival(_: Reader, stores: Here, id: Annotated[int, Path(ge=1, lt=2**63)]) -> Arrival:
    """One arrival and its fate per model."""
    with stores.ledger.read() as tx:
        row = arrivals.find(tx, id)
        found = tuple(_fate(tx, fate) for fate in fates.of_arrival(tx, id))
    return Arrival.read(row, fates=found)


@router.get("/rejections")
def list_rejections(_: Reader, stores: Here, page: Paged) -> RejectionPage:
    """What came over the stream and could not be read, newest first; the newest thousand are kept."""
    with stores.ledger.read() as tx:
        rows = rejections.find_all(tx, before=page.before, limit=page.limit + 1)
    shown, after = page.cut(rows, lambda row: row.id)
    items = (RejectedEntry(entry=r.entry, source=r.source, reason=r.reason, excerpt=r.excerpt, at=r.at) for r in shown)
    return RejectionPage(items=tuple(items), next=after)


def _fate(tx: Transaction, fate: Fate) -> ArrivalFate:
    return ArrivalFate(
        model=fate.model,
        fate=fate.kind,
        run=fate.run,
        version=fate.version,
        verdict=fate.decision,
        sentence=fate.sentence,
        deliveries=_deliveries(tx, fate.run) if fate.run is not None else (),
    )


def _deliveries(tx: Transaction, run: int) -> tuple[ArrivalDelivery, ...]:
    """Of every notice about the run or its version."""
    return tuple(
        ArrivalDelivery(id=row.id, subscription=row.subscription, state=DeliveryState(row.state), attempts=row.attempts)
        for row in deliveries.of_run(tx, run)
    )
