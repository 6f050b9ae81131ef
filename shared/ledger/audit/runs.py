"""I3, I4 and I5: each run's claims, cut and end fit together, and no arrival has been left without a fate."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from sqlalchemy import func, select

from shared.audit import Sheet
from shared.errors import ConfigurationError
from shared.ledger import configuration, releases, runs
from shared.ledger.audit.walk import walk
from shared.ledger.session import Ledger, Transaction
from shared.ledger.tables import arrival, attempt, run
from shared.lifecycle import RunState

_DEFECT = (
    "no step of Headrace leaves a run like this: keep a copy of the ledger, report it, and `headrace retrain` the model"
)
_ENDED = (RunState.TRAINED, RunState.FAILED, RunState.CANCELLED)
_COLUMNS = ("id", "model", "sample", "state", "token", "lease_owner", "lease_until", "cut", "cut_digest", "started_at", "finished_at", "bundle", "tidied_at")  # fmt: skip


def places(ledger: Ledger, sheet: Sheet) -> None:
    """At most one waiting and one running or retrying run for each model, and as many on a sample beside them."""
    whole, sample = run.c.sample.is_(None), run.c.sample.is_not(None)
    kinds = (
        ("waiting", (RunState.WAITING,), whole),
        ("running", runs.BUSY, whole),
        ("sample_waiting", (RunState.WAITING,), sample),
        ("sample_running", runs.BUSY, sample),
    )
    with ledger.read() as tx:
        for place, states, kind in kinds:
            mine = select(run.c.model, func.count(), func.min(run.c.id), func.max(run.c.id)).where(
                run.c.state.in_(states), kind
            )
            for model, number, first, last in tx.execute(mine.group_by(run.c.model)):
                sheet.looked("I4", f"{place} runs", number)
                if number > 1:
                    sheet.violated(
                        "I4",
                        f"two_{place}",
                        f"{model} has {number} {place} runs, from run {first} to run {last}",
                        f"the unique index uq_run_{place} is gone: cancel all but one (`headrace cancel N`), and make it again",
                        model=model,
                    )


def claims(ledger: Ledger, sheet: Sheet) -> None:
    """Run by run: its token is its newest attempt's, every attempt before that is closed, and its cut goes no less far than the one before."""
    cuts: dict[str, dict[str, Any]] = {}
    sheet.looked("I5", "runs", 0)
    sheet.looked("I3", "cuts", 0)

    def look(tx: Transaction, rows: Sequence[Any]) -> None:
        attempts = _attempts(tx, rows)
        covered = _covered(tx, rows)
        for row in rows:
            for kind, what in _faults(row, attempts[row.id]):
                sheet.violated("I5", kind, f"run {row.id} of {row.model} ({row.state}): {what}", _DEFECT, run=row.id)
            if row.cut is not None:
                _cut(sheet, row, cuts.get(row.model, {}) if row.sample is None else {}, covered)
                if row.sample is None:  # one on a sample trains beside the others, and may come after a later one
                    cuts[row.model] = row.cut
        sheet.looked("I5", "runs", len(rows))
        sheet.looked("I5", "attempts", sum(map(len, attempts.values())))
        sheet.looked("I3", "cuts", sum(row.cut is not None for row in rows))

    walk(ledger, select(*(run.c[name] for name in _COLUMNS)), run.c.id, look)


def _attempts(tx: Transaction, rows: Sequence[Any]) -> dict[int, list[Any]]:
    found: dict[int, list[Any]] = defaultdict(list)
    columns = attempt.c.run_id, attempt.c.number, attempt.c.ended_at, attempt.c.outcome
    ours = attempt.c.run_id.between(rows[0].id, rows[-1].id)
    for row in tx.execute(select(*columns).where(ours).order_by(attempt.c.run_id, attempt.c.number)):
        found[row.run_id].append(row)
    return found


