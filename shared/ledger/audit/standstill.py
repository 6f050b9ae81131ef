"""I10: nothing stands still without saying what it waits for.

Whatever is worked off in order is judged by the head of its queue: a long queue behind it is load, a head that nobody takes is a standstill.
"""

from __future__ import annotations

from collections import Counter
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import and_, func, or_, select

from shared import policy
from shared.audit import Sheet
from shared.catalog import Sql
from shared.errors import ConfigurationError
from shared.ledger import configuration, planning, releases, tables, versions, workers
from shared.ledger.session import Ledger, Transaction
from shared.ledger.tables import (
    OPEN,
    dataset,
    delivery,
    promotion,
    run,
    score,
    tidying,
    version,
)
from shared.lifecycle import DeliveryState, RunState, VersionState

QUIET = timedelta(minutes=2)
"""What moves is taken up within seconds; whoever was killed while they held it, as soon as their lease has run out."""
WORKER_SEEN = timedelta(seconds=30)
_TRAINER = "look at the log of the workers of class {0} (`headrace status` lists them); start them again"
_BRIDGE = "is a bridge running? look at its log; start it again (`python -m services.registry_bridge`)"


def standstill(ledger: Ledger, sheet: Sheet) -> None:
    for step in (
        _due,
        _forgotten_plans,
        _unscored,
        _unregistered,
        _unjudged,
        _intents,
        _deliveries,
        _watches,
        _janitor,
    ):
        with ledger.read() as tx:
            step(tx, sheet)


def _at(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S}Z"


def _free(tx: Transaction) -> Counter[str]:
    """Slots by compute class that are free, by what their workers tell of themselves (a score takes one too) and by the runs they hold."""
    free: Counter[str] = Counter()
    for one in workers.alive(tx, WORKER_SEEN):
        free[one.compute_class] += max(0, one.slots - one.busy)
    held = workers.free_slots(tx, WORKER_SEEN)
    return Counter({name: min(number, held.get(name, 0)) for name, number in free.items()})


def _due(tx: Transaction, sheet: Sheet) -> None:
    """The run of each class that has been due longest, or whose lease has: with a free worker there, it is taken within seconds."""
    free, since = _free(tx), func.coalesce(run.c.due_at, run.c.lease_until)
    lost = and_(run.c.state == RunState.RUNNING, run.c.lease_until < tx.now)
    due = or_(and_(run.c.state.in_(OPEN), run.c.due_at <= tx.now), lost)
    heads = select(run.c.compute_class, func.min(since).label("since"), func.count().label("number")).where(due)
    sheet.looked("I10", "due runs", 0)
    for head in tx.execute(heads.group_by(run.c.compute_class)):
        sheet.looked("I10", "due runs", head.number)
        if head.since < tx.now - QUIET and free[head.compute_class] > 0:
            row = tx.execute(
                select(run).where(due, run.c.compute_class == head.compute_class).order_by(since, run.c.id).limit(1)
            ).one()
            what = "its worker went silent" if row.state == RunState.RUNNING else f"it is {row.state}"
            sheet.violated(
                "I10",
                "not_claimed",
                f"run {row.id} of {row.model} has been due since {_at(head.since)} ({what}), a worker of class {row.compute_class} is free, and none claims it"
                + (f"; {head.number - 1} more are due behind it" if head.number > 1 else ""),
                _TRAINER.format(row.compute_class),
                run=row.id,
            )


