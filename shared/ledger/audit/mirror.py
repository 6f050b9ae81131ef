"""What MLflow and the blob store are held against: rows of the ledger, a page and a short transaction at a time."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import func, select

from shared.ledger import versions
from shared.ledger.session import Transaction
from shared.ledger.tables import attempt, model, promotion, run, score, version
from shared.lifecycle import RunState

QUIET = timedelta(minutes=2)


@dataclass(frozen=True)
class Registered:
    """What the ledger knows of a run's registration. `moving`: it is under way, will be tried, or has only just ended."""

    run: int
    model: str
    trained: bool
    registrations: int
    moving: bool
    number: int | None
    mlflow_run: str | None
    removed: bool


def models(tx: Transaction) -> list[str]:
    """Every model that the ledger has ever known."""
    named = select(model.c.name).union(select(run.c.model), select(version.c.model))
    return sorted(tx.execute(named).scalars())


def of_runs(tx: Transaction, ids: Iterable[int]) -> dict[int, Registered]:
    columns = version.c.number, version.c.mlflow_run, version.c.removed_at, version.c.tidied_at
    query = select(run, *(column.label(f"v_{column.name}") for column in columns)).outerjoin(
        version, version.c.run_id == run.c.id
    )
    return {row.id: _registered(tx, row) for row in tx.execute(query.where(run.c.id.in_(list(ids))))}


def _registered(tx: Transaction, row: Any) -> Registered:
    trained = row.state == RunState.TRAINED
    leased = row.registration_lease is not None and row.registration_lease > tx.now - QUIET
    moving = trained and (leased or row.registration_error is not None or row.finished_at > tx.now - QUIET)
    removed = row.v_tidied_at is not None  # from then on MLflow may let go of it at any moment
    return Registered(row.id, row.model, trained, row.registrations, moving, row.v_number, row.v_mlflow_run, removed)


def numbered(tx: Transaction, name: str, above: int, upto: int | None, limit: int) -> list[Any]:
    """Versions that MLflow should have, by number."""
    mine = version.c.model == name, version.c.tidied_at.is_(None), version.c.number > above
    query = select(version.c.number, version.c.run_id, version.c.mlflow_run, version.c.mlflow_model).where(*mine)
    query = query.where(version.c.number <= upto) if upto is not None else query
    return list(tx.execute(query.order_by(version.c.number).limit(limit)))


def champions(tx: Transaction, names: Iterable[str]) -> dict[str, tuple[int | None, int]]:
    """The number that each model's alias should name, and a mark that changes with each promotion; models with one under way are left out."""
    found = {}
    for name in names:
        if versions.has_intent(tx, name):
            continue
        row = versions.champion_since(tx, name)
        number = (
            tx.execute(select(version.c.number).where(version.c.id == row.version_id)).scalar()
            if row is not None
            else None
        )
        found[name] = number, row.id if row is not None else 0
    return found


def attempts_of(tx: Transaction, ids: Iterable[int]) -> dict[tuple[int, int], datetime | None]:
    """When each attempt of these runs ended; None for one that has not."""
    query = select(attempt.c.run_id, attempt.c.number, attempt.c.ended_at).where(attempt.c.run_id.in_(list(ids)))
    return {(row.run_id, row.number): row.ended_at for row in tx.execute(query)}


def queues(tx: Transaction, class_name: str) -> int:
    """How many runs of a class a worker may be rung for: those that have not ended."""
    ours = select(run.c.id).where(
        run.c.compute_class == class_name, run.c.state.in_(("waiting", "running", "retrying"))
    )
    wanted = select(score.c.run_id).where(score.c.compute_class == class_name, score.c.scored_at.is_(None))
    return _count(tx, ours) + _count(tx, wanted)


def unserved(tx: Transaction) -> int:
    """Versions and runs that a bridge may be rung for."""
    waiting = (
        select(run.c.id)
        .outerjoin(version, version.c.run_id == run.c.id)
        .where(run.c.state == RunState.TRAINED, version.c.id.is_(None))
    )
    return _count(tx, waiting) + _count(tx, select(promotion.c.id).where(promotion.c.served_at.is_(None)))


def _count(tx: Transaction, query: Any) -> int:
    return int(tx.execute(select(func.count()).select_from(query.subquery())).scalar_one())
