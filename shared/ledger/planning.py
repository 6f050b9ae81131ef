"""What becomes of runs outside a worker: planned, joined, due, asked for, cancelled, ended."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import bindparam, func, insert, select, update

from shared import policy
from shared.catalog import Catalog
from shared.declaration import Declaration
from shared.errors import Conflict, NotFound
from shared.ledger import configuration, datasets, deliveries, history, numbering, pauses, releases, runs, unchanged
from shared.ledger.releases import Release
from shared.ledger.session import Transaction
from shared.ledger.tables import arrival, run
from shared.ledger.transitions import transition
from shared.lifecycle import RunState, check
from shared.notices import NoticeType
from shared.policy import Facts


def plan(
    tx: Transaction,
    model: str,
    reason: str,
    *,
    asked: bool = False,
    again: bool = False,
    sample: str | None = None,
    traceparent: str | None = None,
) -> int | None:
    """Plan a run, or join the one that waits (I4); None while the model has no valid release. Works out when it is due.

    With `sample` it is one on a part of the rows (`shared.sampling`), beside the model's other runs; of one that waits it is the newer share.
    """
    tx.hold_models(model)
    config, release = configuration.in_force(tx), releases.in_force(tx, model)
    if release is None or model not in config.catalog.models:
        return None
    open_ = runs.all_waiting(tx, model)
    waiting = next((row for row in open_ if (row.sample is None) == (sample is None)), None)
    values: dict[str, Any] = {
        "release_id": release.id,
        "compute_class": release.declaration.compute_class,
        "config_digest": config.digest,
        "sample": sample,
    }
    if waiting is None:
        values |= {"model": model, "state": RunState.WAITING, "reason": reason, "asked": asked, "planned_at": tx.now}
        values |= {"again": again}
        (id,) = numbering.next_ids(tx, run, 1)
        tx.execute(insert(run), {"id": id, "traceparent": traceparent, **values})
    else:
        id = int(waiting.id)
        joined = (
            waiting.reason
            if reason in waiting.reason.split("; ") or len(waiting.reason) > 300
            else f"{waiting.reason}; {reason}"
        )
        values |= {"reason": joined, "asked": asked or waiting.asked, "traceparent": waiting.traceparent or traceparent}
        values |= {"again": again or waiting.again}
        if all(getattr(waiting, name) == value for name, value in values.items()):
            for row in open_:
                _work_out(tx, row)
            return id
        tx.execute(_CHANGE, {"changed": id, **values})
    replan(tx, model)
    return id


_CHANGE = update(run).where(run.c.id == bindparam("changed"))


@dataclass(frozen=True)
class News:
    """Why the growth of a dataset is a reason to train, and the trace that it came under."""

    reason: str
    traceparent: str | None = None


def plan_for_datasets(tx: Transaction, grown: Mapping[str, News]) -> dict[str, tuple[int, ...]]:
    """Plan a run for every model whose release in force uses one of the datasets; the runs of each dataset."""
    users = _users(tx, grown, configuration.in_force(tx).catalog.models)
    tx.hold_models(*users)
    users = _users(tx, grown, users)  # another release may have come before we held them
    planned: dict[str, list[int]] = {dataset: [] for dataset in grown}
    for name, used in users.items():
        for dataset in used:
            id = plan(tx, name, grown[dataset].reason, traceparent=grown[dataset].traceparent)
            planned[dataset] += [id] if id is not None else []
    return {dataset: tuple(ids) for dataset, ids in planned.items()}


def _users(tx: Transaction, grown: Collection[str], models: Iterable[str]) -> dict[str, list[str]]:
    """Which of the datasets each model uses that uses any."""
    in_force = releases.all_in_force(tx, list(models))
    used = {name: [one for one in grown if one in in_force[name].declaration.datasets] for name in in_force}
    return {name: datasets for name, datasets in used.items() if datasets}


@transition
def adopt(
    tx: Transaction,
    model: str,
    name: str,
    commit: str,
    declared: Declaration,
    *,
    content: str | None = None,
    tag: bool = False,
) -> None:
    """Put a new valid release in force and plan a run for it, due at once; none if the model's newest run has trained the same content. A pause ends with it.

    release: none → in force
    run: none → waiting; waiting → same
    By: the watcher
    Fence: one release in force and one waiting run per model
    Again: changes nothing
    """
    tx.lock("configuration", shared=True)
    tx.lock(
        *(f"dataset {name}" for name in declared.datasets)
    )  # rows that arrive now look for the models that use them
    tx.hold_models(model)
    release = releases.adopted(tx, model, name, commit, declared, content, tag=tag)
    if release is None:
        return
    pauses.end(tx, model)
    values = {"release_id": release.id, "compute_class": release.declaration.compute_class}
    tx.execute(update(run).where(run.c.model == model, run.c.state == RunState.WAITING).values(**values))
    if release.moved_from is not None:
        _note_move(tx, release)
    run_id = unchanged.taken_over(tx, model, release)
    if run_id is None:
        plan(tx, model, releases.describe(release), asked=True)
    else:
        _take_over(tx, release, run_id)


def _note_move(tx: Transaction, release: Release) -> None:
    before, after = {"commit": release.moved_from}, {"commit": release.commit}
    why = "the tag was moved in the repository"
    history.note(
        tx, "move", f"tag {release.name}", history.HEADRACE, why, model=release.model, before=before, after=after
    )


def _take_over(tx: Transaction, release: Release, run_id: int) -> None:
    """Without a training: a run that waits for data is due when it was."""
    replan(tx, release.model)
    why = f"changes nothing that run {run_id} was not trained from, so it is not trained again"
    after = {"commit": release.commit}
    history.note(tx, "adopt", f"release {release.name}", history.HEADRACE, why, model=release.model, after=after)


@transition
def ask(
    tx: Transaction,
    model: str,
    reason: str,
    by: str = history.HEADRACE,
    *,
    again: bool = False,
    sample: str | None = None,
) -> int:
    """A person wants the model retrained now, with `again` also if nothing has changed; raises `NotFound` or `Conflict`.

    With `sample` on a part of the rows only: the version is there to build against, and is never promoted.

    run: none → waiting; waiting → same
    By: a person, over REST
    Fence: one waiting run per model, and one on a sample
    Again: joins the run that waits
    """
    id = _ask(tx, model, reason, again=again, sample=sample)
    after = {"run": id} | ({"sample": sample} if sample is not None else {})
    history.note(tx, "retrain", f"run {id}", by, reason, model=model, after=after)
    return id


def _ask(tx: Transaction, model: str, reason: str, *, again: bool, sample: str | None) -> int:
    if model not in configuration.in_force(tx).catalog.models:
        raise NotFound(f"there is no model {model!r}; `headrace models` lists those that there are")
    tx.hold_models(model)
    release = releases.in_force(tx, model)
    if release is None:
        raise Conflict(f"{model} has no valid release yet; `headrace why {model}` says what its repository lacks")
    repeats = not again and sample is None
    if repeats and (same := unchanged.trained(tx, model, release, unchanged.freeze(tx, release)["cut_digest"])):
        raise Conflict(f"{unchanged.SENTENCE.format(run=same)}; `headrace retrain {model} --again` trains anyway")
    id = plan(tx, model, reason, asked=True, again=again, sample=sample)
    assert id is not None
    return id


def replan(tx: Transaction, model: str) -> None:
    """Work out anew when what waits is due; whatever changes the facts calls this in its own transaction."""
    tx.hold_models(model)
    open_ = runs.all_waiting(tx, model)
    if open_ and model not in configuration.in_force(tx).catalog.models:
        call_off(tx, open_[0], "the model is no longer in the configuration")  # with which it comes here for the next
        return
    for waiting in open_:
        _work_out(tx, waiting)


def _work_out(tx: Transaction, waiting: Any) -> None:
    model: str = waiting.model
    config, release = configuration.in_force(tx), releases.find(tx, waiting.release_id)
    facts = gather(tx, waiting, tuple(release.declaration.datasets))
    due = policy.due_at(config.catalog.models[model].policy, facts)
    at = due.at
    if at is not None and at <= tx.now and waiting.due_at is not None:
        # More data costs a run that is due neither its place among the others nor another ring.
        at = min(at, waiting.due_at)
    due_values = {"due_at": at, "sentence": due.sentence, "first_arrival_at": facts.first_at}
    tx.execute(_CHANGE, {"changed": waiting.id, "config_digest": config.digest, **due_values})


@transition
def put_in_force(tx: Transaction, new: Catalog, actor: str) -> bool:
    """Put a configuration in force and work out every due time anew; False when it is the one in force already.

    A model that is back in it is trained on what it has missed; the waiting run of one that is no longer in it is cancelled.

    configuration: none → in force
    run: none → waiting; waiting → same | cancelled
    By: the operator, on the command line; `make up` when the file changes
    Fence: the newest configuration's digest
    Again: changes nothing
    """
    replaced = configuration.put(tx, new, actor)
    if replaced is None:
        return False
    history.note(tx, "apply", "configuration", actor, before=replaced.before, after=replaced.after)
    waiting = tx.execute(select(run.c.model).where(run.c.state == RunState.WAITING)).scalars().all()
    added = configuration.added(tx)
    tx.hold_models(*waiting, *added)
    for name in waiting:
        replan(tx, name)
    for name in added:
        plan(tx, name, "the model is in the configuration again")
    return True


def gather(tx: Transaction, waiting: Any, names: tuple[str, ...]) -> Facts:
    """The facts about a waiting run: what arrived since the newest cut that a run of this model has frozen. One on a sample waits for nothing that arrives."""
    known = datasets.known(tx, list(names))
    without_data, unknown_names = tuple(name for name in names if name not in known), missing(tx, names)
    if waiting.sample is not None:
        beside = runs.find_busy(tx, waiting.model, sample=True)
        busy = int(beside.id) if beside is not None else None
        asked_at = waiting.planned_at
        return Facts(0, 0, None, None, asked_at, busy, without_data=without_data, unknown=unknown_names)
    base, busy, ended = runs.before(tx, waiting.model)
    counts, rows, firsts, lasts = 0, 0, [], []
    unknown = False
    for name in names:
        after = (base.get(name) or {}).get("arrival") or 0
        one = tx.execute(_SINCE, {"of": name, "after": after}).one()
        if one[0]:
            counts, rows, unknown = counts + one[0], rows + (one[1] or 0), unknown or one[2] < one[0]
            firsts.append(one[3])
            lasts.append(one[4])
    return Facts(
        arrivals=counts,
        rows=None if unknown else rows,
        first_at=min(firsts, default=None),
        last_at=max(lasts, default=None),
        asked_at=waiting.planned_at if waiting.asked else None,
        busy=busy,
        last_ended_at=ended,
        failed=paused.failed if (paused := pauses.of(tx, waiting.model)) is not None else None,
        without_data=without_data,
        unknown=unknown_names,
    )


_SINCE = select(
    func.count(),
    func.sum(arrival.c.rows),
    func.count(arrival.c.rows),
    func.min(arrival.c.observed_at),
    func.max(arrival.c.observed_at),
).where(arrival.c.dataset == bindparam("of"), arrival.c.id > bindparam("after"))


def missing(tx: Transaction, names: Iterable[str]) -> tuple[str, ...]:
    """Those datasets that the configuration does not have; a release may have come before them, or outlive them."""
    config = configuration.in_force(tx).catalog
    return tuple(name for name in names if name not in config.datasets)


@transition
def cancel(tx: Transaction, id: int, reason: str, by: str = history.HEADRACE) -> RunState:
    """A running run is told to stop, and becomes cancelled when its worker has seen to it.

    Raises `NotFound`, or `Conflict` for a run that has ended otherwise.

    run: waiting | retrying → cancelled; running → same
    By: a person, over REST
    Fence: state
    Again: changes nothing
    """
    row = runs.hold(tx, id)
    if row.state == RunState.CANCELLED:
        return RunState.CANCELLED
    told = {"state": row.state} | ({"asked_to_stop": True} if row.cancel_reason else {})
    if row.state == RunState.RUNNING:
        tx.execute(update(run).where(run.c.id == id).values(cancel_reason=row.cancel_reason or reason))
        after = {"state": row.state, "asked_to_stop": True}
    else:
        check(RunState(row.state), RunState.CANCELLED)
        call_off(tx, row, reason)
        after = {"state": RunState.CANCELLED}
    if after != told:
        history.note(tx, "cancel", f"run {id}", by, reason, model=row.model, before=told, after=after)
    return RunState(after["state"])


def call_off(
    tx: Transaction, row: Any, reason: str, kind: str = "cancelled", advice: str = "retry it with `headrace retry`"
) -> None:
    """waiting | running | retrying → cancelled; of a running run the worker has gone."""
    end(tx, row, RunState.CANCELLED, {"kind": kind, "message": reason, "advice": advice})


def end(tx: Transaction, row: Any, state: RunState, error: dict[str, Any] | None, **values: Any) -> None:
    """The one way into an end state: notice, and the waiting run's due time worked out anew, in the same transaction."""
    check(RunState(row.state), state)
    tx.execute(
        update(run)
        .where(run.c.id == row.id)
        .values(
            state=state,
            finished_at=tx.now,
            due_at=None,
            lease_until=None,
            lease_owner=None,
            error=error,
            sentence="",
            checkpoint=None,
            **values,
        )
    )
    pauses.count(tx, row, state, error)
    if error is not None:
        kind = NoticeType.RUN_CANCELLED if state is RunState.CANCELLED else NoticeType.RUN_FAILED
        said = error["message"].partition("\n")[0]  # a traceback is for those who may read the run
        data = {"model": row.model, "run": row.id, "reason": row.reason, **error, "message": said}
        data |= {"sample": row.sample} if row.sample is not None else {}
        deliveries.tell(tx, kind, row.model, row.model, data, row.traceparent)
    replan(tx, row.model)