def _forgotten_plans(tx: Transaction, sheet: Sheet) -> None:
    """A waiting run says why it waits, and is due no later than its policy says of the facts of now."""
    try:
        config = configuration.in_force(tx).catalog
    except ConfigurationError:
        return
    for row in tx.execute(select(run).where(run.c.state == RunState.WAITING)).all():
        sheet.looked("I10", "waiting runs")
        if row.model not in config.models:
            what, late = "its model is no longer in the configuration", True
        else:
            facts = planning.gather(tx, row, tuple(releases.find(tx, row.release_id).declaration.datasets))
            due = policy.due_at(config.models[row.model].policy, facts)
            late = (
                due.at is not None and due.at < tx.now - QUIET and (row.due_at is None or row.due_at > due.at + QUIET)
            )
            what = (
                f"it should have been due at {_at(due.at)} ({due.sentence}), but is due {_at(row.due_at) if row.due_at else 'never'}"
                if late and due.at
                else "it does not say what it waits for"
            )
            late = late or not (row.sentence or row.due_at)
        if late:
            sheet.violated(
                "I10",
                "not_planned",
                f"run {row.id} of {row.model} waits: {what}",
                f"`headrace retrain {row.model}` makes it due; keep a copy of the ledger and report it",
                run=row.id,
            )


def _unscored(tx: Transaction, sheet: Sheet) -> None:
    """Scores that are wanted, of which none is being made although a worker is free."""
    wanted = select(score).where(score.c.scored_at.is_(None))
    free, open_, held = _free(tx), Counter[str](), set()
    first: dict[str, Any] = {}
    for row in tx.execute(wanted.order_by(score.c.run_id)):
        open_[row.compute_class] += 1
        if row.lease_until is not None and row.lease_until > tx.now - QUIET:
            held.add(row.compute_class)
        first.setdefault(row.compute_class, row)
    sheet.looked("I10", "wanted scores", sum(open_.values()))
    for name, row in first.items():
        if name not in held and free[name] > 0 and _settled_since(tx, row.run_id) < tx.now - QUIET:
            what = f"a score of run {row.run_id} is wanted, a worker of class {name} is free, and none makes it"
            sheet.violated("I10", "not_scored", what, _TRAINER.format(name), run=row.run_id)


def _settled_since(tx: Transaction, run_id: int) -> datetime:
    """Since when at the latest a score of this run may be wanted: the newest version of its model was registered then."""
    model = select(run.c.model).where(run.c.id == run_id).scalar_subquery()
    newest: datetime | None = tx.execute(
        select(func.max(version.c.registered_at)).where(version.c.model == model)
    ).scalar()
    return newest or tx.now


def _unregistered(tx: Transaction, sheet: Sheet) -> None:
    """Trained runs without a version, of which one says neither that it is being registered nor why it cannot be (I6)."""
    missing = (
        select(run)
        .outerjoin(version, version.c.run_id == run.c.id)
        .where(run.c.state == RunState.TRAINED, version.c.id.is_(None))
    )
    number = tx.execute(select(func.count()).select_from(missing.subquery())).scalar_one()
    silent = missing.where(
        run.c.registration_error.is_(None),
        or_(run.c.registration_lease.is_(None), run.c.registration_lease < tx.now - QUIET),
    )
    row = tx.execute(silent.order_by(run.c.id).limit(1)).first()
    sheet.looked("I6", "trained runs without a version yet", number)
    if row is not None and row.finished_at < tx.now - QUIET:
        what = f"run {row.id} of {row.model} was trained at {_at(row.finished_at)}, has no version, and nobody registers it"
        behind = f"; {number - 1} more wait beside it" if number > 1 else ""
        sheet.violated("I6", "not_registered", what + behind, _BRIDGE, run=row.id)


def _unjudged(tx: Transaction, sheet: Sheet) -> None:
    try:
        config = configuration.in_force(tx).catalog
    except ConfigurationError:
        return
    candidates = select(version).where(version.c.state == VersionState.CANDIDATE).order_by(version.c.id)
    heads: dict[str, Any] = {}
    for row in tx.execute(candidates.limit(1000)):
        sheet.looked("I10", "candidates")
        heads.setdefault(row.model, row)
    for model, row in heads.items():
        if model not in config.models or row.registered_at > tx.now - QUIET or versions.has_intent(tx, model):
            continue
        champion = versions.champion(tx, model)
        subjects = [row.run_id, *([champion.run_id] if champion is not None else [])]
        if (
            tx.execute(select(score.c.run_id).where(score.c.run_id.in_(subjects), score.c.scored_at.is_(None))).first()
            is None
        ):
            what = f"version {row.number} of {model} was registered at {_at(row.registered_at)} and is not judged, though no score is missing"
            sheet.violated("I10", "not_judged", what, _BRIDGE, model=model, version=row.number)


