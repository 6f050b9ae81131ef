"""Versions, verdicts and the champion: registered once per run, judged on stored scores, served by compare-and-set."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from sqlalchemy import insert, or_, select, update

from shared import sampling
from shared.errors import Conflict, Fenced, NotFound
from shared.gates import Decision, Verdict
from shared.ledger import deliveries, history, scores
from shared.ledger.session import Transaction
from shared.ledger.tables import promotion, release, run, verdict, version
from shared.ledger.transitions import transition
from shared.lifecycle import RunState, VersionState, check
from shared.notices import NoticeType


def unregistered(tx: Transaction, limit: int = 20) -> list[int]:
    """Trained runs without a version that nobody is registering, oldest first (I6)."""
    free = or_(run.c.registration_lease.is_(None), run.c.registration_lease < tx.now)
    query = select(run.c.id).outerjoin(version, version.c.run_id == run.c.id)
    return list(
        tx.execute(
            query.where(run.c.state == RunState.TRAINED, version.c.id.is_(None), free).order_by(run.c.id).limit(limit)
        ).scalars()
    )


def candidates(tx: Transaction, limit: int = 100) -> list[int]:
    """Runs whose version is not judged yet, oldest first."""
    query = (
        select(version.c.run_id).where(version.c.state == VersionState.CANDIDATE).order_by(version.c.id).limit(limit)
    )
    return list(tx.execute(query).scalars())


def with_intent(tx: Transaction) -> list[str]:
    """Models with a promotion that the alias has not followed."""
    return list(tx.execute(select(promotion.c.model).where(promotion.c.served_at.is_(None))).scalars())


@transition
def begin_registration(tx: Transaction, run_id: int, lease: timedelta) -> int | None:
    """Take the registration of a trained run for a while; the fencing token, or None if another bridge has it or it is done.

    run: trained → same
    By: the bridge
    Fence: no version yet, nobody's lease; the number of registrations rises by one
    Again: None while the lease lives
    """
    free = or_(run.c.registration_lease.is_(None), run.c.registration_lease < tx.now)
    if of_run(tx, run_id) is not None:
        return None
    values = {"registration_lease": tx.now + lease, "registrations": run.c.registrations + 1}
    taken = update(run).where(run.c.id == run_id, run.c.state == RunState.TRAINED, free).values(**values)
    token: int | None = tx.execute(taken.returning(run.c.registrations)).scalar()
    return token


def check_registration(tx: Transaction, run_id: int, token: int) -> None:
    """Raise `Fenced` unless this is the newest registration of the run; one that is only slow is not fenced."""
    mine = (run.c.id == run_id, run.c.registrations == token, run.c.registration_lease.is_not(None))
    if tx.execute(select(run.c.id).where(*mine)).first() is None:
        raise Fenced(f"the registration of run {run_id} has passed to another bridge")


@transition
def keep_registration(tx: Transaction, run_id: int, token: int, lease: timedelta) -> None:
    """Renew the lease of the newest registration; raises `Fenced`.

    run: trained → same
    By: the bridge that registers it
    Fence: the number of registrations
    Again: the lease is counted from the later call
    """
    check_registration(tx, run_id, token)
    tx.execute(update(run).where(run.c.id == run_id).values(registration_lease=tx.now + lease))


@transition
def registration_failed(tx: Transaction, run_id: int, token: int, error: str, again_in: timedelta) -> None:
    """Note why; it is tried again by whoever looks next after the pause (I10). Changes nothing if another bridge has it, or has done it.

    run: trained → same
    By: the bridge that registers it
    Fence: the number of registrations, and no version yet
    Again: the newer reason stays
    """
    if of_run(tx, run_id) is not None:
        return
    mine = (run.c.id == run_id, run.c.registrations == token)
    tx.execute(update(run).where(*mine).values(registration_error=error, registration_lease=tx.now + again_in))


@transition
def registered(tx: Transaction, run_id: int, number: int, digest: str, mlflow_run: str, mlflow_model: str) -> None:
    """Record the version of a run as a candidate, once; that of a run on a sample is marked as one, and stays so.

    version: none → candidate | sample
    run: trained → same
    By: the bridge that registers it
    Fence: one per run
    Again: changes nothing
    """
    tx.lock(f"registration {run_id}")
    if of_run(tx, run_id) is not None:
        return
    of = tx.execute(select(run.c.model, run.c.sample).where(run.c.id == run_id)).one()
    state = VersionState.CANDIDATE if of.sample is None else VersionState.SAMPLE
    tx.execute(
        insert(version).values(
            model=of.model, number=number, run_id=run_id, state=state, digest=digest,
            mlflow_run=mlflow_run, mlflow_model=mlflow_model, registered_at=tx.now,
        )
    )  # fmt: skip
    tx.execute(update(run).where(run.c.id == run_id).values(registration_error=None, registration_lease=None))


@transition
def decide(tx: Transaction, row: Any, champion: Any, judged: Verdict, holdout: str | None, *, automatic: bool) -> None:
    """Store the verdict with its consequence: the version is put aside with a notice, or the intent to promote it.

    Compare-and-set: raises `Conflict` if another champion serves than the verdict names, or another promotion is under way;
    the verdict is then void and is made again.

    version: candidate → rejected | awaiting | same
    promotion: none → intended
    By: the bridge
    Fence: the champion that the verdict names; no promotion under way
    Again: refused, as `Conflict`
    """
    row, serving = find_to_judge(tx, row.run_id), _champion_id(tx, row.model)
    check(VersionState(row.state), VersionState.REJECTED)
    if serving != (champion.id if champion is not None else None) or _intent(tx, row.model) is not None:
        raise Conflict(f"the champion of {row.model} has changed since version {row.number} was judged")
    tx.execute(
        insert(verdict).values(
            version_id=row.id,
            champion_id=serving,
            decision=judged.decision,
            reasons=list(judged.reasons),
            holdout=holdout,
            judged_at=tx.now,
        )
    )
    if judged.decision is Decision.PROMOTE and automatic:
        _intend(tx, row, serving, "promoted", "headrace", "; ".join(judged.reasons))
        return
    state = VersionState.REJECTED if judged.decision is Decision.REJECT else VersionState.AWAITING
    _set_state(tx, row, state)
    kind = NoticeType.VERSION_REJECTED if state is VersionState.REJECTED else NoticeType.VERSION_AWAITING
    _tell(tx, kind, row, list(judged.reasons), champion=champion.number if champion is not None else None)


@transition
def promote(tx: Transaction, model: str, number: int, actor: str, reason: str) -> None:
    """A named person promotes an awaiting version: the intent; the alias follows. Raises `NotFound`, `Conflict`.

    promotion: none → intended
    By: a person, over REST
    Fence: the version awaits; no promotion under way
    Again: refused, as `Conflict`
    """
    tx.hold_models(model)
    row = find(tx, model, number)
    _refuse_sample(tx, row)
    _refuse_tidied(row)
    if row.state != VersionState.AWAITING:
        raise Conflict(
            f"version {number} of {model} is {row.state}; only an awaiting one can be promoted by hand (or roll back to one that has served)"
        )
    _refuse_overlap(tx, model)
    _intend(tx, row, _champion_id(tx, model), "promoted", actor, reason)


@transition
def roll_back(tx: Transaction, model: str, number: int | None, actor: str, reason: str) -> int:
    """Make a version champion again that has served before: the one that the present champion replaced, or the one named.

    Raises `NotFound`, or `Conflict` when there is no such version, it serves already, or another change is under way.

    promotion: none → intended
    By: a person, over REST
    Fence: it has served before; no promotion under way
    Again: without a name it goes further back, never forward again
    """
    tx.hold_models(model)
    _refuse_overlap(tx, model)
    serving = _champion_id(tx, model)
    target = find(tx, model, number) if number is not None else _replaced_by(tx, serving)
    if target is not None:
        _refuse_sample(tx, target)
        _refuse_tidied(target)
    if target is not None and target.id == serving:
        raise Conflict(f"version {number} of {model} serves already")
    if target is None or _promoted(tx, target.id) is None:
        raise Conflict(
            f"{model} has no {'such' if number else 'earlier'} version that has served; `headrace versions {model}` lists them"
        )
    _intend(tx, target, serving, "rolled_back", actor, reason)
    return int(target.number)


def _refuse_sample(tx: Transaction, row: Any) -> None:
    if row.state == VersionState.SAMPLE:
        what = sampling.describe(tx.execute(select(run.c.sample).where(run.c.id == row.run_id)).scalar_one())
        raise Conflict(
            f"version {row.number} of {row.model} was trained on {what}: it is there to build against, and never serves; "
            f"`headrace retrain {row.model}` trains one that may"
        )


def _refuse_tidied(row: Any) -> None:
    if row.tidied_at is not None:
        raise Conflict(
            f"the files of version {row.number} of {row.model} were tidied away on {row.tidied_at:%Y-%m-%d} (it had been {row.state}); "
            "retrain the model instead"
        )


def _promoted(tx: Transaction, version_id: int | None) -> Any:
    """The row by which the version became champion for the first time; later ones are rollbacks to it."""
    return tx.execute(
        select(promotion).where(promotion.c.version_id == version_id, promotion.c.kind == "promoted")
    ).first()


def _replaced_by(tx: Transaction, version_id: int | None) -> Any:
    """The version that served before this one was promoted."""
    row = _promoted(tx, version_id)
    return tx.execute(select(version).where(version.c.id == row.replaces_id)).first() if row is not None else None


def _refuse_overlap(tx: Transaction, model: str) -> None:
    if _intent(tx, model) is not None:
        raise Conflict(f"another promotion of {model} is under way; try again in a moment")


def _intend(tx: Transaction, row: Any, replaces: int | None, kind: str, actor: str, reason: str) -> None:
    tx.execute(
        insert(promotion).values(
            model=row.model,
            version_id=row.id,
            replaces_id=replaces,
            kind=kind,
            actor=actor,
            reason=reason,
            intended_at=tx.now,
        )
    )
    replaced = tx.execute(select(version.c.number).where(version.c.id == replaces)).scalar()
    action, what = "rollback" if kind == "rolled_back" else "promote", f"version {row.number} of {row.model}"
    before, after = {"champion": replaced}, {"champion": row.number}
    history.note(tx, action, what, actor, reason, model=row.model, before=before, after=after)


def _intent(tx: Transaction, model: str) -> Any:
    return tx.execute(select(promotion).where(promotion.c.model == model, promotion.c.served_at.is_(None))).first()


def has_intent(tx: Transaction, model: str) -> bool:
    """Whether a promotion is under way whose alias has not followed."""
    return _intent(tx, model) is not None


@transition
def claim_intent(tx: Transaction, model: str, lease: timedelta) -> Any:
    """The version that is to become champion, leased to one mover of the alias; None if there is none or another moves it.

    promotion: intended → intended
    By: the bridge
    Fence: nobody's lease
    Again: None while the lease lives
    """
    free = or_(promotion.c.lease_until.is_(None), promotion.c.lease_until < tx.now)
    mine = (
        update(promotion)
        .where(promotion.c.model == model, promotion.c.served_at.is_(None), free)
        .values(lease_until=tx.now + lease)
    )
    version_id = tx.execute(mine.returning(promotion.c.version_id)).scalar()
    return tx.execute(select(version).where(version.c.id == version_id)).first() if version_id is not None else None


@transition
def served(tx: Transaction, row: Any) -> None:
    """The alias has followed: the version is champion from here on, and everyone is told.

    version: candidate | awaiting → promoted; promoted → same
    promotion: intended → served
    By: the bridge, after the alias
    Fence: the intent
    Again: changes nothing
    """
    tx.hold_models(row.model)
    found = _intent(tx, row.model)
    if found is None or found.version_id != row.id:
        return
    tx.execute(update(promotion).where(promotion.c.id == found.id).values(served_at=tx.now))
    if row.state != VersionState.PROMOTED:
        _set_state(tx, row, VersionState.PROMOTED)
    replaced = tx.execute(select(version).where(version.c.id == found.replaces_id)).first()
    kind = NoticeType.VERSION_ROLLED_BACK if found.kind == "rolled_back" else NoticeType.VERSION_PROMOTED
    _tell(
        tx,
        kind,
        row,
        found.reason.split("; "),
        actor=found.actor,
        replaces=replaced.number if replaced is not None else None,
    )


def _set_state(tx: Transaction, row: Any, state: VersionState) -> None:
    check(VersionState(row.state), state)
    tx.execute(update(version).where(version.c.id == row.id).values(state=state))


def _tell(tx: Transaction, kind: NoticeType, row: Any, reasons: list[str], **more: Any) -> None:
    about = tx.execute(
        select(run.c.traceparent, release.c.name.label("release_name"), release.c.commit)
        .join(release, release.c.id == run.c.release_id)
        .where(run.c.id == row.run_id)
    ).one()
    data = {
        "model": row.model, "version": row.number, "digest": row.digest, "run": row.run_id, "release": about.release_name, "commit": about.commit,
        "metrics": scores.metrics(tx, row.run_id), "reasons": reasons, **more,
    }  # fmt: skip
    deliveries.tell(tx, kind, row.model, row.model, data, about.traceparent)


def champion(tx: Transaction, model: str) -> Any:
    """The version that serves, as a row; None before the first promotion."""
    id = _champion_id(tx, model)
    return tx.execute(select(version).where(version.c.id == id)).first() if id is not None else None


def champion_since(tx: Transaction, model: str) -> Any:
    """The newest served promotion, as a row."""
    newest = (
        select(promotion)
        .where(promotion.c.model == model, promotion.c.served_at.is_not(None))
        .order_by(promotion.c.id.desc())
    )
    return tx.execute(newest.limit(1)).first()


def _champion_id(tx: Transaction, model: str) -> int | None:
    newest = champion_since(tx, model)
    return newest.version_id if newest is not None else None


def of_run(tx: Transaction, run_id: int) -> Any:
    return tx.execute(select(version).where(version.c.run_id == run_id)).first()


def find_to_judge(tx: Transaction, run_id: int) -> Any:
    """The version of a run, for whoever decides about it: nobody else does meanwhile. None if there is none."""
    if (row := of_run(tx, run_id)) is None:
        return None
    tx.hold_models(row.model)
    return of_run(tx, run_id)


def find(tx: Transaction, model: str, number: int) -> Any:
    """One version; raises `NotFound`."""
    row = tx.execute(select(version).where(version.c.model == model, version.c.number == number)).first()
    if row is None:
        raise NotFound(
            f"there is no version {number} of {model}; `headrace versions {model}` lists those that there are"
        )
    return row


def find_all(tx: Transaction, model: str, *, before: int | None, limit: int) -> list[Any]:
    """Newest first, with a number below `before`."""
    query = select(version).where(version.c.model == model).order_by(version.c.number.desc()).limit(limit)
    return list(tx.execute(query.where(version.c.number < before) if before is not None else query))


def newest(tx: Transaction, model: str, *, sample: bool = False) -> Any:
    """The newest version that is not a sample, or the newest sample; None if there is none."""
    kind = version.c.state == VersionState.SAMPLE if sample else version.c.state != VersionState.SAMPLE
    query = select(version).where(version.c.model == model, kind).order_by(version.c.number.desc())
    return tx.execute(query.limit(1)).first()


def last_verdict(tx: Transaction, version_id: int) -> Any:
    query = select(verdict, version.c.number.label("champion")).outerjoin(
        version, version.c.id == verdict.c.champion_id
    )
    return tx.execute(query.where(verdict.c.version_id == version_id).order_by(verdict.c.id.desc()).limit(1)).first()
