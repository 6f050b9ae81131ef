"""What came in over the stream and could not be read: kept with its reason, the newest thousand, until someone has looked."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from sqlalchemy import delete, func, insert, select

from shared.ledger.session import Transaction
from shared.ledger.tables import rejection
from shared.ledger.transitions import transition

KEPT = 1000
MAX_EXCERPT = 2000
MAX_REASON = 4000
MAX_SOURCE = 256

_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")


@dataclass(frozen=True)
class Rejected:
    """An entry of the stream that is no report; `source` is the sender's own word for itself, where one could be read."""

    entry: str
    source: str | None
    reason: str
    excerpt: str


@transition
def note(tx: Transaction, told: Rejected) -> None:
    """Keep it, and forget what is older than the newest thousand.

    rejection: none → kept; kept → none
    By: the watcher, from the stream
    Fence: the entry's id
    Again: takes the place of the first
    """
    tx.lock("rejections")
    tx.execute(delete(rejection).where(rejection.c.entry == told.entry))
    values = {
        "entry": told.entry,
        "source": storable(told.source, MAX_SOURCE) if told.source is not None else None,
        "reason": storable(told.reason, MAX_REASON),
        "excerpt": storable(told.excerpt, MAX_EXCERPT),
        "at": tx.now,
    }
    tx.execute(insert(rejection).values(**values))
    oldest = select(rejection.c.id).order_by(rejection.c.id.desc()).offset(KEPT).limit(1).scalar_subquery()
    tx.execute(delete(rejection).where(rejection.c.id <= oldest))


def find_all(tx: Transaction, *, before: int | None, limit: int) -> list[Any]:
    """Newest first, with an id below `before`."""
    query = select(rejection).order_by(rejection.c.id.desc()).limit(limit)
    return list(tx.execute(query if before is None else query.where(rejection.c.id < before)))


def count(tx: Transaction) -> int:
    """Of those that are kept."""
    return int(tx.execute(select(func.count()).select_from(rejection)).scalar_one())


def storable(text: str, longest: int) -> str:
    """The beginning of the text, without what no database takes: NUL and half characters."""
    return _UNSTORABLE.sub("\ufffd", text[:longest])
