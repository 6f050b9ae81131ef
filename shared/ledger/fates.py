"""What became of an arrival, and why a model has not been retrained: computed from the cuts, never stored (I3)."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import Any

from sqlalchemy import select

from shared import sampling
from shared.errors import NotFound
from shared.ledger import arrivals, configuration, datasets, pauses, releases, runs, unchanged, versions, workers
from shared.ledger.session import Transaction
from shared.ledger.tables import release, run
from shared.lifecycle import RunState, VersionState
from shared.messages import train_queue

WORKER_SEEN = timedelta(minutes=1)


class FateKind(StrEnum):
    WAITS = "waits"
    TRAINED = "trained"
    FAILED = "failed"
    CANCELLED = "cancelled"
    SUPERSEDED = "superseded"


@dataclass(frozen=True)
class Fate:
    """What became of one arrival for one model: in which run, as which version, in a sentence."""

    model: str
    kind: FateKind
    run: int | None
    version: int | None
    decision: str | None
    sentence: str


def of_arrival(tx: Transaction, id: int) -> list[Fate]:
    """Exactly one fate for each model that uses the arrival's dataset, or did when it came."""
    row = arrivals.find(tx, id)
    fates = []
    for model in sorted(configuration.in_force(tx).catalog.models):
        uses = _uses(tx, model, row.dataset)
        if uses is not None:
            fates.append(_fate(tx, model, row, uses))
    return fates


def _uses(tx: Transaction, model: str, dataset: str) -> bool | None:
    """True if the release in force uses the dataset, False if only an earlier one did, None if none did."""
    now = releases.in_force(tx, model)
    if now is not None and dataset in now.declaration.datasets:
        return True
    earlier = tx.execute(select(release.c.id).where(release.c.model == model, release.c.refusal.is_(None))).scalars()
    return False if any(dataset in releases.find(tx, id).declaration.datasets for id in earlier) else None


def _fate(tx: Transaction, model: str, arrival: Any, uses: bool) -> Fate:
    """The earliest run whose cut covers it and that has not failed or been cancelled; else the waiting run; else the last that has."""
    covering = [
        row
        for row in _claimed(tx, model)
        if ((row.cut or {}).get(arrival.dataset) or {}).get("arrival", 0) >= arrival.id
    ]
    good = next((row for row in covering if row.state not in (RunState.FAILED, RunState.CANCELLED)), None)
    if good is not None and good.state == RunState.TRAINED:
        return _trained(tx, model, good)
    if good is not None:
        return Fate(model, FateKind.WAITS, good.id, None, None, f"is in run {good.id}, which {describe(tx, good)}")
    waiting = runs.find_waiting(tx, model)
    if uses and waiting is not None:
        return Fate(
            model, FateKind.WAITS, waiting.id, None, None, f"waits in run {waiting.id}, which {describe(tx, waiting)}"
        )
    if covering:
        last = covering[-1]
        kind = FateKind.FAILED if last.state == RunState.FAILED else FateKind.CANCELLED
        return Fate(model, kind, last.id, None, None, f"was in run {last.id}, which {describe(tx, last)}")
    if not uses:
        return Fate(model, FateKind.SUPERSEDED, None, None, None, f"{model} no longer uses {arrival.dataset}")
    return _unclaimed(tx, model, arrival)


def _unclaimed(tx: Transaction, model: str, arrival: Any) -> Fate:
    """No run holds it: the one that did was cancelled before it was claimed, or the model was not in the configuration when it came."""
    last = runs.last(tx, model)
    if last is not None and last.state == RunState.CANCELLED and last.finished_at >= arrival.observed_at:
        return Fate(model, FateKind.CANCELLED, last.id, None, None, f"was in run {last.id}, which {describe(tx, last)}")
    return Fate(model, FateKind.WAITS, None, None, None, "waits for the next run; `headrace retrain` starts one now")


