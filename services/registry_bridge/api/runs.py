"""Runs over REST: what each one is doing, and asking for one, stopping one, trying one again."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Response
from pydantic import Field

from shared import values
from shared.cuts import Cut
from shared.http import Here, Operator, Paged, Reader, body, takes
from shared.ledger import Transaction, attempts, fates, planning, releases, repeats, runs, usage, versions
from shared.lifecycle import RunState
from shared.problems import EVERYWHERE, JSON, WITH_BODY, problems
from shared.sampling import Sample
from shared.values import Strict

router = APIRouter(prefix="/v1", tags=["runs"], responses=EVERYWHERE)

NAME = f"^{values.NAME}$"

RunId = Annotated[int, Path(ge=1, lt=2**63)]
Reason = Annotated[str, Field(min_length=1, max_length=500, title="text of 1 to 500 characters")]
ModelName = Annotated[str, Field(pattern=NAME, title="name of a model")]


class ReleaseName(Strict):
    """A commit of a model's repository and what it is called there."""

    name: str
    commit: str


class Progress(Strict):
    fraction: float
    note: str


class Failure(Strict):
    """Why something ended as it did, and what to do about it."""

    kind: str
    message: str
    advice: str = ""


class Point(Strict):
    """A metric's value at a step."""

    step: int
    value: float


class Checkpoint(Strict):
    """What the next attempt would go on from."""

    attempt: int = Field(description="which one left it")
    size_bytes: int
    at: datetime


class Used(Strict):
    """What it took of a machine, with all the processes that it started."""

    cpu_s: float
    gpu_s: float = Field(description="seconds of the GPUs that it had, busy or not")
    memory_bytes: int = Field(description="at its peak")
    read_bytes: int
    written_bytes: int


class Attempt(Strict):
    """One claim of a run by one worker; `seconds` says how long each step took."""

    number: int
    worker: str
    started_at: datetime
    ended_at: datetime | None
    outcome: str | None
    error: Failure | None
    seconds: dict[str, float]
    used: Used | None = Field(description="null until it has ended, and for one that was lost")
    metrics: dict[str, tuple[Point, ...]] = Field(
        description="what it has told by step, thinned out to a hundred values each; told of one run only, and not in lists"
    )


class Run(Strict):
    """One training of one model."""

    id: int
    model: str
    state: RunState
    reason: str = Field(description="why it was planned")
    sentence: str = Field(description="what it does, or what it waits for and until when")
    sample: str | None = Field(
        description="it trains on so much of the rows only, answers no arrival, and its version is never promoted"
    )
    release: ReleaseName
    compute_class: str
    planned_at: datetime
    due_at: datetime | None
    started_at: datetime | None
    finished_at: datetime | None
    cut: dict[str, Cut] | None = Field(description="the data that it sees, by dataset; frozen when it is claimed first")
    cut_digest: str | None
    progress: Progress | None
    left_s: float | None = Field(description="how long it will still train, by its progress or by the last runs")
    metrics: dict[str, float] = Field(description="the newest value of each that the newest attempt has told")
    checkpoint: Checkpoint | None
    error: Failure | None
    version: int | None
    bundle: str | None
    tidied_at: datetime | None = Field(description="when its bundle was taken away, as `keep` has it")
    attempts: tuple[Attempt, ...]


class RunPage(Strict):
    items: tuple[Run, ...]
    next: str | None


class RunRequest(Strict):
    """Train this model now, whatever its policy says."""

    model: ModelName
    reason: Reason | None = None
    again: bool = Field(False, description="train although neither code nor data has changed since the last training")
    sample: Sample | None = Field(
        None,
        description="train on so much of the newest rows only, for a version to build against that is never promoted",
    )


class Why(Strict):
    """A person's reason, for the record."""

    reason: Reason | None = None


def describe(tx: Transaction, row: Any, *, whole: bool = False) -> Run:
    """`whole`: with all metrics by step."""
    tried = attempts.of_run(tx, row.id)
    release, version = releases.find(tx, row.release_id), versions.of_run(tx, row.id)
    return Run(
        id=row.id,
        model=row.model,
        state=RunState(row.state),
        reason=row.reason,
        sentence=fates.describe(tx, row),
        sample=row.sample,
        release=ReleaseName(name=release.name, commit=release.commit),
        compute_class=row.compute_class,
        planned_at=row.planned_at,
        due_at=row.due_at,
        started_at=row.started_at,
        finished_at=row.finished_at,
        cut=read_cut(row) if row.cut is not None else None,
        cut_digest=row.cut_digest,
        progress=Progress(fraction=row.progress, note=row.progress_note or "") if row.progress is not None else None,
        left_s=usage.left_s(tx, row),
        metrics=_newest(tried[-1].metrics if tried else None),
        checkpoint=_checkpoint(row),
        error=Failure.model_validate(row.error) if row.error else None,
        version=version.number if version is not None else None,
        bundle=row.bundle,
        tidied_at=row.tidied_at,
        attempts=tuple(_attempt(one, whole) for one in tried),
    )


