"""Runs as rows: found, counted, and which of them wait for a bell. What changes them is in `planning` and `attempts`."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, and_, bindparam, func, or_, select, update

from shared.errors import NotFound
from shared.ledger.session import Transaction
from shared.ledger.tables import OPEN, run
from shared.ledger.transitions import transition
from shared.lifecycle import RunState

BUSY = (RunState.RUNNING, RunState.RETRYING)


def find(tx: Transaction, id: int) -> Any:
    """One run; raises `NotFound`."""
    row = tx.execute(select(run).where(run.c.id == id)).first()
    if row is None:
        raise NotFound(f"there is no run {id}")
    return row


def hold(tx: Transaction, id: int) -> Any:
    """One run, for whoever changes it: nobody else decides about its model meanwhile. Raises `NotFound`."""
    found = tx.execute(select(run.c.model, *tx.holding(run.c.model)).where(run.c.id == id)).first()
    if found is None:
        raise NotFound(f"there is no run {id}")
    tx.held.add(f"model {found.model}")
    return tx.execute(select(run).where(run.c.id == id).with_for_update()).one()


def all_waiting(tx: Transaction, model: str) -> list[Any]:
    """The one that waits, and the one on a sample that does."""
    return list(tx.execute(_WAITING, {"of": model}))


_WAITING = select(run).where(run.c.model == bindparam("of"), run.c.state == RunState.WAITING)


def find_waiting(tx: Transaction, model: str, *, sample: bool = False) -> Any:
    return next((row for row in all_waiting(tx, model) if (row.sample is not None) == sample), None)


def find_busy(tx: Transaction, model: str, *, sample: bool = False) -> Any:
    kind = run.c.sample.is_not(None) if sample else run.c.sample.is_(None)
    return tx.execute(select(run).where(run.c.model == model, run.c.state.in_(BUSY), kind)).first()


def last(tx: Transaction, model: str, state: RunState | None = None) -> Any:
    """The model's newest run, in that state, that is not one on a sample; None before the first."""
    query = select(run).where(run.c.model == model, run.c.sample.is_(None)).order_by(run.c.id.desc()).limit(1)
    return tx.execute(query.where(run.c.state == state) if state is not None else query).first()


def find_all(
    tx: Transaction, *, model: str | None = None, state: str | None = None, before: int | None = None, limit: int = 50
) -> list[Any]:
    """Newest first, with an id below `before`."""
    query = select(run).order_by(run.c.id.desc()).limit(limit)
    for column, value in ((run.c.model, model), (run.c.state, state)):
        if value is not None:
            query = query.where(column == value)
    if before is not None:
        query = query.where(run.c.id < before)
    return list(tx.execute(query))


def unrung(tx: Transaction, classes: Sequence[str], limit: int = 100) -> list[Any]:
    """Runs of these compute classes that are due and whose bell has not been rung since they became due."""
    heard = or_(run.c.rung_at.is_(None), run.c.rung_at < run.c.due_at)
    query = select(run.c.id, run.c.compute_class).where(run.c.state.in_(OPEN), run.c.due_at <= tx.now, heard)
    query = query.where(run.c.compute_class.in_(classes))
    return list(tx.execute(query.order_by(run.c.due_at).limit(limit)))


@transition
def rung(tx: Transaction, ids: Sequence[int]) -> None:
    """Their bells have been rung.

    run: waiting | retrying → same
    By: the watcher, after it has rung
    Fence: none; the newest time stays
    Again: rung once more
    """
    tx.execute(update(run).where(run.c.id.in_(ids)).values(rung_at=tx.now))


def next_due(tx: Transaction) -> datetime | None:
    """When the next run becomes due that is not due yet and whose bell has not been rung."""
    heard = or_(run.c.rung_at.is_(None), run.c.rung_at < run.c.due_at)
    later = run.c.due_at > tx.now
    due: datetime | None = tx.execute(
        select(func.min(run.c.due_at)).where(run.c.state.in_(OPEN), heard, later)
    ).scalar()
    return due


def claimable(tx: Transaction, compute_class: str, patience: timedelta = timedelta(0)) -> int | None:
    """The run that has been due longest, for `patience` at least, and that nobody works on; of two, the older."""
    query = select(run.c.id).where(run.c.compute_class == compute_class, _claimable(tx.now - patience))
    first = query.order_by(func.coalesce(run.c.due_at, run.c.lease_until), run.c.id).limit(1)
    id: int | None = tx.execute(first).scalar()
    return id


def coming(tx: Transaction, compute_class: str) -> list[Any]:
    """Those that wait and are not due yet, the oldest first."""
    waits = and_(run.c.state == RunState.WAITING, or_(run.c.due_at.is_(None), run.c.due_at > tx.now))
    return list(tx.execute(select(run).where(run.c.compute_class == compute_class, waits).order_by(run.c.id)))


def is_claimable(tx: Transaction, id: int) -> bool:
    return tx.execute(select(run.c.id).where(run.c.id == id, _claimable(tx.now))).first() is not None


def _claimable(at: datetime) -> ColumnElement[bool]:
    """Due, or its worker's lease has run out."""
    return or_(
        and_(run.c.state.in_(OPEN), run.c.due_at <= at), and_(run.c.state == RunState.RUNNING, run.c.lease_until < at)
    )


def count(tx: Transaction) -> dict[str, int]:
    return {state: number for state, number in tx.execute(select(run.c.state, func.count()).group_by(run.c.state))}


def count_due(tx: Transaction) -> dict[str, int]:
    """Runs that are due and that nobody works on, by compute class."""
    query = select(run.c.compute_class, func.count()).where(_claimable(tx.now)).group_by(run.c.compute_class)
    return {name: number for name, number in tx.execute(query)}


def before(tx: Transaction, model: str) -> tuple[dict[str, Any], int | None, datetime | None]:
    """The cut that the model's newest claimed run froze (empty before the first), its run that is busy, and when one has ended last.

    Runs on a sample are passed over: they answer nothing that has arrived.
    """
    cut, busy, ended = tx.execute(_BEFORE, {"of": model}).one()
    return cut or {}, busy, ended


_WHOLE = (run.c.model == bindparam("of"), run.c.sample.is_(None))
_CLAIMED = (*_WHOLE, run.c.started_at.is_not(None))
_BEFORE = select(
    select(run.c.cut).where(*_CLAIMED).order_by(run.c.id.desc()).limit(1).scalar_subquery(),
    select(run.c.id).where(*_WHOLE, run.c.state.in_(BUSY)).scalar_subquery(),
    select(func.max(run.c.finished_at)).where(*_CLAIMED).scalar_subquery(),
)


def trained_cut_before(tx: Transaction, model: str, id: int) -> dict[str, Any]:
    """The cut of the model's last trained run before this one, passing over samples; empty if there is none."""
    query = select(run.c.cut).where(run.c.model == model, run.c.state == RunState.TRAINED, run.c.id < id)
    query = query.where(run.c.sample.is_(None))
    return tx.execute(query.order_by(run.c.id.desc()).limit(1)).scalar() or {}