def _intents(tx: Transaction, sheet: Sheet) -> None:
    sheet.looked("I10", "promotions under way", 0)
    query = select(promotion, version.c.number).join(version, version.c.id == promotion.c.version_id)
    for row in tx.execute(query.where(promotion.c.served_at.is_(None))):
        sheet.looked("I10", "promotions under way")
        if row.intended_at < tx.now - QUIET and (row.lease_until is None or row.lease_until < tx.now - QUIET):
            what = f"version {row.number} of {row.model} is to serve since {_at(row.intended_at)} ({row.kind} by {row.actor}), and its alias has not followed"
            sheet.violated(
                "I10",
                "intent",
                what,
                f"{_BRIDGE}; does MLflow have version {row.number}?",
                model=row.model,
                promotion=row.id,
            )


def _deliveries(tx: Transaction, sheet: Sheet) -> None:
    """The oldest due delivery of each subscription: it is being sent, or will be within seconds."""
    sheet.looked("I10", "due deliveries", 0)
    due = delivery.c.state == DeliveryState.PENDING, delivery.c.due_at <= tx.now
    heads = select(
        delivery.c.subscription,
        func.min(delivery.c.due_at).label("since"),
        func.max(delivery.c.lease_until).label("lease"),
        func.count().label("number"),
    )
    for head in tx.execute(heads.where(*due).group_by(delivery.c.subscription)):
        sheet.looked("I10", "due deliveries", head.number)
        if head.since < tx.now - QUIET and (head.lease is None or head.lease < tx.now - QUIET):
            mine = select(delivery.c.id, delivery.c.sequence).where(*due, delivery.c.subscription == head.subscription)
            row = tx.execute(mine.order_by(delivery.c.due_at, delivery.c.sequence).limit(1)).one()
            what = f"delivery {row.id} of notice {row.sequence} to {head.subscription} has been due since {_at(head.since)}, and nobody sends it"
            sheet.violated(
                "I10",
                "not_sent",
                what + (f"; {head.number - 1} more are due behind it" if head.number > 1 else ""),
                _BRIDGE,
                delivery=row.id,
            )


def _watches(tx: Transaction, sheet: Sheet) -> None:
    """Somebody watches each dataset that has a source to look at."""
    try:
        catalog = configuration.in_force(tx).catalog
    except ConfigurationError:
        return
    applied = tx.execute(select(func.max(tables.configuration.c.applied_at))).scalar_one()
    leases = {row.name: row.lease_until for row in tx.execute(select(dataset.c.name, dataset.c.lease_until))}
    for name in [name for name, one in catalog.datasets.items() if isinstance(one.source, Sql)]:
        sheet.looked("I10", "watched datasets")
        lease = leases.get(name) or applied
        if max(lease, applied) < tx.now - QUIET:
            what = f"nobody has watched {name} since {_at(max(lease, applied))}"
            sheet.violated(
                "I10",
                "not_watched",
                what,
                "is a watcher running? look at its log; start it again (`python -m services.ingest_watcher`)",
                dataset=name,
            )


def _janitor(tx: Transaction, sheet: Sheet) -> None:
    for row in tx.execute(select(tidying).where(tidying.c.ended_at.is_(None))):
        if row.lease_until < tx.now - QUIET:
            what = f"turn {row.id} of the janitor ({row.owner}) went silent at {_at(row.lease_until)}, and nobody has taken it up"
            sheet.violated("I10", "janitor", what, _BRIDGE, turn=row.id)