def _checkpoint(row: Any) -> Checkpoint | None:
    if row.checkpoint is None:
        return None
    kept = attempts.Checkpoint.from_json(row.checkpoint)
    return Checkpoint(attempt=kept.attempt, size_bytes=kept.size_bytes, at=kept.at)


def read_cut(row: Any) -> dict[str, Cut]:
    return {name: Cut.from_json(part) for name, part in row.cut.items()}


def _newest(told: dict[str, Any] | None) -> dict[str, float]:
    return {name: points[-1][1] for name, points in (told or {}).items()}


def _used(row: Any) -> Used | None:
    if row.cpu_s is None:
        return None
    return Used.model_validate({name: getattr(row, name) for name in Used.model_fields})


def _attempt(row: Any, whole: bool) -> Attempt:
    told = (row.metrics or {}) if whole else {}
    return Attempt(
        number=row.number,
        worker=row.worker,
        started_at=row.started_at,
        ended_at=row.ended_at,
        outcome=row.outcome,
        error=Failure.model_validate(row.error) if row.error else None,
        seconds=row.seconds or {},
        used=_used(row),
        metrics={name: tuple(Point(step=step, value=value) for step, value in points) for name, points in told.items()},
    )


@router.get("/runs")
def list_runs(
    _: Reader,
    stores: Here,
    page: Paged,
    model: Annotated[str | None, Query(pattern=NAME)] = None,
    state: Annotated[RunState | None, Query()] = None,
) -> RunPage:
    """Runs, newest first."""
    with stores.ledger.read() as tx:
        rows = runs.find_all(tx, model=model, state=state, before=page.before, limit=page.limit + 1)
        shown, after = page.cut(rows, lambda row: row.id)
        return RunPage(items=tuple(describe(tx, row) for row in shown), next=after)


@router.get("/runs/{id}", responses=problems(404))
def show_run(_: Reader, stores: Here, id: RunId) -> Run:
    """One run with its attempts."""
    with stores.ledger.read() as tx:
        return describe(tx, runs.find(tx, id), whole=True)


@router.post(
    "/runs", status_code=202, responses=WITH_BODY | problems(404, 409), openapi_extra=takes({JSON: RunRequest})
)
@repeats
def retrain(caller: Operator, stores: Here, asked: Annotated[RunRequest, body(RunRequest)], answer: Response) -> Run:
    """Retrain a model now: plans a run, or makes the waiting one due."""
    with stores.ledger.write() as tx:
        reason = asked.reason or f"{caller.name} asked for it"
        id = planning.ask(tx, asked.model, reason, caller.name, again=asked.again, sample=asked.sample)
        answer.headers["Location"] = f"/v1/runs/{id}"
        return describe(tx, runs.find(tx, id))


@router.post(
    "/runs/{id}/cancel",
    status_code=202,
    responses=WITH_BODY | problems(404, 409),
    openapi_extra=takes({JSON: Why}, required=False),
)
@repeats
def cancel(caller: Operator, stores: Here, id: RunId, why: Annotated[Why, body(Why, required=False)]) -> Run:
    """Stop a run: at once if it waits, as soon as its worker has seen to it if it runs."""
    with stores.ledger.write() as tx:
        reason = f"{caller.name}: {why.reason}" if why.reason else f"cancelled by {caller.name}"
        planning.cancel(tx, id, reason, caller.name)
        return describe(tx, runs.find(tx, id))


@router.post(
    "/runs/{id}/retry",
    status_code=202,
    responses=WITH_BODY | problems(404, 409),
    openapi_extra=takes({JSON: Why}, required=False),
)
@repeats
def retry(
    caller: Operator, stores: Here, id: RunId, why: Annotated[Why, body(Why, required=False)], answer: Response
) -> Run:
    """Train again after a failed or cancelled run: a new run, due at once, that covers what the old one did."""
    with stores.ledger.write() as tx:
        new = planning.retry(tx, id, why.reason or f"{caller.name} retries run {id}", caller.name)
        answer.headers["Location"] = f"/v1/runs/{new}"
        return describe(tx, runs.find(tx, new))
