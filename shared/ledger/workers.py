"""Which trainers are there: told by themselves, for `status` and for "no worker serves this class"."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from sqlalchemy import ColumnElement, and_, delete, func, insert, or_, select, update

from shared.ledger.session import Transaction
from shared.ledger.tables import OPEN, run, worker
from shared.ledger.transitions import transition
from shared.lifecycle import RunState

FORGOTTEN = timedelta(hours=1)
TOLD_WITHIN = timedelta(seconds=15)  # three times as long as a worker is silent; one that died is counted for so long
HEARD_WITHIN = timedelta(seconds=15)  # a bell for it is not repeated sooner: a free slot looks for itself meanwhile


@transition
def seen(tx: Transaction, name: str, compute_class: str, slots: int, busy: int) -> None:
    """A trainer tells that it is there; those that have been silent for an hour are forgotten.

    worker: none | seen → seen; seen → none
    By: the trainer itself
    Fence: name
    Again: the newer word stays
    """
    values = {"compute_class": compute_class, "slots": slots, "busy": busy, "seen_at": tx.now}
    if not tx.execute(update(worker).where(worker.c.name == name).values(**values)).rowcount:
        tx.execute(insert(worker).values(name=name, **values))
    tx.execute(delete(worker).where(worker.c.seen_at < tx.now - FORGOTTEN))


@transition
def left(tx: Transaction, name: str) -> None:
    """A trainer goes.

    worker: seen → none
    By: the trainer itself
    Fence: name
    Again: changes nothing
    """
    tx.execute(delete(worker).where(worker.c.name == name))


def alive(tx: Transaction, within: timedelta) -> list[Any]:
    return list(tx.execute(select(worker).where(worker.c.seen_at >= tx.now - within).order_by(worker.c.name)))


def free_slots(tx: Transaction, within: timedelta) -> dict[str, int]:
    """By compute class, the slots of workers that were heard of `within` which no run has; one whose bell has just been rung is on its way to one."""
    slots = select(worker.c.compute_class, func.sum(worker.c.slots).label("slots"))
    slots = slots.where(worker.c.seen_at >= tx.now - within).group_by(worker.c.compute_class)
    taken = select(run.c.compute_class, func.count()).where(_takes_a_slot(tx)).group_by(run.c.compute_class)
    used = {name: number for name, number in tx.execute(taken)}
    return {row.compute_class: row.slots - used.get(row.compute_class, 0) for row in tx.execute(slots)}


def _takes_a_slot(tx: Transaction) -> ColumnElement[bool]:
    runs = and_(run.c.state == RunState.RUNNING, run.c.lease_until >= tx.now)
    comes = and_(run.c.state.in_(OPEN), run.c.rung_at >= run.c.due_at, run.c.rung_at >= tx.now - HEARD_WITHIN)
    return or_(runs, comes)


def start_command(compute_class: str) -> str:
    """What starts a worker of a class, on any machine that reaches Redis, the ledger and the blob store."""
    return f"HEADRACE_COMPUTE_CLASS={compute_class} python -m services.trainer"
