"""What attempts have used and how long they took: summed per model, and as an estimate of what is left."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import func, select

from shared import estimate
from shared.ledger import attempts
from shared.ledger.session import Transaction
from shared.ledger.tables import attempt, run
from shared.lifecycle import RunState

LAST = 5


@dataclass(frozen=True)
class Total(attempts.Used):
    """Sums, and the highest peak of memory; of attempts whose worker was lost nothing is known."""

    attempts: int


def by_model(tx: Transaction, *models: str) -> dict[str, Total]:
    """For each of these models that was ever trained."""
    sums = [func.sum(column) for column in (attempt.c.cpu_s, attempt.c.gpu_s)]
    bytes_moved = [func.sum(column) for column in (attempt.c.read_bytes, attempt.c.written_bytes)]
    query = select(run.c.model, *sums, func.max(attempt.c.memory_bytes), *bytes_moved, func.count())
    query = query.join(run, run.c.id == attempt.c.run_id).where(attempt.c.cpu_s.is_not(None), run.c.model.in_(models))
    return {
        name: Total(cpu_s, gpu_s, int(memory), int(read), int(written), number)
        for name, cpu_s, gpu_s, memory, read, written, number in tx.execute(query.group_by(run.c.model))
    }


def left_s(tx: Transaction, row: Any) -> float | None:
    """How long a run will still train, as far as that can be said; None for one that does not train."""
    if row.state != RunState.RUNNING:
        return None
    elapsed_s = (tx.now - attempts.of_run(tx, row.id)[-1].started_at).total_seconds()
    progress = row.progress if row.token == 1 else None  # a later attempt may go on from what an earlier one has done
    return estimate.left_s(elapsed_s, progress, _durations_s(tx, row))


def _durations_s(tx: Transaction, of: Any) -> list[float]:
    """Of the attempts that trained the model's newest runs on as much data."""
    alike = run.c.sample == of.sample if of.sample is not None else run.c.sample.is_(None)
    query = select(attempt.c.started_at, attempt.c.ended_at).join(run, run.c.id == attempt.c.run_id)
    query = (
        query.where(run.c.model == of.model, alike, attempt.c.outcome == "trained")
        .order_by(run.c.id.desc())
        .limit(LAST)
    )
    return [(row.ended_at - row.started_at).total_seconds() for row in tx.execute(query)]