def _trained(tx: Transaction, model: str, row: Any) -> Fate:
    version = versions.of_run(tx, row.id)
    if version is None:
        return Fate(model, FateKind.TRAINED, row.id, None, None, f"is in run {row.id}, which {describe(tx, row)}")
    verdict = versions.last_verdict(tx, version.id)
    decision = verdict.decision if verdict is not None else None
    ending = {
        VersionState.CANDIDATE: "is about to be judged" if decision is None else "passed and is about to serve",
        VersionState.PROMOTED: "was promoted",
        VersionState.REJECTED: "was rejected",
        VersionState.AWAITING: "awaits a person's word" if decision == "promote" else "awaits evidence",
        VersionState.SAMPLE: "is a sample",
    }[VersionState(version.state)]
    return Fate(
        model,
        FateKind.TRAINED,
        row.id,
        version.number,
        decision,
        f"was trained in run {row.id}; version {version.number} {ending}",
    )


def _claimed(tx: Transaction, model: str) -> list[Any]:
    """Those that answer what has arrived: not the runs on a sample."""
    whole = run.c.model == model, run.c.cut.is_not(None), run.c.sample.is_(None)
    return list(tx.execute(select(run).where(*whole).order_by(run.c.id)))


def describe(tx: Transaction, row: Any) -> str:
    """One clause about a run: what it does, or what it waits for and until when."""
    match RunState(row.state):
        case RunState.WAITING | RunState.RETRYING:
            return _waiting(tx, row)
        case RunState.RUNNING:
            return _running(tx, row)
        case RunState.TRAINED:
            return f"was trained at {_time(row.finished_at)}{_unregistered(tx, row)}"
        case RunState.CANCELLED:
            return f"was cancelled: {_first_line((row.error or {}).get('message'))}"
        case RunState.FAILED:
            error = row.error or {}
            advice = f"; {error['advice']}" if error.get("advice") else ""
            return f"failed ({error.get('kind')}): {_first_line(error.get('message'))}{advice}"


def _running(tx: Transaction, row: Any) -> str:
    stopping = f"; it is being cancelled: {row.cancel_reason}" if row.cancel_reason else ""
    if row.lease_until < tx.now:
        silent = f"lost its worker {row.lease_owner} (attempt {row.token}), silent since {_time(row.lease_until)},"
        return f"{silent} {_next_worker(tx, row)}{stopping}"
    note = f", {row.progress_note}" if row.progress_note else ""
    done = f" ({row.progress:.0%}{note})" if row.progress is not None else ""
    return f"is training on {row.lease_owner}, attempt {row.token}{done}{stopping}"


def _unregistered(tx: Transaction, row: Any) -> str:
    if versions.of_run(tx, row.id) is not None:
        return ""
    why = f": {_first_line(row.registration_error)}" if row.registration_error else ""
    return f" and waits to be registered in MLflow{why}"


def _waiting(tx: Transaction, row: Any) -> str:
    if row.due_at is None:
        return str(row.sentence)
    if row.due_at > tx.now:
        return f"{row.sentence}; due at {_time(row.due_at)}"
    who = _next_worker(tx, row)
    return f"is due ({row.sentence}) {who}" if who == _AT_ONCE else f"is due since {_time(row.due_at)} {who}"


_AT_ONCE = "and is about to be claimed"


def _next_worker(tx: Transaction, row: Any) -> str:
    """What a run that can be claimed waits for."""
    alive = [one for one in workers.alive(tx, WORKER_SEEN) if one.compute_class == row.compute_class]
    if not alive:
        command = workers.start_command(row.compute_class)
        return f"but no worker serves {train_queue(row.compute_class)}; start one with `{command}`"
    if all(one.busy >= one.slots for one in alive):
        return f"and waits for a free slot: {len(alive)} worker(s) of class {row.compute_class} are busy"
    return _AT_ONCE


def why(tx: Transaction, model: str) -> list[str]:
    """Why the model has (not) been retrained, in sentences: what is wrong first, then what runs, waits and serves."""
    config = configuration.in_force(tx).catalog
    if model not in config.models:
        raise NotFound(f"there is no model {model!r}; known are: {', '.join(sorted(config.models)) or 'none'}")
    first = [*_release_news(tx, model), *_source_news(tx, model), *_pause_news(tx, model)]
    return [*first, *_run_news(tx, model), *_version_news(tx, model)]


