"""What a worker may do to a run: claim it, keep it, end it. Every write after the claim is fenced by the claim's token (I5)."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import insert, select, update

from shared import catalog, policy
from shared.cuts import Cut
from shared.errors import Fenced, NotFound
from shared.ledger import configuration, planning, releases, runs, samples, unchanged, versions
from shared.ledger.releases import Release
from shared.ledger.session import Transaction
from shared.ledger.tables import attempt, run
from shared.ledger.transitions import transition
from shared.lifecycle import RunState


@dataclass(frozen=True)
class Trained:
    """A trained run as a subject of scoring: where its code and its bundle are, and what it was trained on."""

    run: int
    release: Release
    bundle: str | None  # None: tidied away
    cut: dict[str, Cut]


@dataclass(frozen=True)
class Checkpoint:
    """Something to go on from, that an attempt of the run has left in the blob store."""

    sha256: str
    size_bytes: int
    attempt: int
    at: datetime

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "at": self.at.isoformat()}

    @classmethod
    def from_json(cls, told: dict[str, Any]) -> Checkpoint:
        return cls(told["sha256"], told["size_bytes"], told["attempt"], datetime.fromisoformat(told["at"]))


@dataclass(frozen=True)
class Claim:
    """One attempt's right to a run, with all that it needs; the token is its fence."""

    run: int
    token: int
    model: catalog.Model
    release: Release
    cut: dict[str, Cut]
    cut_digest: str
    datasets: dict[str, catalog.Dataset]
    champion: Trained | None
    traceparent: str | None
    checkpoint: Checkpoint | None
    gpus: int  # that its compute class gives it


@dataclass(frozen=True)
class Used:
    """What an attempt has used, with all the processes that it started. `memory_bytes`: at its peak; GPU seconds: of those that it had."""

    cpu_s: float
    gpu_s: float
    memory_bytes: int
    read_bytes: int
    written_bytes: int


@dataclass(frozen=True)
class Failure:
    """Why an attempt ended without a model. `transient`: trying again may help."""

    kind: str
    message: str
    advice: str = ""
    transient: bool = False

    def to_json(self) -> dict[str, Any]:
        return {"kind": self.kind, "message": _readable(self.message), "advice": self.advice}


def _readable(text: str) -> str:
    """An author's words may hold halves of characters and NULs, which neither a database nor a notice can carry."""
    return text.encode(errors="replace").decode().replace("\0", "?")


@transition
def claim(tx: Transaction, id: int, worker: str, lease: timedelta) -> Claim | None:
    """One worker gets the run; None if there is nothing to claim.

    The first claim freezes release and cut. A run that has lost three workers is not claimed again: it fails. One that has become
    pointless, that would train what the newest run has trained, or that a person wants to stop, is cancelled.

    run: waiting | retrying | running → running | cancelled; running → failed
    By: a trainer with a free slot
    Fence: due, or the lease has run out; the token rises by one
    Again: a message that comes twice or late finds the run taken
    """
    try:
        row = runs.hold(tx, id)
    except NotFound:
        return None
    if not _may_claim(tx, row):
        return None
    if row.state == RunState.RUNNING and _bury(tx, row):
        return None
    release = releases.find(tx, row.release_id)
    if (gone := _gone(tx, row.model, release)) is not None:
        planning.call_off(tx, row, gone)
        return None
    values = _freeze(tx, row, release) if row.cut is None else {}
    repeats = bool(values) and not row.again and row.sample is None
    if repeats and (same := unchanged.trained(tx, row.model, release, values["cut_digest"])):
        advice = f"`headrace retrain {row.model} --again` trains anyway"
        planning.call_off(tx, row, unchanged.SENTENCE.format(run=same), "unchanged", advice)
        return None
    token = row.token + 1
    taken = tx.execute(
        update(run)
        .where(run.c.id == id)
        .values(
            state=RunState.RUNNING,
            token=token,
            lease_owner=worker,
            lease_until=tx.now + lease,
            due_at=None,
            sentence="",
            lost=row.lost + (row.state == RunState.RUNNING),
            started_at=row.started_at or tx.now,
            progress=None,
            progress_note=None,
            error=None,
            **values,
        )
        .returning(run)
    ).one()
    tx.execute(insert(attempt).values(run_id=id, number=token, worker=worker, started_at=tx.now))
    return _claim(
        tx, taken
    )  # what the waiting run waits for has not changed: the model was busy with this one, or has no other


