"""Which trainers are there: told by themselves, for `status` and for "no worker serves this class"."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from sqlalchemy import delete, insert, select, update

from shared.ledger.session import Transaction
from shared.ledger.tables import worker

FORGOTTEN = timedelta(hours=1)


def seen(tx: Transaction, name: str, compute_class: str, slots: int, busy: int) -> None:
    values = {"compute_class": compute_class, "slots": slots, "busy": busy, "seen_at": tx.now}
    if not tx.execute(update(worker).where(worker.c.name == name).values(**values)).rowcount:
        tx.execute(insert(worker).values(name=name, **values))
    tx.execute(delete(worker).where(worker.c.seen_at < tx.now - FORGOTTEN))


def left(tx: Transaction, name: str) -> None:
    tx.execute(delete(worker).where(worker.c.name == name))


def alive(tx: Transaction, within: timedelta) -> list[Any]:
    return list(tx.execute(select(worker).where(worker.c.seen_at >= tx.now - within).order_by(worker.c.name)))
