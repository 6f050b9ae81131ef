"""The whole stack at a glance, over REST."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from fastapi import APIRouter
from pydantic import Field

from services.registry_bridge.api import models
from shared.catalog import Catalog
from shared.cuts import Cut, Point
from shared.http import Here, Reader
from shared.ledger import (
    Transaction,
    configuration,
    datasets,
    deliveries,
    fates,
    rejections,
    retention,
    runs,
    workers,
)
from shared.lifecycle import DeliveryState, RunState
from shared.problems import EVERYWHERE
from shared.values import Strict

router = APIRouter(prefix="/v1", tags=["status"], responses=EVERYWHERE)


class DatasetStatus(Strict):
    """How far a dataset is known, and how the last look at its source went."""

    name: str
    kind: Literal["sql", "rest", "stream"]
    cursor: Point
    rows: int | None
    looked_at: datetime | None
    error: str | None


class RunCounts(Strict):
    waiting: int
    running: int = Field(description="with those that will be tried again")


class DeliveryCounts(Strict):
    pending: int
    failed: int


class Rejections(Strict):
    """Entries of the stream that could not be read, of those that are kept; `GET /v1/rejections` lists them."""

    count: int
    last_reason: str | None
    last_at: datetime | None


class WorkerStatus(Strict):
    """A trainer that was heard of within the last minute."""

    name: str
    compute_class: str
    slots: int
    busy: int
    seen_at: datetime


class Unserved(Strict):
    """A compute class of the configuration for which no worker was heard of within the last minute."""

    compute_class: str
    due: int = Field(description="runs that wait for a worker of it")
    start: str = Field(description="the command that starts one, on any machine")


class TakenAway(Strict):
    """So many things of a kind, and the bytes that a store gave back for them."""

    count: int
    size_bytes: int


class Tidied(Strict):
    """The janitor's last turn."""

    at: datetime
    taken: dict[str, TakenAway]
    error: str | None = Field(description="what was left for the next turn, and why")


class Status(Strict):
    models: tuple[models.Model, ...]
    datasets: tuple[DatasetStatus, ...]
    runs: RunCounts
    deliveries: DeliveryCounts
    rejections: Rejections
    workers: tuple[WorkerStatus, ...]
    unserved: tuple[Unserved, ...]
    tidied: Tidied | None = Field(description="null before the first")


@router.get("/status")
def status(_: Reader, stores: Here) -> Status:
    """Models, datasets, workers, and what waits."""
    with stores.ledger.read() as tx:
        catalog = configuration.in_force(tx).catalog
        counted, sent = runs.count(tx), deliveries.count(tx)
        busy = counted.get(RunState.RUNNING, 0) + counted.get(RunState.RETRYING, 0)
        return Status(
            models=tuple(models.describe(tx, name, catalog) for name in sorted(catalog.models)),
            datasets=_datasets(tx, catalog),
            runs=RunCounts(waiting=counted.get(RunState.WAITING, 0), running=busy),
            deliveries=DeliveryCounts(
                pending=sent.get(DeliveryState.PENDING, 0), failed=sent.get(DeliveryState.FAILED, 0)
            ),
            rejections=_rejections(tx),
            workers=_workers(tx),
            unserved=_unserved(tx, catalog),
            tidied=_tidied(tx),
        )


def _rejections(tx: Transaction) -> Rejections:
    last = next(iter(rejections.find_all(tx, before=None, limit=1)), None)
    reason, at = (last.reason, last.at) if last is not None else (None, None)
    return Rejections(count=rejections.count(tx), last_reason=reason, last_at=at)


def _tidied(tx: Transaction) -> Tidied | None:
    row = retention.last_ended(tx)
    if row is None:
        return None
    taken = {kind: TakenAway.model_validate(one) for kind, one in (row.taken or {}).items()}
    return Tidied(at=row.ended_at, taken=taken, error=row.error)


def _datasets(tx: Transaction, catalog: Catalog) -> tuple[DatasetStatus, ...]:
    """Those of the configuration, also before anything is known of them."""
    rows = {row.name: row for row in datasets.find_all(tx)}
    found = []
    for name, dataset in sorted(catalog.datasets.items()):
        row = rows.get(name)
        cut = Cut.from_json(row.cut) if row is not None and row.cut else Cut(upto=None)
        looked_at, error = (row.looked_at, row.error) if row is not None else (None, None)
        kind = dataset.source.kind
        found.append(
            DatasetStatus(name=name, kind=kind, cursor=cut.upto, rows=cut.rows, looked_at=looked_at, error=error)
        )
    return tuple(found)


def _workers(tx: Transaction) -> tuple[WorkerStatus, ...]:
    return tuple(
        WorkerStatus(
            name=row.name, compute_class=row.compute_class, slots=row.slots, busy=row.busy, seen_at=row.seen_at
        )
        for row in workers.alive(tx, fates.WORKER_SEEN)
    )


def _unserved(tx: Transaction, catalog: Catalog) -> tuple[Unserved, ...]:
    served = {row.compute_class for row in workers.alive(tx, fates.WORKER_SEEN)}
    due = runs.count_due(tx)
    return tuple(
        Unserved(compute_class=name, due=due.get(name, 0), start=workers.start_command(name))
        for name in catalog.compute_classes
        if name not in served
    )
