"""Models over REST: what serves, what runs, what waits and why; promoting and rolling back by a named person."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Path
from pydantic import Field

from services.registry_bridge.api.runs import NAME, Reason, ReleaseName, Used, Why
from shared.catalog import Catalog
from shared.errors import NotFound
from shared.http import Here, Operator, Paged, Reader, body, takes
from shared.ledger import (
    Transaction,
    configuration,
    fates,
    pauses,
    planning,
    releases,
    repeats,
    runs,
    usage,
    versions,
)
from shared.problems import EVERYWHERE, JSON, WITH_BODY, problems
from shared.values import Strict

router = APIRouter(prefix="/v1", tags=["models"], responses=EVERYWHERE)

InPath = Annotated[str, Path(pattern=NAME)]
VersionNumber = Annotated[int, Field(ge=1, lt=2**63, title="number of a version")]


class InForce(ReleaseName):
    """The release that is trained."""

    seen_at: datetime


class Champion(Strict):
    """The version that serves."""

    version: int
    digest: str
    since: datetime


class Total(Used):
    """What all attempts have used: sums, and the highest peak of memory."""

    attempts: int


class Paused(Strict):
    """Nothing is trained of itself, after so many failed runs in a row."""

    since: datetime
    failed: int


class Model(Strict):
    """A thing to train, and how it stands."""

    name: str
    repository: str
    datasets: tuple[str, ...]
    compute_class: str | None
    release: InForce | None
    release_error: str | None = Field(description="why the repository or its newest release is not taken")
    champion: Champion | None
    paused: Paused | None
    used: Total | None = Field(description="null before the first attempt, and in the status")
    waiting_run: int | None
    running_run: int | None
    sentence: str


class ModelPage(Strict):
    items: tuple[Model, ...]
    next: str | None


class WhyModel(Strict):
    """Why the model has (not) been retrained: what is wrong first."""

    model: str
    sentences: tuple[str, ...]
    waiting_run: int | None
    running_run: int | None


class Promotion(Strict):
    """Promote an awaiting version."""

    version: VersionNumber
    reason: Reason


class Rollback(Strict):
    """Make a version champion again that has served before; by default the one before the present champion."""

    version: VersionNumber | None = None
    reason: Reason


class Changed(Strict):
    """The change is decided; the alias follows, and then everyone is told."""

    model: str
    champion: int


def describe(tx: Transaction, name: str, catalog: Catalog, used: usage.Total | None = None) -> Model:
    release, busy, waiting = releases.in_force(tx, name), runs.find_busy(tx, name), runs.find_waiting(tx, name)
    return Model(
        name=name,
        repository=catalog.models[name].repository,
        datasets=tuple(sorted(release.declaration.datasets)) if release is not None else (),
        compute_class=release.declaration.compute_class if release is not None else None,
        release=InForce(name=release.name, commit=release.commit, seen_at=release.seen_at)
        if release is not None
        else None,
        release_error=_release_error(tx, name),
        champion=_champion(tx, name),
        paused=_paused(tx, name),
        used=Total.model_validate(asdict(used)) if used is not None else None,
        waiting_run=_id(waiting),
        running_run=_id(busy),
        sentence=_sentence(tx, name, busy if busy is not None else waiting),
    )


def _release_error(tx: Transaction, name: str) -> str | None:
    look, seen = releases.looks(tx).get(name), releases.seen(tx, name)
    if look is not None and look.error:
        return str(look.error)
    return f"release {seen.name} was refused: {seen.refusal}" if seen is not None and seen.refusal else None


def _champion(tx: Transaction, name: str) -> Champion | None:
    row, since = versions.champion(tx, name), versions.champion_since(tx, name)
    return Champion(version=row.number, digest=row.digest, since=since.served_at) if row is not None else None


def _paused(tx: Transaction, name: str) -> Paused | None:
    found = pauses.of(tx, name)
    return Paused(since=found.since, failed=found.failed) if found is not None else None


def _sentence(tx: Transaction, name: str, open_run: Any) -> str:
    row = open_run if open_run is not None else runs.last(tx, name)
    if row is None:
        return "it has never been trained"
    return f"{'' if open_run is not None else 'nothing new since '}run {row.id} {fates.describe(tx, row)}"


def _id(row: Any) -> int | None:
    return int(row.id) if row is not None else None


def find(tx: Transaction, name: str) -> Catalog:
    """The configuration in force, if it names that model; raises `NotFound`."""
    catalog = configuration.in_force(tx).catalog
    if name not in catalog.models:
        raise NotFound(f"there is no model {name!r}; known are: {', '.join(sorted(catalog.models)) or 'none'}")
    return catalog


@router.get("/models")
def list_models(_: Reader, stores: Here, page: Paged) -> ModelPage:
    """Models by name."""
    with stores.ledger.read() as tx:
        catalog = configuration.in_force(tx).catalog
        names = [name for name in sorted(catalog.models) if name > (page.after or "")]
        shown, after = page.cut(names, str)
        used = usage.by_model(tx, *shown)
        return ModelPage(items=tuple(describe(tx, name, catalog, used.get(name)) for name in shown), next=after)


@router.get("/models/{model}", responses=problems(404))
def show_model(_: Reader, stores: Here, model: InPath) -> Model:
    """One model."""
    with stores.ledger.read() as tx:
        return describe(tx, model, find(tx, model), usage.by_model(tx, model).get(model))


@router.get("/models/{model}/why", responses=problems(404))
def why(_: Reader, stores: Here, model: InPath) -> WhyModel:
    """Why the model has, or has not, been retrained."""
    with stores.ledger.read() as tx:
        sentences = tuple(fates.why(tx, model))
        waiting, busy = runs.find_waiting(tx, model), runs.find_busy(tx, model)
    return WhyModel(model=model, sentences=sentences, waiting_run=_id(waiting), running_run=_id(busy))


@router.post(
    "/models/{model}/promote",
    status_code=202,
    responses=WITH_BODY | problems(404, 409),
    openapi_extra=takes({JSON: Promotion}),
)
@repeats
def promote(caller: Operator, stores: Here, model: InPath, wanted: Annotated[Promotion, body(Promotion)]) -> Changed:
    """Promote a version that awaits a person's word."""
    with stores.ledger.write() as tx:
        versions.promote(tx, model, wanted.version, caller.name, wanted.reason)
    return Changed(model=model, champion=wanted.version)


@router.post(
    "/models/{model}/rollback",
    status_code=202,
    responses=WITH_BODY | problems(404, 409),
    openapi_extra=takes({JSON: Rollback}),
)
@repeats
def roll_back(caller: Operator, stores: Here, model: InPath, wanted: Annotated[Rollback, body(Rollback)]) -> Changed:
    """Go back to a version that has served before."""
    with stores.ledger.write() as tx:
        find(tx, model)
        number = versions.roll_back(tx, model, wanted.version, caller.name, wanted.reason)
    return Changed(model=model, champion=number)


@router.post(
    "/models/{model}/resume",
    status_code=202,
    responses=WITH_BODY | problems(404),
    openapi_extra=takes({JSON: Why}, required=False),
)
@repeats
def resume(caller: Operator, stores: Here, model: InPath, said: Annotated[Why, body(Why, required=False)]) -> Model:
    """Let a model train of itself again that pauses after failed runs."""
    with stores.ledger.write() as tx:
        catalog = find(tx, model)
        planning.resume(tx, model, said.reason or f"{caller.name} resumes it", caller.name)
        return describe(tx, model, catalog)