def _release_news(tx: Transaction, model: str) -> list[str]:
    look, seen, in_force = releases.looks(tx).get(model), releases.seen(tx, model), releases.in_force(tx, model)
    news = []
    if look is not None and look.error:
        news.append(f"Its repository cannot be read: {look.error}")
    if seen is not None and seen.refusal:
        stays = f"; {in_force.name} stays in force" if in_force is not None else ""
        news.append(f"Release {seen.name} was refused{stays}: {seen.refusal.replace(chr(10), '; ')}")
    if in_force is None:
        return [*news, "It has no valid release yet, so nothing can be trained."]
    if in_force.moved_from is not None:
        news.append(f"Its {releases.describe(in_force)}: a tag that moves names no release for good; tag a new one.")
    if (same := unchanged.taken_over(tx, model, in_force)) is not None:
        news.append(f"Release {in_force.name} changes nothing that counts since run {same}, so it was not trained.")
    return news


def _source_news(tx: Transaction, model: str) -> list[str]:
    in_force = releases.in_force(tx, model)
    used = in_force.declaration.datasets if in_force is not None else {}
    return [
        f"Dataset {row.name} cannot be read: {row.error}"
        for row in datasets.find_all(tx)
        if row.name in used and row.error
    ]


def _pause_news(tx: Transaction, model: str) -> list[str]:
    if (paused := pauses.of(tx, model)) is None:
        return []
    last = runs.last(tx, model, RunState.FAILED)
    why = f"; run {last.id} {describe(tx, last)}" if last is not None else ""
    advice = pauses.advice(model)
    since = f"It is paused since {_time(paused.since)}, for its last {paused.failed} runs have failed{why}."
    return [f"{since} {advice[0].upper()}{advice[1:]}."]


def _run_news(tx: Transaction, model: str) -> list[str]:
    rows = [row for row in (runs.find_busy(tx, model), runs.find_waiting(tx, model)) if row is not None]
    news = [f"Run {row.id} ({row.reason}) {describe(tx, row)}." for row in rows]
    if not rows:
        last = runs.last(tx, model)
        news.append(
            f"Nothing new since run {last.id} ({last.reason}), which {describe(tx, last)}."
            if last is not None
            else "It has never been trained."
        )
    return [*news, *_sample_run_news(tx, model)]


def _sample_run_news(tx: Transaction, model: str) -> list[str]:
    rows = runs.find_busy(tx, model, sample=True), runs.find_waiting(tx, model, sample=True)
    return [
        f"Run {row.id}, on {sampling.describe(row.sample)} ({row.reason}), {describe(tx, row)}."
        for row in rows
        if row is not None
    ]


def _version_news(tx: Transaction, model: str) -> list[str]:
    newest = versions.newest(tx, model)
    champion = versions.champion(tx, model)
    news = _sample_news(tx, model)
    if newest is not None and (champion is None or newest.id != champion.id):
        verdict = versions.last_verdict(tx, newest.id)
        reasons = f": {'; '.join(verdict.reasons)}" if verdict is not None else ""
        news.append(f"Version {newest.number} (run {newest.run_id}) is {newest.state}{reasons}.")
    since = versions.champion_since(tx, model)
    serves = (
        f"Version {champion.number} serves since {_time(since.served_at)}."
        if champion is not None
        else "No version serves yet."
    )
    return [*news, serves]


def _sample_news(tx: Transaction, model: str) -> list[str]:
    row = versions.newest(tx, model, sample=True)
    if row is None or row.tidied_at is not None:
        return []
    what = sampling.describe(runs.find(tx, row.run_id).sample)
    return [f"Version {row.number} (run {row.run_id}) is {what}, to build against; it never serves."]


def _time(at: Any) -> str:
    return f"{at:%Y-%m-%d %H:%M:%S}Z"


def _first_line(text: str | None) -> str:
    return (text or "").strip().splitlines()[0][:300] if (text or "").strip() else ""
