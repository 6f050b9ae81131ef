"""I6 and I7, as far as the ledger tells: one version for a run, and no champion without a word that says why."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import func, select

from shared.audit import Sheet
from shared.ledger.audit.walk import walk
from shared.ledger.session import Ledger, Transaction
from shared.ledger.tables import promotion, run, verdict, version
from shared.lifecycle import RunState, VersionState
from shared.retention import TAKEN

AUTOMATIC = "headrace"
_DEFECT = "no step of Headrace leaves it like this: keep a copy of the ledger and report it"
_BACK = "`headrace rollback {model} --to N --reason …` puts a version in place that you trust; keep a copy of the ledger and report it"


def states(ledger: Ledger, sheet: Sheet) -> None:
    """Each version is of one trained run of its model, and its state is what its verdict and its promotions say."""
    sheet.looked("I6", "versions", 0)

    def look(tx: Transaction, rows: Sequence[Any]) -> None:
        ids = [row.id for row in rows]
        judged: dict[int, str] = {}
        for one in tx.execute(
            select(verdict.c.version_id, verdict.c.decision).where(verdict.c.version_id.in_(ids)).order_by(verdict.c.id)
        ):
            judged[one.version_id] = one.decision
        served: dict[int, bool] = {}
        for one in tx.execute(
            select(promotion.c.version_id, promotion.c.served_at).where(promotion.c.version_id.in_(ids))
        ):
            served[one.version_id] = served.get(one.version_id, False) or one.served_at is not None
        for row in rows:
            for invariant, kind, what in _faults(row, judged.get(row.id), served.get(row.id)):
                named = f"version {row.number} of {row.model} ({row.state}, run {row.run_id})"
                sheet.violated(
                    invariant, kind, f"{named}: {what}", _DEFECT, model=row.model, version=row.number, run=row.run_id
                )
        sheet.looked("I6", "versions", len(rows))

    columns = run.c.state.label("run_state"), run.c.model.label("run_model"), run.c.sample
    walk(ledger, select(version, *columns).outerjoin(run, run.c.id == version.c.run_id), version.c.id, look, size=500)
    with ledger.read() as tx:
        query = select(version.c.run_id, func.count()).group_by(version.c.run_id).having(func.count() > 1)
        for run_id, number in tx.execute(query):
            do = f"the unique index of the table `version` is gone; {_DEFECT}"
            sheet.violated("I6", "two_versions", f"run {run_id} has {number} versions in the ledger", do, run=run_id)


def _faults(row: Any, decision: str | None, served: bool | None) -> list[tuple[str, str, str]]:
    """`served`: None without a promotion, False while the alias has not followed the only one."""
    faults = []
    if row.run_state != RunState.TRAINED or row.run_model != row.model:
        faults.append(("I6", "version_of", f"its run is {row.run_state or 'missing'}, of {row.run_model}"))
    if (row.state == VersionState.PROMOTED) != bool(served):
        faults.append(("I7", "served", "it has never served" if not served else "it has served"))
    if (row.state == VersionState.SAMPLE) != (row.sample is not None):
        faults.append(("I7", "sample", f"its run trained on {row.sample or 'all that it may'}"))
    if row.state == VersionState.SAMPLE and (decision is not None or served is not None):
        faults.append(("I7", "sample_judged", "a sample was judged, or is to serve"))
    if row.state == VersionState.CANDIDATE and decision is not None and served is None:
        faults.append(("I7", "judged", f"it was judged ({decision}), and nothing followed"))
    if row.state in (VersionState.REJECTED, VersionState.AWAITING) and (
        decision is None or (decision == "reject") != (row.state == VersionState.REJECTED)
    ):
        faults.append(("I7", "verdict", f"its verdict is {decision or 'missing'}"))
    if row.tidied_at is not None and (row.state not in TAKEN or served is not None or row.pinned_at is not None):
        faults.append(("I7", "tidied", "its files were tidied away, although it has served, may serve or is pinned"))
    if row.removed_at is not None and row.tidied_at is None:
        faults.append(("I7", "removed", "it was removed from MLflow without having been tidied"))
    return faults


@dataclass
class _Line:
    """Who has served a model so far."""

    champion: int | None = None
    run: int | None = None
    cut: dict[str, Any] = field(default_factory=dict)
    intent: int | None = None


def promotions(ledger: Ledger, sheet: Sheet) -> None:
    """Each promotion replaces the one before; an automatic one has a passed verdict over just that one, and no older cut."""
    lines: dict[str, _Line] = defaultdict(_Line)
    sheet.looked("I7", "promotions", 0)

    def look(tx: Transaction, rows: Sequence[Any]) -> None:
        ids = [row.version_id for row in rows]
        verdicts: dict[int, list[Any]] = defaultdict(list)
        for one in tx.execute(select(verdict).where(verdict.c.version_id.in_(ids)).order_by(verdict.c.id)):
            verdicts[one.version_id].append(one)
        first = select(promotion.c.version_id, func.min(promotion.c.id)).where(
            promotion.c.version_id.in_(ids), promotion.c.kind == "promoted"
        )
        promoted: dict[int, int] = {
            version_id: id for version_id, id in tx.execute(first.group_by(promotion.c.version_id))
        }
        for row in rows:
            line = lines[row.model]
            for invariant, kind, what in _wrong(row, line, verdicts[row.version_id], promoted):
                named = f"promotion {row.id} of version {row.number} of {row.model} (by {row.actor})"
                sheet.violated(
                    invariant,
                    kind,
                    f"{named}: {what}",
                    _BACK.format(model=row.model),
                    model=row.model,
                    promotion=row.id,
                    version=row.number,
                )
            if row.served_at is not None:
                line.champion, line.run, line.cut = row.version_id, row.run_id, row.cut or {}
            else:
                line.intent = row.id
        sheet.looked("I7", "promotions", len(rows))

    query = select(promotion, version.c.number, version.c.run_id, run.c.cut).join(
        version, version.c.id == promotion.c.version_id
    )
    walk(ledger, query.join(run, run.c.id == version.c.run_id), promotion.c.id, look, size=500)


def _wrong(row: Any, line: _Line, verdicts: list[Any], promoted: dict[int, int]) -> list[tuple[str, str, str]]:
    wrong = []
    if row.replaces_id != line.champion:
        wrong.append(
            (
                "I7",
                "chain",
                f"it says that it replaces {_version(row.replaces_id)}, but {_version(line.champion)} served",
            )
        )
    if line.intent is not None:
        wrong.append(("I7", "overlap", f"it came while promotion {line.intent} was under way"))
    if row.kind == "rolled_back" and promoted.get(row.version_id, row.id) >= row.id:
        wrong.append(("I7", "never_served", "a rollback to a version that had not been promoted before"))
    if row.kind == "promoted" and row.actor != AUTOMATIC and not (verdicts and row.actor and row.reason):
        wrong.append(("I7", "no_word", "by a person, without a verdict, a name or a reason"))
    if row.actor == AUTOMATIC:
        passed = [one for one in verdicts if one.decision == "promote" and one.champion_id == row.replaces_id]
        if not passed:
            wrong.append(("I7", "no_verdict", f"no verdict says that it is better than {_version(row.replaces_id)}"))
        older = [
            name
            for name, part in line.cut.items()
            if _arrival((row.cut or {}).get(name)) < _arrival(part) and name in (row.cut or {})
        ]
        if older or row.run_id < (line.run or 0):
            wrong.append(
                (
                    "I3",
                    "older_champion",
                    f"its run {row.run_id} is older than run {line.run}, whose version it displaced without a rollback",
                )
            )
    return wrong


def _arrival(part: Any) -> int:
    return (part or {}).get("arrival") or 0


def _version(id: int | None) -> str:
    return f"the version of row {id}" if id is not None else "none"
