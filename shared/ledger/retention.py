"""What the janitor may do to the ledger: take its turn, mark what is taken before any byte goes, and forget old news. And pins.

Rows of runs, arrivals, attempts, versions, verdicts and promotions stay for ever: they are small, and fates (I3) and history need them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import and_, delete, exists, func, insert, or_, select, update

from shared.errors import Conflict, Fenced
from shared.ledger import history, versions
from shared.ledger.session import Transaction
from shared.ledger.tables import delivery, notice, promotion, report, run, score, tidying, version
from shared.ledger.transitions import transition
from shared.lifecycle import DeliveryState, RunState, VersionState
from shared.retention import TAKEN, Run, Version

_PROMOTED = exists().where(promotion.c.version_id == version.c.id)
_WANTED = exists().where(score.c.run_id == run.c.id, score.c.scored_at.is_(None))


# The janitor's turn: one at a time among all bridges.


def last(tx: Transaction) -> Any:
    """The newest turn, as a row; None before the first."""
    return tx.execute(select(tidying).order_by(tidying.c.id.desc()).limit(1)).first()


def last_ended(tx: Transaction) -> Any:
    """The newest turn that has ended, as a row."""
    return tx.execute(
        select(tidying).where(tidying.c.ended_at.is_not(None)).order_by(tidying.c.id.desc()).limit(1)
    ).first()


def is_due(tx: Transaction, keep: Mapping[str, Any], every: timedelta, again_after: timedelta) -> bool:
    """Whether nobody tidies now, and the last turn is long ago, has failed, or went by other rules."""
    row = last(tx)
    if row is None:
        return True
    if row.ended_at is None:
        return bool(row.lease_until < tx.now)
    pause = again_after if row.error is not None else every
    return dict(row.keep) != dict(keep) or row.started_at <= tx.now - pause


@transition
def begin(tx: Transaction, owner: str, keep: Mapping[str, Any], lease: timedelta, by: str | None = None) -> int | None:
    """Open a turn; None while another janitor has one. A turn whose lease ran out is closed as lost: what it left is taken up.

    `by` is the person who wants it now.

    tidying: none → begun; begun → ended
    By: the bridge; the operator, on the command line
    Fence: no live turn; the number is the last one's plus one
    Again: None while the turn lives
    """
    tx.lock("tidying")
    row = last(tx)
    if row is not None and row.ended_at is None:
        if row.lease_until >= tx.now:
            return None
        _close(tx, row.id, row.taken, f"{row.owner} went silent")
    id = row.id + 1 if row is not None else 1
    opened = insert(tidying).values(id=id, owner=owner, keep=dict(keep), started_at=tx.now, lease_until=tx.now + lease)
    tx.execute(opened)
    if by is not None:
        history.note(tx, "tidy", f"turn {id} of the janitor", by, after={"keep": dict(keep)})
    return id


@transition
def renew(tx: Transaction, id: int, lease: timedelta) -> None:
    """Keep the turn; raises `Fenced` when it has passed to another janitor.

    tidying: begun → begun
    By: the bridge whose turn it is
    Fence: the turn's number
    Again: the lease is counted from the later call
    """
    mine = (tidying.c.id == id, tidying.c.ended_at.is_(None))
    if not tx.execute(update(tidying).where(*mine).values(lease_until=tx.now + lease)).rowcount:
        raise Fenced(f"the janitor's turn {id} has passed to another bridge")


@transition
def end(tx: Transaction, id: int, taken: Mapping[str, Any], error: str | None) -> None:
    """Close the turn with what it took.

    tidying: begun → ended
    By: the bridge whose turn it is
    Fence: the turn's number
    Again: changes nothing
    """
    _close(tx, id, taken, error)


def _close(tx: Transaction, id: int, taken: Any, error: str | None) -> None:
    open_ = (tidying.c.id == id, tidying.c.ended_at.is_(None))
    tx.execute(update(tidying).where(*open_).values(ended_at=tx.now, taken=taken, error=error))


# Runs and versions: the ledger says first that something is taken, then its bytes go.


def models(tx: Transaction) -> list[str]:
    """Every model that has a trained run, also those that are no longer in the configuration."""
    found = select(run.c.model).where(run.c.state == RunState.TRAINED).distinct().order_by(run.c.model)
    return list(tx.execute(found).scalars())


def trained(tx: Transaction, model: str, below: int | None, limit: int) -> list[Run]:
    """Trained runs of the model that have a bundle or a version with files, newest first, with an id below `below`."""
    query = (
        select(run, version.c.id.label("version_id"), version.c.number, version.c.state.label("version_state"))
        .add_columns(version.c.pinned_at, version.c.tidied_at.label("version_tidied_at"))
        .add_columns(_PROMOTED.label("promoted"), _WANTED.label("wanted"))
        .outerjoin(version, version.c.run_id == run.c.id)
        .where(run.c.model == model, run.c.state == RunState.TRAINED)
        .where(or_(run.c.bundle.is_not(None), and_(version.c.id.is_not(None), version.c.tidied_at.is_(None))))
        .order_by(run.c.id.desc())
        .limit(limit)
    )
    return [_run(row) for row in tx.execute(query.where(run.c.id < below) if below is not None else query)]


def _run(row: Any) -> Run:
    found = None
    if row.version_id is not None:
        pinned, tidied = row.pinned_at is not None, row.version_tidied_at is not None
        found = Version(row.number, VersionState(row.version_state), bool(row.promoted), pinned, tidied)
    return Run(row.id, row.finished_at, found, row.bundle is not None, bool(row.wanted))


@transition
def take_files(tx: Transaction, runs: Iterable[int]) -> int:
    """Mark the versions of these runs as tidied; how many were. One that was pinned meanwhile, or that no rule may take, is left.

    version: rejected | sample → same
    By: the bridge whose turn it is
    Fence: never promoted, not pinned, not tidied
    Again: takes none
    """
    free = (version.c.state.in_(TAKEN), version.c.pinned_at.is_(None), version.c.tidied_at.is_(None))
    mine = update(version).where(version.c.run_id.in_(list(runs)), *free, ~_PROMOTED)
    return int(tx.execute(mine.values(tidied_at=tx.now)).rowcount)


@transition
def take_bundles(tx: Transaction, runs: Iterable[int]) -> int:
    """Let these runs' bundles go; how many did. Only where the version's files have gone before, and nobody wants a score.

    run: trained → same
    By: the bridge whose turn it is
    Fence: the version's files have gone, and no score is wanted
    Again: takes none
    """
    gone = exists().where(version.c.run_id == run.c.id, version.c.tidied_at.is_not(None))
    mine = update(run).where(run.c.id.in_(list(runs)), run.c.state == RunState.TRAINED, gone, ~_WANTED)
    return int(tx.execute(mine.where(run.c.bundle.is_not(None)).values(bundle=None, tidied_at=tx.now)).rowcount)


def unremoved(tx: Transaction, after: int, limit: int) -> list[Any]:
    """Versions that are tidied and that MLflow still has, oldest first."""
    query = select(version).where(
        version.c.tidied_at.is_not(None), version.c.removed_at.is_(None), version.c.id > after
    )
    return list(tx.execute(query.order_by(version.c.id).limit(limit)))


@transition
def removed(tx: Transaction, version_id: int) -> None:
    """MLflow has let go of it.

    version: rejected | sample → same
    By: the bridge whose turn it is
    Fence: none; it only tells
    Again: the later time stays
    """
    tx.execute(update(version).where(version.c.id == version_id).values(removed_at=tx.now))


def named(tx: Transaction, after: tuple[int, int], limit: int) -> tuple[list[Any], list[Any]]:
    """A page of the manifests that keep blobs alive, behind these ids: runs as (id, digest), and versions as (id, run, digest)."""
    runs = select(run.c.id, run.c.bundle).where(run.c.bundle.is_not(None), run.c.id > after[0])
    files = select(version.c.id, version.c.run_id, version.c.digest).where(
        version.c.tidied_at.is_(None), version.c.id > after[1]
    )
    return (
        list(tx.execute(runs.order_by(run.c.id).limit(limit))),
        list(tx.execute(files.order_by(version.c.id).limit(limit))),
    )


def checkpoints(tx: Transaction) -> list[str]:
    """The blobs that unfinished runs would go on from."""
    return [
        row["sha256"] for row in tx.execute(select(run.c.checkpoint).where(run.c.checkpoint.is_not(None))).scalars()
    ]


def ended(tx: Transaction, runs: Iterable[int]) -> dict[int, datetime | None]:
    """When each of these runs ended; None for one that has not. Runs that there are not are left out."""
    query = select(run.c.id, run.c.finished_at, run.c.state).where(run.c.id.in_(list(runs)))
    over = (RunState.TRAINED, RunState.FAILED, RunState.CANCELLED)
    return {row.id: row.finished_at if row.state in over else None for row in tx.execute(query)}


# News: notices whose deliveries have ended, and reports.


def old_notices(tx: Transaction, before: datetime, after: int, limit: int) -> tuple[list[int], int | None]:
    """Of the notices behind `after`, in order: those of before that may go, and where the next page begins (None: this was the last).

    The newest notice stays, since consumers resume from its number; so does one with a delivery that is under way or has just ended.
    """
    newest = tx.execute(select(func.max(notice.c.sequence))).scalar() or 0
    open_ = exists().where(
        delivery.c.sequence == notice.c.sequence,
        or_(delivery.c.state == DeliveryState.PENDING, delivery.c.ended_at > before),
    )
    looked = select(notice.c.sequence, notice.c.at, open_.label("open")).where(
        notice.c.sequence > after, notice.c.sequence < newest
    )
    rows = list(tx.execute(looked.order_by(notice.c.sequence).limit(limit)))
    more = bool(rows) and len(rows) == limit and rows[-1].at <= before
    return [row.sequence for row in rows if row.at <= before and not row.open], rows[-1].sequence if more else None


@transition
def forget_notices(tx: Transaction, sequences: Iterable[int]) -> int:
    """Delete these notices with their deliveries; how many notices went. One with a delivery that was replayed meanwhile stays.

    delivery: delivered | failed → none
    notice: told → none
    By: the bridge whose turn it is
    Fence: no delivery of it is pending
    Again: forgets none
    """
    wanted = list(sequences)
    tx.execute(delete(delivery).where(delivery.c.sequence.in_(wanted), delivery.c.state != DeliveryState.PENDING))
    left = exists().where(delivery.c.sequence == notice.c.sequence)
    return int(tx.execute(delete(notice).where(notice.c.sequence.in_(wanted), ~left)).rowcount)


def old_reports(tx: Transaction, before: datetime, limit: int) -> list[int]:
    """Reports received before, that have led to an arrival; oldest first."""
    old = select(report.c.id).where(report.c.received_at <= before, report.c.arrival_id.is_not(None))
    return list(tx.execute(old.order_by(report.c.id).limit(limit)).scalars())


def count_reports(tx: Transaction, before: datetime) -> int:
    old = (report.c.received_at <= before, report.c.arrival_id.is_not(None))
    return int(tx.execute(select(func.count()).select_from(report).where(*old)).scalar_one())


@transition
def forget_reports(tx: Transaction, ids: Iterable[int]) -> int:
    """Forget these reports; how many went.

    report: kept → none
    By: the bridge whose turn it is
    Fence: none; the rows are named
    Again: forgets none
    """
    return int(tx.execute(delete(report).where(report.c.id.in_(list(ids)))).rowcount)


# Pins: a consumer's word that it relies on a version.


@transition
def pin(tx: Transaction, model: str, number: int, actor: str, reason: str) -> Any:
    """Keep the version's files until it is unpinned. Raises `NotFound`, or `Conflict` for one that is tidied away.

    version: any → same
    By: a person, over REST
    Fence: its files are not tidied away
    Again: the newer word counts
    """
    row = versions.find(tx, model, number)
    untouched = (version.c.id == row.id, version.c.tidied_at.is_(None))
    values = {"pinned_at": tx.now, "pinned_by": actor, "pin_reason": reason}
    if not tx.execute(update(version).where(*untouched).values(**values)).rowcount:
        raise Conflict(f"the files of version {number} of {model} were tidied away: it cannot be relied on any more")
    what = f"version {number} of {model}"
    history.note(tx, "pin", what, actor, reason, model=model, before=_pin(row), after={"by": actor, "reason": reason})
    return versions.find(tx, model, number)


def _pin(row: Any) -> dict[str, Any] | None:
    return {"by": row.pinned_by, "reason": row.pin_reason} if row.pinned_at is not None else None


@transition
def unpin(tx: Transaction, model: str, number: int, by: str = history.HEADRACE) -> Any:
    """Let the rules decide on the version again. Raises `NotFound`.

    version: any → same
    By: a person, over REST
    Fence: none
    Again: changes nothing
    """
    row = versions.find(tx, model, number)
    nothing = {"pinned_at": None, "pinned_by": None, "pin_reason": None}
    tx.execute(update(version).where(version.c.id == row.id).values(**nothing))
    if row.pinned_at is not None:
        history.note(tx, "unpin", f"version {number} of {model}", by, model=model, before=_pin(row))
    return versions.find(tx, model, number)
