"""I8: what happened was told once, under numbers without a gap, and a delivery was made for whoever wanted to know."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Sequence
from datetime import datetime, timedelta
from itertools import accumulate
from typing import Any

from pydantic import ValidationError
from sqlalchemy import func, select

from shared import notices
from shared.audit import Sheet
from shared.catalog import Catalog, Keep
from shared.errors import HeadraceError
from shared.ledger import restored
from shared.ledger.audit.versions import AUTOMATIC
from shared.ledger.audit.walk import walk
from shared.ledger.session import Ledger, Transaction
from shared.ledger.tables import configuration, counter, delivery, notice, promotion, run, tidying, verdict, version
from shared.lifecycle import DeliveryState, RunState
from shared.notices import NoticeType

ERA_MARGIN = timedelta(minutes=1)
"""A transaction has its time before it waits for a configuration that is being put in force, and a clock may be stepped."""
_LOST = "tell those who should have heard (`headrace versions MODEL`, `headrace runs`); keep a copy of the ledger and report it"
_TOLD = {RunState.FAILED: NoticeType.RUN_FAILED, RunState.CANCELLED: NoticeType.RUN_CANCELLED}
_VERSIONS = (
    NoticeType.VERSION_PROMOTED,
    NoticeType.VERSION_REJECTED,
    NoticeType.VERSION_ROLLED_BACK,
    NoticeType.VERSION_AWAITING,
)
Told = Counter[tuple[int, str, datetime]]


def forgotten_before(tx: Transaction) -> datetime | None:
    """What was told before this may have been tidied away; None while nothing has been."""
    newest = None
    for row in tx.execute(select(tidying.c.started_at, tidying.c.keep)):
        try:
            before = row.started_at - Keep.model_validate(row.keep).runs
        except ValidationError:
            before = row.started_at
        newest = before if newest is None else max(newest, before)
    return newest


def numbers(ledger: Ledger, sheet: Sheet) -> None:
    """Numbers of notices follow each other, but for those tidied away and where a restore began anew, up to the counter; deliveries match the subscriptions of their time."""
    with ledger.read() as tx:
        forgotten, lifts = forgotten_before(tx), restored.lifts(tx)
        eras = tx.execute(select(configuration.c.id, configuration.c.applied_at).order_by(configuration.c.id)).all()
    before: list[Any] = [None]  # the notice before
    wishes = _Wishes(eras)
    sheet.looked("I8", "notices", 0)

    def look(tx: Transaction, rows: Sequence[Any]) -> None:
        sent = _deliveries(tx, rows)
        for row in rows:
            if row.sequence - 1 not in lifts:
                _follow(sheet, before[0], row, forgotten)
            before[0] = row
            if forgotten is None or row.at > forgotten:
                _wanted(sheet, row, wishes.at(tx, row), sent[row.sequence])
        sheet.looked("I8", "notices", len(rows))
        sheet.looked("I8", "deliveries", sum(map(len, sent.values())))

    walk(ledger, select(notice.c.sequence, notice.c.type, notice.c.model, notice.c.at), notice.c.sequence, look)
    with ledger.read() as tx:
        last = tx.execute(select(func.max(notice.c.sequence))).scalar() or 0
        given = tx.execute(select(counter.c.value).where(counter.c.name == "notice")).scalar() or 0
    if last != given and not (last < given and given in lifts):
        sheet.violated(
            "I8",
            "counter",
            f"the newest notice is {last}, but {given} numbers were given",
            f"readers that go on from {given} miss what comes; {_LOST}",
            sequence=last,
        )


def _follow(sheet: Sheet, before: Any, row: Any, forgotten: datetime | None) -> None:
    expected = before.sequence + 1 if before is not None else 1
    tidied = forgotten is not None and (before is None or before.at <= forgotten)
    if row.sequence != expected and not tidied:
        gone = f"{expected}" if row.sequence == expected + 1 else f"{expected} to {row.sequence - 1}"
        sheet.violated(
            "I8",
            "gap",
            f"notice {gone} is missing before notice {row.sequence}, and too young to have been tidied away",
            _LOST,
            sequence=expected,
        )


class _Wishes:
    """Which subscriptions were in force when a notice was written; None close to a change, or where that configuration is not understood any more."""

    def __init__(self, eras: Sequence[Any]) -> None:
        self._eras = sorted(eras, key=lambda one: one.applied_at)
        self._newest = list(accumulate((one.id for one in self._eras), max))  # the clock may have been set back
        self._read: tuple[int, Catalog | None] = (0, None)

    def at(self, tx: Transaction, row: Any) -> list[str] | None:
        place = bisect_left(self._eras, row.at, key=lambda one: one.applied_at)
        close = self._eras[max(0, place - 1) : place + 1]
        if place == 0 or any(abs(one.applied_at - row.at) < ERA_MARGIN for one in close):
            return None
        era = self._newest[place - 1]
        if self._read[0] != era:
            body = tx.execute(select(configuration.c.body).where(configuration.c.id == era)).scalar_one()
            try:
                self._read = (era, Catalog.from_json(body))
            except (HeadraceError, ValueError):
                self._read = (era, None)
        catalog = self._read[1]
        if catalog is None:
            return None
        return [one.name for one in catalog.subscriptions if notices.matches(one, row.type, row.model)]


def _deliveries(tx: Transaction, rows: Sequence[Any]) -> dict[int, list[Any]]:
    found: dict[int, list[Any]] = defaultdict(list)
    columns = delivery.c.id, delivery.c.sequence, delivery.c.subscription, delivery.c.state, delivery.c.attempts
    for row in tx.execute(select(*columns).where(delivery.c.sequence.between(rows[0].sequence, rows[-1].sequence))):
        found[row.sequence].append(row)
    return found


def _wanted(sheet: Sheet, row: Any, wished: list[str] | None, sent: list[Any]) -> None:
    made = Counter(one.subscription for one in sent)
    for name in [name for name in wished or () if not made[name]]:
        sheet.violated(
            "I8",
            "no_delivery",
            f"notice {row.sequence} ({row.type}) was not to be sent to {name}, which had asked for it",
            _LOST,
            sequence=row.sequence,
            subscription=name,
        )
    for name in [name for name, number in made.items() if number > 1]:
        sheet.violated(
            "I8",
            "two_deliveries",
            f"notice {row.sequence} ({row.type}) is to be sent to {name} {made[name]} times, with an id each",
            _LOST,
            sequence=row.sequence,
            subscription=name,
        )
    for one in sent:
        if one.state not in set(DeliveryState) or (one.state != DeliveryState.PENDING and not one.attempts):
            do = f"`POST /v1/deliveries/{one.id}/replay` sends it, if it is failed; keep a copy of the ledger and report it"
            sheet.violated(
                "I8",
                "never_tried",
                f"delivery {one.id} to {one.subscription} is {one.state} without a try",
                do,
                delivery=one.id,
            )


def tidings(ledger: Ledger, sheet: Sheet) -> None:
    """One notice for each promotion, rejection, rollback and wait for a word, and for each failed or cancelled run; and none for what did not happen."""
    with ledger.read() as tx:
        forgotten = forgotten_before(tx)

    def look_at_versions(tx: Transaction, rows: Sequence[Any]) -> None:
        ids = [row.run_id for row in rows]
        happened = _judged(tx, ids)
        _compare(sheet, happened, _told(tx, ids, _VERSIONS), forgotten)
        sheet.looked("I8", "changes of versions", sum(happened.values()))

    def look_at_runs(tx: Transaction, rows: Sequence[Any]) -> None:
        happened = Counter((row.id, str(_TOLD[row.state]), row.finished_at) for row in rows if row.finished_at)
        _compare(sheet, happened, _told(tx, [row.id for row in rows], tuple(_TOLD.values())), forgotten)
        sheet.looked("I8", "failed and cancelled runs", len(rows))

    walk(ledger, select(version.c.id, version.c.run_id), version.c.id, look_at_versions, size=500)
    ended = select(run.c.id, run.c.state, run.c.finished_at).where(run.c.state.in_(list(_TOLD)))
    walk(ledger, ended, run.c.id, look_at_runs, size=500)


def _judged(tx: Transaction, runs: list[int]) -> Told:
    """What became of these runs' versions and when: promotions that have been served, and verdicts that did not promote by themselves."""
    happened: Told = Counter()
    at_once = set()
    promoted = select(
        version.c.run_id, promotion.c.kind, promotion.c.actor, promotion.c.intended_at, promotion.c.served_at
    )
    promoted = promoted.join(promotion, promotion.c.version_id == version.c.id).where(version.c.run_id.in_(runs))
    for row in tx.execute(promoted):
        if row.actor == AUTOMATIC:
            at_once.add((row.run_id, row.intended_at))
        if row.served_at is not None:
            kind = NoticeType.VERSION_ROLLED_BACK if row.kind == "rolled_back" else NoticeType.VERSION_PROMOTED
            happened[row.run_id, str(kind), row.served_at] += 1
    judged = select(version.c.run_id, verdict.c.decision, verdict.c.judged_at)
    judged = judged.join(verdict, verdict.c.version_id == version.c.id).where(version.c.run_id.in_(runs))
    for row in tx.execute(judged):
        if row.decision != "promote" or (row.run_id, row.judged_at) not in at_once:
            kind = NoticeType.VERSION_REJECTED if row.decision == "reject" else NoticeType.VERSION_AWAITING
            happened[row.run_id, str(kind), row.judged_at] += 1
    return happened


def _told(tx: Transaction, runs: list[int], types: Sequence[NoticeType]) -> Told:
    mine = notice.c.run_id.in_(runs), notice.c.type.in_(types)
    return Counter(
        (row.run_id, row.type, row.at)
        for row in tx.execute(select(notice.c.run_id, notice.c.type, notice.c.at).where(*mine))
    )


def _compare(sheet: Sheet, happened: Told, told: Told, forgotten: datetime | None) -> None:
    for (run_id, kind, at), number in (happened - told).items():
        if forgotten is None or at > forgotten:
            sheet.violated(
                "I8",
                "not_told",
                f"run {run_id}: {kind} at {at:%Y-%m-%d %H:%M:%S}Z was told {told[run_id, kind, at]} times and not {told[run_id, kind, at] + number}",
                _LOST,
                run=run_id,
                type=kind,
            )
    for (run_id, kind, at), number in (told - happened).items():
        sheet.violated(
            "I8",
            "told_too_often",
            f"run {run_id}: {kind} was told at {at:%Y-%m-%d %H:%M:%S}Z {number} times more than it happened",
            _LOST,
            run=run_id,
            type=kind,
        )
