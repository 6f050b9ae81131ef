"""What a ledger that was restored from an older copy needs, so that nothing that happened since is taken for something else."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import select, update

from shared.ledger import history, numbering, planning, runs
from shared.ledger.session import Transaction
from shared.ledger.tables import attempt, run, version
from shared.ledger.tables import history as history_rows
from shared.ledger.transitions import transition
from shared.lifecycle import UNFINISHED, RunState

RESTORE = "restore"
WHY = "the ledger was restored from a copy; what became of this run since is not known"


@dataclass(frozen=True)
class Anew:
    """From which number on runs, arrivals and notices are numbered, and which runs gave way to which new ones."""

    above: int
    cancelled: tuple[int, ...]
    planned: tuple[int, ...]


def lifts(tx: Transaction) -> set[int]:
    """Above which numbers each restore began: what is missing just below was never given, or is lost with the ledger that gave way."""
    told = select(history_rows.c.after).where(history_rows.c.action == RESTORE)
    return {after["numbers above"] for after in tx.execute(told).scalars()}


@transition
def begin_anew(tx: Transaction, by: str, reason: str = "") -> Anew:
    """Give new numbers from here on, and put a new run in the place of each that was open in the copy.

    Whoever still holds one of those, or one that the copy does not know, is fenced. A trained run without a version is registered
    again, or found registered, since its bundle is the same.

    run: waiting | retrying | running → cancelled; none → waiting; trained → same
    By: the operator, on the command line, while nothing else runs
    Fence: all open claims and registrations are void afterwards
    Again: begins anew once more
    """
    above = numbering.lift(tx)
    open_ = select(run).where(run.c.state.in_(UNFINISHED)).order_by(run.c.state == RunState.RUNNING, run.c.id)
    rows = tx.execute(open_).all()
    tx.hold_models(*(row.model for row in rows))
    left = update(attempt).where(attempt.c.run_id.in_([row.id for row in rows]), attempt.c.ended_at.is_(None))
    tx.execute(left.values(ended_at=tx.now, outcome="lost", error={"kind": "lost_worker", "message": WHY}))
    for row in rows:
        if (
            runs.find(tx, row.id).state in UNFINISHED
        ):  # else it went with one of its model that is not configured any more
            planning.call_off(tx, row, WHY)
    again = "the ledger was restored"
    open_runs = dict.fromkeys((row.model, row.sample) for row in rows)
    planned = [planning.plan(tx, model, again, asked=True, sample=sample) for model, sample in open_runs]
    unregistered = ~select(version.c.id).where(version.c.run_id == run.c.id).exists()
    trained = update(run).where(run.c.state == RunState.TRAINED, unregistered)
    tx.execute(trained.values(registrations=run.c.registrations + numbering.STEP, registration_lease=None))
    new = tuple(dict.fromkeys(id for id in planned if id is not None))
    done = Anew(above, tuple(row.id for row in rows), new)
    after = {"numbers above": above, "cancelled runs": list(done.cancelled), "planned runs": list(done.planned)}
    history.note(tx, RESTORE, "ledger", by, reason, after=after)
    return done
