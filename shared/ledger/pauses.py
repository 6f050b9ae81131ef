"""Models whose runs fail one after the other: after so many nothing is trained of itself until a person, a new release or a good run ends the pause."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import select, update

from shared.ledger import configuration, deliveries
from shared.ledger.session import Transaction
from shared.ledger.tables import model
from shared.lifecycle import RunState
from shared.notices import NoticeType


@dataclass(frozen=True)
class Pause:
    """Since when, and how many runs in a row have failed by now."""

    since: datetime
    failed: int


def of(tx: Transaction, name: str) -> Pause | None:
    row = tx.execute(select(model.c.paused_at, model.c.failed).where(model.c.name == name)).first()
    return Pause(row.paused_at, row.failed) if row is not None and row.paused_at is not None else None


def end(tx: Transaction, name: str) -> None:
    """Count from nothing again."""
    tx.execute(update(model).where(model.c.name == name).values(failed=None, paused_at=None))


def count(tx: Transaction, run: Any, state: RunState, error: dict[str, Any] | None) -> None:
    """Part of a run's end: the count goes up or back to nothing, and the pause that begins with it is told. A run on a sample says nothing of the others."""
    if run.sample is not None:
        return
    if state is RunState.TRAINED:
        end(tx, run.model)
    if state is not RunState.FAILED:
        return
    row = tx.execute(select(model.c.failed, model.c.paused_at).where(model.c.name == run.model)).first()
    if row is None:
        return
    failed = (row.failed or 0) + 1
    tx.execute(update(model).where(model.c.name == run.model).values(failed=failed))
    config = configuration.in_force(tx).catalog.models.get(run.model)
    if config is None or not config.pause_after or failed < config.pause_after or row.paused_at is not None:
        return
    tx.execute(update(model).where(model.c.name == run.model).values(paused_at=tx.now))
    said = {"kind": error["kind"], "message": error["message"].partition("\n")[0]} if error else {}
    data = {"model": run.model, "run": run.id, "failed": failed, **said, "advice": advice(run.model)}
    deliveries.tell(tx, NoticeType.MODEL_PAUSED, run.model, run.model, data, run.traceparent)


def advice(name: str) -> str:
    return f"mend it and tag a new release, or let it go on with `headrace resume {name}`"