def _faults(row: Any, attempts: list[Any]) -> list[tuple[str, str]]:
    """What is wrong with a run and its attempts, which are in the order of their numbers."""
    numbers, open_ = [one.number for one in attempts], [one.number for one in attempts if one.ended_at is None]
    running, ended = row.state == RunState.RUNNING, row.state in _ENDED
    faults = []
    if row.state not in set(RunState):
        faults.append(("state", "there is no such state"))
    if numbers != list(range(1, row.token + 1)):
        faults.append(("token", f"its token is {row.token}, but its attempts are {numbers[-5:] or 'none'}"))
    if open_ != ([row.token] if running else []):
        faults.append(
            (
                "open_attempt",
                f"attempt {', '.join(map(str, open_)) or 'none'} is open, and {row.token if running else 'none'} should be",
            )
        )
    if running != (row.lease_until is not None):
        faults.append(("lease", "it has no lease" if running else f"{row.lease_owner} has a lease of it"))
    if ended != (row.finished_at is not None):
        faults.append(
            ("end", "it has ended, and nobody knows when" if ended else f"it ended at {row.finished_at}, and goes on")
        )
    if (row.token > 0) != (row.cut is not None):
        faults.append(
            ("cut", "it was claimed without a cut" if row.token else "it has a cut, and nobody has claimed it")
        )
    if row.state == RunState.TRAINED and (not attempts or attempts[-1].outcome != "trained"):
        faults.append(("outcome", f"its newest attempt ended as {attempts[-1].outcome if attempts else 'none'}"))
    if row.state == RunState.TRAINED and (row.bundle is None) != (row.tidied_at is not None):
        faults.append(
            (
                "bundle",
                "it has no bundle, and nobody has tidied it away"
                if row.bundle is None
                else "its bundle was tidied away, and is still named",
            )
        )
    return faults


def _covered(tx: Transaction, rows: Sequence[Any]) -> dict[int, str]:
    """The datasets of the arrivals that these runs' cuts end with."""
    ids = sorted({id for row in rows for part in (row.cut or {}).values() if (id := part.get("arrival"))})
    return {
        row.id: row.dataset for row in tx.execute(select(arrival.c.id, arrival.c.dataset).where(arrival.c.id.in_(ids)))
    }


def _cut(sheet: Sheet, row: Any, before: dict[str, Any], covered: dict[int, str]) -> None:
    """A later claim sees at least what an earlier one saw; else the fates of the arrivals between are wrong."""
    if row.cut_digest != _digest(row.cut):
        sheet.violated(
            "I5",
            "cut_digest",
            f"the cut of run {row.id} was changed after its claim: its digest is another",
            _DEFECT,
            run=row.id,
        )
    for name, part in row.cut.items():
        upto, earlier = part.get("arrival") or 0, (before.get(name) or {}).get("arrival") or 0
        if upto < earlier:
            what = f"run {row.id} of {row.model} saw {name} up to arrival {upto}, the run before it up to arrival {earlier}"
            sheet.violated("I3", "older_cut", what, _DEFECT, run=row.id, dataset=name)
        if upto and covered.get(upto) != name:
            what = f"run {row.id} of {row.model} saw {name} up to arrival {upto}, which is no arrival of {name}"
            sheet.violated("I3", "unknown_arrival", what, _DEFECT, run=row.id, dataset=name)


def _digest(value: Any) -> str:
    return "sha256:" + hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def fates(ledger: Ledger, sheet: Sheet) -> None:
    """Whatever came behind a model's newest cut waits in a run, or was given up with one; worked out from the cuts alone."""
    with ledger.read() as tx:
        try:
            models = sorted(configuration.in_force(tx).catalog.models)
        except ConfigurationError:
            models = []
    for model in models:
        with ledger.read() as tx:
            _fate(tx, sheet, model)
    sheet.looked("I3", "models", len(models))


def _fate(tx: Transaction, sheet: Sheet, model: str) -> None:
    release = releases.in_force(tx, model)
    if release is None or runs.find_waiting(tx, model) is not None:
        return
    given_up = select(func.max(run.c.finished_at)).where(run.c.model == model, run.c.state == RunState.CANCELLED)
    since = max(filter(None, (release.seen_at, tx.execute(given_up.where(run.c.sample.is_(None))).scalar())))
    base, _, _ = runs.before(tx, model)
    for name in release.declaration.datasets:
        behind = arrival.c.dataset == name, arrival.c.id > ((base.get(name) or {}).get("arrival") or 0)
        lost = select(func.count(), func.min(arrival.c.id), func.max(arrival.c.id)).where(
            *behind, arrival.c.observed_at > since
        )
        number, first, last = tx.execute(lost).one()
        if number:
            sheet.violated(
                "I3",
                "no_fate",
                f"{number} arrivals of {name} ({first} to {last}) are in no cut of {model}, and no run of it waits",
                f"`headrace retrain {model}` trains on them now; keep a copy of the ledger and report it",
                model=model,
                dataset=name,
                arrival=first,
            )
