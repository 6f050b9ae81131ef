"""Notices and their deliveries: written with the state that they tell of, sent afterwards, retried as values."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import and_, bindparam, func, insert, or_, select, update

from shared import notices
from shared.errors import Conflict, NotFound
from shared.ledger import configuration, history
from shared.ledger.insertion import insert_all
from shared.ledger.session import Transaction
from shared.ledger.tables import counter, delivery, notice
from shared.ledger.transitions import name_of, transition
from shared.lifecycle import DeliveryState, check
from shared.notices import NoticeType
from shared.subscriptions import Subscription


@transition
def tell(
    tx: Transaction,
    kind: NoticeType,
    subject: str,
    model: str | None,
    data: dict[str, Any],
    traceparent: str | None = None,
) -> int:
    """Write one notice and a delivery for each subscription that wants it, in the caller's transaction; returns its sequence number.

    The number comes from a counter row of the same transaction, so that numbers become visible in their order (with a
    sequence a late commit would be passed over by a reader of `after=`).

    notice: none → told
    delivery: none → pending
    By: part of others: written with the state that it tells of
    Fence: the next number of the counter row
    Again: another notice
    """
    (sequence,) = tell_all(tx, kind, model, [Told(subject, data, traceparent)])
    return sequence


@dataclass(frozen=True)
class Told:
    """What one notice is about, and says."""

    subject: str
    data: dict[str, Any]
    traceparent: str | None = None


def tell_all(tx: Transaction, kind: NoticeType, model: str | None, told: Sequence[Told]) -> range:
    """`tell` of each, in their order; their sequence numbers, without a gap."""
    with tx.doing(name_of(tell)):
        sequences = _next(tx, "notice", len(told))
        rows = [_row(*one) for one in zip(sequences, told, strict=True)]
        insert_all(tx, notice, rows, type=kind, model=model, at=tx.now)
        subscriptions = configuration.in_force(tx).catalog.subscriptions
        wanted = [one.name for one in subscriptions if notices.matches(one, kind, model)]
        sends = [_to(name, sequence) for sequence in sequences for name in wanted]
        insert_all(tx, delivery, sends, state=DeliveryState.PENDING, due_at=tx.now, attempts=0)
        return sequences


def _row(sequence: int, told: Told) -> dict[str, Any]:
    return {
        "sequence": sequence,
        "event_id": str(uuid.uuid4()),
        "subject": told.subject,
        "run_id": told.data.get("run"),
        "data": told.data,
        "traceparent": told.traceparent,
    }


def _to(subscription: str, sequence: int) -> dict[str, Any]:
    return {"id": f"msg_{uuid.uuid4().hex}", "sequence": sequence, "subscription": subscription}


def _next(tx: Transaction, name: str, count: int) -> range:
    """So many numbers more, which nobody else is given."""
    last = tx.execute(_COUNT, {"named": name, "more": count}).scalar()
    if last is None:
        tx.lock(f"counter {name}")
        if tx.execute(select(counter.c.name).where(counter.c.name == name)).first() is not None:
            return _next(tx, name, count)
        last = count
        tx.execute(insert(counter).values(name=name, value=last))
    return range(last - count + 1, last + 1)


_COUNT = (
    update(counter)
    .where(counter.c.name == bindparam("named"))
    .values(value=counter.c.value + bindparam("more"))
    .returning(counter.c.value)
)


@dataclass(frozen=True)
class Sending:
    """One claimed delivery: what is to be sent where, and how often it was tried before."""

    id: str
    attempts: int
    subscription: Subscription
    notice: notices.Notice


@transition
def claim_due(tx: Transaction, lease: timedelta, limit: int, busy: Sequence[str] = ()) -> list[Sending]:
    """Lease up to `limit` due deliveries, none to a subscription in `busy`, so that a hanging consumer holds up no other.

    A lease that ran out is taken again. A delivery to a subscription that was taken out of the configuration ends as failed.

    delivery: pending → same | failed
    By: the bridge
    Fence: due, and nobody's lease
    Again: takes others
    """
    known = {one.name: one for one in configuration.in_force(tx).catalog.subscriptions}
    rows = tx.execute(
        select(delivery, notice)
        .join(notice, notice.c.sequence == delivery.c.sequence)
        .where(
            delivery.c.state == DeliveryState.PENDING,
            delivery.c.due_at <= tx.now,
            or_(delivery.c.lease_until.is_(None), delivery.c.lease_until < tx.now),
            delivery.c.subscription.not_in(busy),
        )
        .order_by(delivery.c.due_at, delivery.c.sequence)
        .limit(limit)
        .with_for_update(of=delivery, skip_locked=True)  # another bridge takes others
    ).all()
    claimed = []
    for row in rows:
        if row.subscription not in known:
            _end(tx, row.id, DeliveryState.FAILED, None, "the subscription is no longer in the configuration")
            continue
        tx.execute(update(delivery).where(delivery.c.id == row.id).values(lease_until=tx.now + lease))
        claimed.append(Sending(row.id, row.attempts, known[row.subscription], _notice(row)))
    return claimed


@transition
def keep(tx: Transaction, ids: Sequence[str], lease: timedelta) -> None:
    """Keep the deliveries that wait behind another one of theirs.

    delivery: pending → same
    By: the bridge that has claimed them
    Fence: state
    Again: the lease is counted from the later call
    """
    if ids:
        mine = (delivery.c.id.in_(ids), delivery.c.state == DeliveryState.PENDING)
        tx.execute(update(delivery).where(*mine).values(lease_until=tx.now + lease))


@transition
def delivered(tx: Transaction, id: str, answer: int) -> None:
    """The consumer has it.

    delivery: pending → delivered
    By: the bridge that has sent it
    Fence: state
    Again: changes nothing
    """
    _end(tx, id, DeliveryState.DELIVERED, answer, None)


@transition
def undelivered(tx: Transaction, id: str, answer: int | None, error: str, again_in: timedelta | None) -> None:
    """Due later; where `again_in` is None, failed for good (kept, replayable).

    delivery: pending → same | failed
    By: the bridge that has tried it
    Fence: state
    Again: counts another try; of one that has ended, changes nothing
    """
    if again_in is None:
        _end(tx, id, DeliveryState.FAILED, answer, error)
        return
    tx.execute(
        update(delivery)
        .where(delivery.c.id == id, delivery.c.state == DeliveryState.PENDING)
        .values(
            due_at=tx.now + again_in, lease_until=None, attempts=delivery.c.attempts + 1, answer=answer, error=error
        )
    )


def _end(tx: Transaction, id: str, state: DeliveryState, answer: int | None, error: str | None) -> None:
    check(DeliveryState.PENDING, state)
    tx.execute(
        update(delivery)
        .where(delivery.c.id == id, delivery.c.state == DeliveryState.PENDING)
        .values(
            state=state,
            lease_until=None,
            due_at=None,
            attempts=delivery.c.attempts + 1,
            answer=answer,
            error=error,
            ended_at=tx.now,
        )
    )


@transition
def replay(tx: Transaction, id: str, by: str = history.HEADRACE) -> None:
    """Send it once more, at once; raises `NotFound` or `Conflict`.

    delivery: failed → pending
    By: a person, over REST
    Fence: state
    Again: refused, as `Conflict`
    """
    row = find(tx, id)
    if row.state != DeliveryState.FAILED:
        raise Conflict(f"delivery {id} is {row.state}; only a failed one can be replayed")
    tx.execute(
        update(delivery)
        .where(delivery.c.id == id)
        .values(state=DeliveryState.PENDING, due_at=tx.now, attempts=0, ended_at=None)
    )
    before, after = {"state": row.state, "error": row.error}, {"state": DeliveryState.PENDING}
    history.note(tx, "replay", f"delivery {id}", by, model=row.model, before=before, after=after)


def next_due(tx: Transaction, busy: Sequence[str] = ()) -> datetime | None:
    """When the next delivery is due that nobody sends, to a subscription that is not in `busy`."""
    waiting = (delivery.c.state == DeliveryState.PENDING, delivery.c.subscription.not_in(busy))
    due: datetime | None = tx.execute(
        select(func.min(func.coalesce(delivery.c.lease_until, delivery.c.due_at))).where(*waiting)
    ).scalar()
    return due


def read(
    tx: Transaction, after: int, limit: int, types: Sequence[str] = (), models: Sequence[str] = ()
) -> list[notices.Notice]:
    """Notices with a sequence number above `after`, in order."""
    query = select(notice).where(notice.c.sequence > after)
    if types:
        query = query.where(notice.c.type.in_(types))
    if models:
        query = query.where(notice.c.model.in_(models))
    return [_notice(row) for row in tx.execute(query.order_by(notice.c.sequence).limit(limit))]


def newest(tx: Transaction) -> int:
    """The sequence number of the newest notice; 0 before the first."""
    return int(tx.execute(select(func.coalesce(func.max(notice.c.sequence), 0))).scalar_one())


def _rows() -> Any:
    return select(delivery, notice.c.type, notice.c.model).join(notice, notice.c.sequence == delivery.c.sequence)


def of_run(tx: Transaction, run_id: int) -> list[Any]:
    """Deliveries of every notice about a run or its version, oldest first."""
    return list(tx.execute(_rows().where(notice.c.run_id == run_id).order_by(delivery.c.sequence, delivery.c.id)))


def find(tx: Transaction, id: str) -> Any:
    """One delivery; raises `NotFound`."""
    row = tx.execute(_rows().where(delivery.c.id == id)).first()
    if row is None:
        raise NotFound(f"there is no delivery {id}")
    return row


def find_all(tx: Transaction, *, state: str | None, subject: str | None, after: Any, limit: int) -> list[Any]:
    """Newest notice first, behind the row `after`."""
    query = _rows().order_by(delivery.c.sequence.desc(), delivery.c.id).limit(limit)
    if state is not None:
        query = query.where(delivery.c.state == state)
    if subject is not None:
        query = query.where(notice.c.subject == subject)
    if after is not None:
        same = and_(delivery.c.sequence == after.sequence, delivery.c.id > after.id)
        query = query.where(or_(delivery.c.sequence < after.sequence, same))
    return list(tx.execute(query))


def count(tx: Transaction) -> dict[str, int]:
    return {
        state: number for state, number in tx.execute(select(delivery.c.state, func.count()).group_by(delivery.c.state))
    }


def _notice(row: Any) -> notices.Notice:
    return notices.Notice(
        id=row.event_id,
        type=NoticeType(row.type),
        subject=row.subject,
        time=row.at,
        sequence=row.sequence,
        traceparent=row.traceparent,
        data=row.data,
    )