def _freeze(tx: Transaction, row: Any, release: Release) -> dict[str, Any]:
    return unchanged.freeze(tx, release) if row.sample is None else samples.freeze(tx, release, row.sample)


def _may_claim(tx: Transaction, row: Any) -> bool:
    if row.state in (RunState.WAITING, RunState.RETRYING):
        return row.due_at is not None and row.due_at <= tx.now
    return bool(row.state == RunState.RUNNING and row.lease_until < tx.now)


def _bury(tx: Transaction, row: Any) -> bool:
    """Close the attempt of a worker that went silent; True if the run ends with it."""
    lost = Failure("lost_worker", f"{row.lease_owner} went silent", "look at the log and the memory of that worker")
    _close(tx, row.id, row.token, "lost", lost.to_json(), None)
    if row.cancel_reason is not None:
        planning.call_off(tx, row, row.cancel_reason)
        return True
    if row.lost + 1 >= policy.LOST_WORKERS:
        error = Failure(
            "lost_worker",
            f"{policy.LOST_WORKERS} workers were lost while they trained it",
            "look at the log and the memory of the workers, then `headrace retry`",
        )
        planning.end(tx, row, RunState.FAILED, error.to_json(), lost=row.lost + 1)
        return True
    return False


def _gone(tx: Transaction, model: str, release: Release) -> str | None:
    """Why the run has become pointless, if the operator has taken away what it is about."""
    if model not in configuration.in_force(tx).catalog.models:
        return "the model is no longer in the configuration"
    missing = planning.missing(tx, release.declaration.datasets)
    return f"dataset {', '.join(missing)} is no longer in the configuration" if missing else None


def _claim(tx: Transaction, row: Any) -> Claim:
    config = configuration.in_force(tx).catalog
    release = releases.find(tx, row.release_id)
    champion = versions.champion(tx, row.model) if row.sample is None else None  # with which no sample is compared
    return Claim(
        run=row.id,
        token=row.token,
        model=config.models[row.model],
        release=release,
        cut=_cut(row),
        cut_digest=row.cut_digest,
        datasets={name: config.datasets[name] for name in release.declaration.datasets},
        champion=trained(tx, champion.run_id) if champion is not None else None,
        traceparent=row.traceparent,
        checkpoint=Checkpoint.from_json(row.checkpoint) if row.checkpoint is not None else None,
        gpus=asked.gpus if (asked := config.compute_classes.get(row.compute_class)) is not None else 0,
    )


def trained(tx: Transaction, id: int) -> Trained:
    """A trained run as a subject of scoring; raises `NotFound`."""
    row = runs.find(tx, id)
    return Trained(id, releases.find(tx, row.release_id), row.bundle, _cut(row))


def _cut(row: Any) -> dict[str, Cut]:
    return {name: Cut.from_json(part) for name, part in row.cut.items()}


@transition
def beat(
    tx: Transaction, id: int, token: int, lease: timedelta, progress: float | None = None, note: str | None = None,
    metrics: dict[str, list[list[float]]] | None = None,
) -> str | None:  # fmt: skip
    """Keep the lease and tell the progress (0 to 1) and the metrics by step; returns why a person wants the run to stop, if so. Raises `Fenced`.

    run: running → same
    By: the trainer that holds it
    Fence: token
    Again: the lease is counted from the later call
    """
    values: dict[str, Any] = {"lease_until": tx.now + lease}
    if progress is not None:
        values |= {"progress": progress, "progress_note": note}
    mine = (run.c.id == id, run.c.token == token, run.c.state == RunState.RUNNING)
    told = tx.execute(update(run).where(*mine).values(**values).returning(run.c.cancel_reason)).first()
    if told is None:
        raise Fenced(f"run {id} is no longer held by claim {token}")
    if metrics is not None:
        of_claim = (attempt.c.run_id == id, attempt.c.number == token)
        tx.execute(update(attempt).where(*of_claim).values(metrics=metrics))
    reason: str | None = told.cancel_reason
    return reason


@transition
def checkpoint(tx: Transaction, id: int, token: int, sha256: str, size_bytes: int) -> Checkpoint:
    """The blob is what a later attempt goes on from, in place of the one before. Raises `Fenced`.

    run: running → same
    By: the trainer that holds it
    Fence: token
    Again: the same one stays
    """
    kept = Checkpoint(sha256, size_bytes, token, tx.now)
    _fenced_update(tx, id, token, {"checkpoint": kept.to_json()})
    return kept


