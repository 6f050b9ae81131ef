"""Reports that come in over REST, and what became of each arrival."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Self

from fastapi import APIRouter, Depends, Path, Query, Request
from pydantic import ConfigDict, Field

from shared.arrivals import CloudEvent, Report, Shorthand, known_traceparent, parse_cloudevent, parse_shorthand
from shared.cuts import Point
from shared.http import Here, Paged, Reader, Submitter, read_json, takes
from shared.ledger import Transaction, arrivals, deliveries, fates, repeats
from shared.ledger.fates import Fate, FateKind
from shared.lifecycle import DeliveryState
from shared.notices import CONTENT_TYPE
from shared.problems import EVERYWHERE, JSON, WITH_BODY, Rejection, problems
from shared.values import Strict

router = APIRouter(prefix="/v1", tags=["arrivals"], responses=EVERYWHERE)


class Accepted(Strict):
    """A report that is stored."""

    arrival: int | None = Field(description="null for a nudge until the watcher has looked")
    dataset: str
    repeated: bool = Field(description="this source has sent this id before; nothing was stored anew")
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


class ArrivalPage(Strict):
    items: tuple[ArrivalSummary, ...]
    next: str | None


async def read_report(request: Request) -> Report:
    """A CloudEvent or the shorthand, by its media type; a trace context may come as a header too."""
    kind, value = await read_json(request, (JSON, CONTENT_TYPE))
    if kind == JSON and "specversion" in value:
        raise Rejection(415, "this looks like a CloudEvent", f"send it as Content-Type: {CONTENT_TYPE}")
    report = parse_shorthand(value) if kind == JSON else parse_cloudevent(value)
    trace = report.traceparent or known_traceparent(request.headers.get("traceparent"))
    return report.model_copy(update={"traceparent": trace})


_BODIES = takes({JSON: Shorthand, CONTENT_TYPE: CloudEvent})
_BODIES["requestBody"]["content"][CONTENT_TYPE]["schema"]["additionalProperties"] = True  # extensions are passed over


@router.post(
    "/events",
    status_code=202,
    responses=WITH_BODY | problems(404, 409),
    openapi_extra=_BODIES,
)
@repeats
def receive(_: Submitter, stores: Here, report: Annotated[Report, Depends(read_report)]) -> Accepted:
    """Report that a dataset has grown. 202 says that the report is stored; the same source and id again are the same report."""
    with stores.ledger.write() as tx:
        receipt = arrivals.receive(tx, report)
        known = fates.of_arrival(tx, receipt.arrival) if receipt.repeated and receipt.arrival else []
    runs = receipt.runs or tuple(sorted({fate.run for fate in known if fate.run is not None}))
    return Accepted(
        arrival=receipt.arrival, dataset=report.dataset, repeated=receipt.repeated, nudged=receipt.nudged, runs=runs
    )


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
