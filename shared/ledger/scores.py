"""Scores: (whose model, which rows) → metrics. Wanted, claimed and stored once; candidate and champion are scored alike."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from sqlalchemy import and_, insert, or_, select, update

from shared.ledger.session import Transaction
from shared.ledger.tables import score
from shared.ledger.transitions import transition


@transition
def want(tx: Transaction, run_id: int, holdout: str, rows: dict[str, Any], compute_class: str) -> None:
    """Ask for a score that nobody has made yet.

    score: none → wanted
    By: the bridge
    Fence: one per run and holdout
    Again: changes nothing
    """
    tx.lock(f"scores of {run_id}")
    if find(tx, run_id, holdout) is None:
        tx.execute(
            insert(score).values(run_id=run_id, holdout=holdout, rows=rows, compute_class=compute_class, tries=0)
        )


@transition
def store(
    tx: Transaction,
    run_id: int,
    holdout: str,
    rows: dict[str, Any],
    compute_class: str,
    metrics: dict[str, float] | None,
    error: str | None,
) -> None:
    """Keep a score, or why there is none.

    score: none | wanted | leased → scored
    By: a trainer
    Fence: the first that has metrics stays
    Again: changes nothing
    """
    want(tx, run_id, holdout, rows, compute_class)
    mine = and_(score.c.run_id == run_id, score.c.holdout == holdout, score.c.metrics.is_(None))
    tx.execute(update(score).where(mine).values(metrics=metrics, error=error, scored_at=tx.now, lease_until=None))


@transition
def claim(tx: Transaction, run_id: int, holdout: str, lease: timedelta) -> Any:
    """Lease a wanted score; None if it is made or being made. After three tries it is stored as impossible.

    score: wanted | leased → leased; wanted | leased → scored
    By: a trainer with a free slot
    Fence: nobody's lease
    Again: None while the lease lives
    """
    tx.lock(f"scores of {run_id}")
    row = find(tx, run_id, holdout)
    if row is None or row.scored_at is not None or (row.lease_until is not None and row.lease_until > tx.now):
        return None
    mine = and_(score.c.run_id == run_id, score.c.holdout == holdout)
    if row.tries >= 3:
        tx.execute(
            update(score).where(mine).values(error="three workers were lost while they scored it", scored_at=tx.now)
        )
        return None
    tx.execute(update(score).where(mine).values(lease_until=tx.now + lease, tries=row.tries + 1))
    return row


@transition
def beat(tx: Transaction, run_id: int, holdout: str, lease: timedelta) -> None:
    """Keep the lease of a score in the making.

    score: leased → leased
    By: the trainer that makes it
    Fence: not scored yet
    Again: the lease is counted from the later call
    """
    mine = and_(score.c.run_id == run_id, score.c.holdout == holdout, score.c.scored_at.is_(None))
    tx.execute(update(score).where(mine).values(lease_until=tx.now + lease))


@transition
def release(tx: Transaction, run_id: int, holdout: str, again_in: timedelta) -> None:
    """Give a claimed score back without counting a try: something was away, or the worker leaves.

    score: leased → wanted
    By: the trainer that makes it
    Fence: not scored yet
    Again: gives back another try
    """
    mine = and_(score.c.run_id == run_id, score.c.holdout == holdout, score.c.scored_at.is_(None), score.c.tries > 0)
    tx.execute(update(score).where(mine).values(lease_until=tx.now + again_in, tries=score.c.tries - 1))


def wanted(tx: Transaction, compute_class: str) -> Any:
    """A score that is wanted and that nobody makes, as (run_id, holdout); None if there is none."""
    free = or_(score.c.lease_until.is_(None), score.c.lease_until < tx.now)
    query = select(score.c.run_id, score.c.holdout).where(
        score.c.scored_at.is_(None), free, score.c.compute_class == compute_class
    )
    return tx.execute(query.limit(1)).first()


def find(tx: Transaction, run_id: int, holdout: str) -> Any:
    return tx.execute(select(score).where(score.c.run_id == run_id, score.c.holdout == holdout)).first()


def own(tx: Transaction, run_id: int) -> Any:
    """The score that the run's own attempt made: the oldest one."""
    made = select(score).where(score.c.run_id == run_id, score.c.scored_at.is_not(None))
    return tx.execute(made.order_by(score.c.scored_at).limit(1)).first()


def metrics(tx: Transaction, run_id: int) -> dict[str, float]:
    row = own(tx, run_id)
    return dict(row.metrics) if row is not None and row.metrics else {}