@transition
def finish(
    tx: Transaction, id: int, token: int, bundle: str, seconds: dict[str, float], used: Used | None = None
) -> None:
    """The bundle counts from here on, and the waiting run may become due. Raises `Fenced`.

    run: running → trained
    By: the trainer that holds it
    Fence: token
    Again: refused, as `Fenced`
    """
    row = owned(tx, id, token)
    _close(tx, id, token, "trained", None, seconds, used)
    planning.end(tx, row, RunState.TRAINED, None, bundle=bundle, progress=1.0)


@transition
def fail(
    tx: Transaction, id: int, token: int, failure: Failure, seconds: dict[str, float], used: Used | None = None
) -> RunState:
    """What is transient and has attempts left is tried again after a pause; else the run has failed. Raises `Fenced`.

    A run that is to stop becomes cancelled instead of being tried again.

    run: running → retrying | failed | cancelled
    By: the trainer that holds it
    Fence: token
    Again: refused, as `Fenced`
    """
    row = owned(tx, id, token)
    error = failure.to_json()
    _close(tx, id, token, "failed", error, seconds, used)
    config = configuration.in_force(tx).catalog.models.get(row.model)
    failures = row.failures + 1
    if not failure.transient or config is None or failures >= config.attempts:
        planning.end(tx, row, RunState.FAILED, error, failures=failures)
        return RunState.FAILED
    sentence = f"tries again after {failure.kind}: {error['message']}"
    return _hand_over(tx, row, policy.retry_after(failures), sentence, failures=failures, error=error)


@transition
def hand_back(
    tx: Transaction, id: int, token: int, why: str, seconds: dict[str, float], used: Used | None = None
) -> None:
    """Leave the run to others, due at once, without counting as a failure. Raises `Fenced`.

    run: running → retrying | cancelled
    By: the trainer that holds it, when it is asked to leave
    Fence: token
    Again: refused, as `Fenced`
    """
    row = owned(tx, id, token)
    _close(tx, id, token, "handed_back", {"kind": "handed_back", "message": why}, seconds, used)
    _hand_over(tx, row, timedelta(0), f"was handed back: {why}")


@transition
def cancelled(tx: Transaction, id: int, token: int, seconds: dict[str, float], used: Used | None = None) -> None:
    """The worker has stopped the child. Raises `Fenced`.

    run: running → cancelled
    By: the trainer that holds it, when it was told to stop
    Fence: token
    Again: refused, as `Fenced`
    """
    row = owned(tx, id, token)
    error = {
        "kind": "cancelled",
        "message": row.cancel_reason or "cancelled",
        "advice": "retry it with `headrace retry`",
    }
    _close(tx, id, token, "cancelled", error, seconds, used)
    planning.end(tx, row, RunState.CANCELLED, error)


def _hand_over(tx: Transaction, row: Any, pause: timedelta, sentence: str, **values: Any) -> RunState:
    """Leave the run to the next claim, unless a person wants it to stop."""
    if row.cancel_reason is not None:
        planning.call_off(tx, row, row.cancel_reason)
        return RunState.CANCELLED
    values |= {
        "state": RunState.RETRYING,
        "due_at": tx.now + pause,
        "sentence": sentence,
        "lease_owner": None,
        "lease_until": None,
    }
    _fenced_update(tx, row.id, row.token, values)
    return RunState.RETRYING


def owned(tx: Transaction, id: int, token: int) -> Any:
    """The run, if this claim is its newest and still running; raises `Fenced`."""
    row = runs.hold(tx, id)
    if row.token != token or row.state != RunState.RUNNING:
        raise Fenced(f"run {id} is no longer held by claim {token}")
    return row


def _fenced_update(tx: Transaction, id: int, token: int, values: dict[str, Any]) -> None:
    mine = (run.c.id == id, run.c.token == token, run.c.state == RunState.RUNNING)
    if not tx.execute(update(run).where(*mine).values(**values)).rowcount:
        raise Fenced(f"run {id} is no longer held by claim {token}")


def _close(
    tx: Transaction, id: int, token: int, outcome: str, error: dict[str, Any] | None, seconds: dict[str, float] | None,
    used: Used | None = None,
) -> None:  # fmt: skip
    tx.execute(
        update(attempt)
        .where(attempt.c.run_id == id, attempt.c.number == token, attempt.c.ended_at.is_(None))
        .values(ended_at=tx.now, outcome=outcome, error=error, seconds=seconds, **(asdict(used) if used else {}))
    )


def of_run(tx: Transaction, id: int) -> list[Any]:
    return list(tx.execute(select(attempt).where(attempt.c.run_id == id).order_by(attempt.c.number)))
