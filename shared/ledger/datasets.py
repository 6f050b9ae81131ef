"""How far each dataset is known: one cut, one watcher at a time."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from sqlalchemy import bindparam, insert, or_, select, update

from shared.cuts import Cut
from shared.errors import Fenced
from shared.ledger.session import Transaction
from shared.ledger.tables import dataset
from shared.ledger.transitions import transition


def known(tx: Transaction, names: tuple[str, ...] | list[str]) -> dict[str, Cut]:
    """The cuts of those datasets of which anything is known."""
    rows = tx.execute(_CUTS, {"names": names})
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
    ensure_all(tx, [name])


def ensure_all(tx: Transaction, names: Sequence[str]) -> dict[str, Cut | None]:
    """`ensure` each, and hold it; the cuts."""
    tx.lock(*(f"dataset {name}" for name in names))
    found = {row.name: Cut.from_json(row.cut) if row.cut else None for row in tx.execute(_CUTS, {"names": names})}
    for name in names:
        if name not in found:
            tx.execute(insert(dataset).values(name=name))
    return {name: found.get(name) for name in names}


def fence(tx: Transaction, name: str, before: Cut | None, owner: str) -> None:
    """Raise `Fenced` when another watcher has moved the cut since `before` was read (its rows are told already)."""
    row = tx.execute(select(dataset.c.cut, dataset.c.lease_owner).where(dataset.c.name == name).with_for_update()).one()
    found = Cut.from_json(row.cut) if row.cut else None
    if found != before or row.lease_owner != owner:
        raise Fenced(f"the watch over {name} has passed to {row.lease_owner}")


def move(tx: Transaction, name: str, after: Cut) -> None:
    """Move the cut of a dataset that the caller holds."""
    tx.execute(_MOVE, {"moved": name, "cut": after.to_json()})


_CUTS = select(dataset.c.name, dataset.c.cut).where(dataset.c.name.in_(bindparam("names", expanding=True)))
_MOVE = update(dataset).where(dataset.c.name == bindparam("moved")).values(cut=bindparam("cut"))


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
