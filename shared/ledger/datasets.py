"""How far each dataset is known: one cut, one watcher at a time."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from sqlalchemy import insert, or_, select, update

from shared.cuts import Cut
from shared.errors import Fenced
from shared.ledger.session import Transaction
from shared.ledger.tables import dataset
from shared.ledger.transitions import transition


def known(tx: Transaction, names: tuple[str, ...] | list[str]) -> dict[str, Cut]:
    """The cuts of those datasets of which anything is known."""
    rows = tx.execute(
        select(dataset.c.name, dataset.c.cut).where(dataset.c.name.in_(names), dataset.c.cut.is_not(None))
    )
    return {row.name: Cut.from_json(row.cut) for row in rows if row.cut is not None}


@transition
def take(tx: Transaction, name: str, owner: str, lease: timedelta) -> bool:
    """Take or renew the watch over a dataset; False while another watcher holds it.

    dataset: free | watched → watched
    By: a watcher
    Fence: nobody else's lease, or one that has run out
    Again: renews the lease
    """
    ensure(tx, name)
    mine = or_(dataset.c.lease_owner == owner, dataset.c.lease_until.is_(None), dataset.c.lease_until < tx.now)
    values = {"lease_owner": owner, "lease_until": tx.now + lease}
    return bool(tx.execute(update(dataset).where(dataset.c.name == name, mine).values(**values)).rowcount)


@transition
def ensure(tx: Transaction, name: str) -> None:
    """A row for the dataset, if it has none.

    dataset: none → free
    By: the watcher; part of others
    Fence: one row per name
    Again: changes nothing
    """
    tx.lock(f"dataset {name}")
    if tx.execute(select(dataset.c.name).where(dataset.c.name == name)).first() is None:
        tx.execute(insert(dataset).values(name=name))


def move(tx: Transaction, name: str, before: Cut | None, after: Cut, owner: str | None) -> None:
    """Move the cut; raises `Fenced` when another watcher has moved it since `before` was read (its rows are told already)."""
    row = tx.execute(select(dataset.c.cut, dataset.c.lease_owner).where(dataset.c.name == name).with_for_update()).one()
    found = Cut.from_json(row.cut) if row.cut else None
    if found != before or (owner is not None and row.lease_owner != owner):
        raise Fenced(f"the watch over {name} has passed to {row.lease_owner}")
    tx.execute(update(dataset).where(dataset.c.name == name).values(cut=after.to_json()))


@transition
def nudge(tx: Transaction, name: str) -> None:
    """Ask the watcher to look now.

    dataset: free | watched → nudged
    By: part of a report
    Fence: none; the newest time stays
    Again: asks once more
    """
    ensure(tx, name)
    tx.execute(update(dataset).where(dataset.c.name == name).values(nudged_at=tx.now))


@transition
def looked(tx: Transaction, name: str, error: str | None) -> None:
    """Note that the source was looked at, and what went wrong.

    dataset: free | watched → looked at
    By: the watcher
    Fence: none; it only tells
    Again: the newer word stays
    """
    tx.execute(update(dataset).where(dataset.c.name == name).values(looked_at=tx.now, error=error))


def find_all(tx: Transaction) -> list[Any]:
    return list(tx.execute(select(dataset).order_by(dataset.c.name)))
