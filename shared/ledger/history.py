"""What people and tokens did: one row each, written with what they did, and never changed (the database refuses it)."""

from __future__ import annotations

from typing import Any

from sqlalchemy import insert, select

from shared.ledger.session import Transaction
from shared.ledger.tables import history

HEADRACE = "headrace"
"""The actor of what nobody asked for, such as an automatic promotion."""


def note(
    tx: Transaction,
    action: str,
    subject: str,
    by: str,
    reason: str = "",
    *,
    model: str | None = None,
    before: dict[str, Any] | None = None,
    after: dict[str, Any] | None = None,
) -> None:
    """Part of the transition that does it. `before` and `after` say what changed, and hold no secret: they are read with the scope `read`."""
    values = {"action": action, "subject": subject, "actor": by, "reason": reason, "model": model}
    tx.execute(insert(history).values(at=tx.now, before=before, after=after, **values))


def find_all(tx: Transaction, *, model: str | None, before: int | None, limit: int) -> list[Any]:
    """Newest first, with an id below `before`."""
    query = select(history).order_by(history.c.id.desc()).limit(limit)
    if model is not None:
        query = query.where(history.c.model == model)
    return list(tx.execute(query if before is None else query.where(history.c.id < before)))