@transition
def retry(tx: Transaction, id: int, reason: str, by: str = history.HEADRACE) -> int:
    """Train again after a failed or cancelled run: a new run (or the waiting one), due at once; what the old one covered is covered again.

    run: none → waiting; waiting → same
    By: a person, over REST
    Fence: the old run has failed or was cancelled
    Again: joins the run that waits
    """
    row = runs.hold(tx, id)
    if row.state not in (RunState.FAILED, RunState.CANCELLED):
        raise Conflict(
            f"run {id} is {row.state}; only a failed or cancelled one can be retried (`headrace retrain {row.model}` trains anew)"
        )
    new = _ask(tx, row.model, reason, again=True, sample=row.sample)
    history.note(tx, "retry", f"run {id}", by, reason, model=row.model, before={"state": row.state}, after={"run": new})
    return new


@transition
def resume(tx: Transaction, model: str, reason: str, by: str = history.HEADRACE) -> None:
    """Let a paused model train of itself again; its failures are counted anew. Raises `NotFound`.

    model: paused → known
    run: waiting → same
    By: a person, over REST
    Fence: none
    Again: changes nothing
    """
    tx.hold_models(model)
    if model not in configuration.in_force(tx).catalog.models:
        raise NotFound(f"there is no model {model!r}; `headrace models` lists those that there are")
    paused = pauses.of(tx, model)
    if paused is None:
        return
    pauses.end(tx, model)
    told = {"paused": True, "failed": paused.failed}
    history.note(tx, "resume", model, by, reason, model=model, before=told, after={"paused": False})
    replan(tx, model)
