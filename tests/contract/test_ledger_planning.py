"""What becomes of runs outside a worker: planned, joined, asked for, due, rung, called off (I4)."""

from __future__ import annotations

from datetime import timedelta

import pytest
from sqlalchemy import insert
from sqlalchemy.exc import IntegrityError

from shared.arrivals import Report
from shared.errors import Conflict, NotFound
from shared.ledger import Ledger, arrivals, attempts, deliveries, fates, planning, runs, workers
from shared.ledger.tables import run
from shared.lifecycle import RunState
from tests.ledgers import CONFIG, START, HandClock, adopt, claim, declare, finish, grow, put_config, train, waiting

WITHOUT_MODEL = CONFIG.split("[models.delays]")[0]
PATIENT = CONFIG.replace("{ min_rows = 100 }", '{ quiet = "10s", cooldown = "1m", max_wait = "5m" }')


def due(ledger: Ledger) -> tuple[object, str]:
    with ledger.read() as tx:
        row = runs.find(tx, runs.find_waiting(tx, "delays").id)
        return row.due_at, row.sentence


def ask(ledger: Ledger, model: str = "delays") -> int:
    with ledger.write() as tx:
        return planning.ask(tx, model, "alice wants it")


def cancel(ledger: Ledger, id: int) -> RunState:
    with ledger.write() as tx:
        return planning.cancel(tx, id, "not now")


def unrung(ledger: Ledger) -> list[int]:
    with ledger.read() as tx:
        return [row.id for row in runs.unrung(tx, ["standard"])]


def ring(ledger: Ledger) -> list[int]:
    ids = unrung(ledger)
    with ledger.write() as tx:
        runs.rung(tx, ids)
    return ids


def test_a_new_release_is_trained_at_once_when_there_is_data(ledger: Ledger) -> None:
    adopt(ledger)
    assert due(ledger) == (None, "waits for the first rows of flights")
    grow(ledger, 1)
    assert due(ledger) == (START, "was asked for, due at once")


def test_too_few_rows_wait_for_more(ledger: Ledger) -> None:
    adopt(ledger)
    train(ledger)
    grow(ledger, 99)
    assert due(ledger) == (None, "has 99 new rows and waits for 100 (min_rows)")
    grow(ledger, 1)
    assert due(ledger)[0] == START


def test_a_new_release_joins_the_run_that_waits_and_replaces_its_release(ledger: Ledger) -> None:
    adopt(ledger)
    train(ledger)
    grow(ledger, 1)
    first = waiting(ledger)
    adopt(ledger, name="v2.0.0", commit="b" * 40, compute_class="gpu")
    with ledger.read() as tx:
        row = runs.find(tx, first)
        assert (row.reason, row.due_at) == ("1 new rows in flights; new release v2.0.0", START)
        assert row.compute_class == "gpu"
        assert runs.claimable(tx, "gpu") == first
        assert runs.claimable(tx, "standard") is None


def test_the_database_itself_refuses_a_second_waiting_or_running_run(ledger: Ledger) -> None:
    adopt(ledger)
    grow(ledger)
    assert claim(ledger, waiting(ledger)) is not None
    grow(ledger)
    row = {"model": "delays", "reason": "", "release_id": 1, "compute_class": "standard", "planned_at": START}
    for state in (RunState.WAITING, RunState.RUNNING, RunState.RETRYING):
        with pytest.raises(IntegrityError), ledger.write() as tx:
            tx.execute(insert(run).values(state=state, config_digest="", **row))


def test_quiet_cooldown_and_max_wait_move_the_due_time(ledger: Ledger, clock: HandClock) -> None:
    put_config(ledger, PATIENT)
    adopt(ledger)
    train(ledger)
    grow(ledger)
    assert due(ledger) == (START + timedelta(minutes=1), "rests 1 min after the last run (cooldown)")
    clock.forward(seconds=55)
    grow(ledger)
    assert due(ledger)[0] == START + timedelta(seconds=65)
    for _ in range(50):
        clock.forward(seconds=5)
        grow(ledger, 1)
    assert due(ledger)[0] == START + timedelta(minutes=5)


def test_a_run_that_was_cancelled_before_it_ran_costs_no_cooldown(ledger: Ledger, clock: HandClock) -> None:
    put_config(ledger, PATIENT)
    adopt(ledger)
    train(ledger)
    clock.forward(minutes=2)
    grow(ledger)
    cancel(ledger, waiting(ledger))
    grow(ledger)
    assert due(ledger)[0] == clock.now() + timedelta(seconds=10)


def test_a_new_policy_moves_the_due_time_of_the_run_that_waits(ledger: Ledger) -> None:
    adopt(ledger)
    train(ledger)
    grow(ledger, 50)
    put_config(ledger, CONFIG.replace("min_rows = 100", "min_rows = 50"))
    assert due(ledger) == (START, "has 50 new rows, enough to start")
    put_config(ledger, CONFIG.replace("min_rows = 100", "min_rows = 51"))
    assert due(ledger)[0] is None
    assert claim(ledger, waiting(ledger)) is None


def test_a_run_says_which_configuration_has_planned_it(ledger: Ledger) -> None:
    adopt(ledger)
    grow(ledger)
    with ledger.read() as tx:
        before = runs.find_waiting(tx, "delays").config_digest
    put_config(ledger, PATIENT)
    with ledger.read() as tx:
        assert runs.find_waiting(tx, "delays").config_digest != before


def test_the_waiting_run_of_a_model_that_leaves_the_configuration_is_called_off(ledger: Ledger) -> None:
    adopt(ledger)
    grow(ledger)
    left = waiting(ledger)
    put_config(ledger, WITHOUT_MODEL)
    with ledger.read() as tx:
        row = runs.find(tx, left)
        assert (row.state, row.error["message"]) == (
            RunState.CANCELLED,
            "the model is no longer in the configuration",
        )
        assert runs.next_due(tx) is None
    assert claim(ledger, left) is None
    with pytest.raises(NotFound):
        ask(ledger)


def test_a_run_waits_while_its_dataset_is_not_in_the_configuration(ledger: Ledger) -> None:
    adopt(ledger)
    grow(ledger)
    put_config(ledger, CONFIG.replace("[datasets.flights]", "[datasets.other]"))
    assert due(ledger) == (None, "waits for dataset flights, which is not in the configuration")
    put_config(ledger, CONFIG)
    assert claim(ledger, waiting(ledger)) is not None


def test_what_is_asked_for_joins_the_waiting_run_and_is_due_at_once(ledger: Ledger) -> None:
    adopt(ledger)
    train(ledger)
    grow(ledger, 1)
    first = waiting(ledger)
    assert ask(ledger) == first
    assert ask(ledger) == first
    with ledger.read() as tx:
        assert runs.find(tx, first).reason == "1 new rows in flights; alice wants it"
    assert claim(ledger, first) is not None
    assert ask(ledger) != first


def test_what_was_trained_already_is_trained_again_only_if_a_person_insists(ledger: Ledger) -> None:
    adopt(ledger)
    run = train(ledger)
    with pytest.raises(Conflict, match=rf"nothing has changed since run {run}: .*`headrace retrain delays --again`"):
        ask(ledger)
    with ledger.write() as tx:
        again = planning.ask(tx, "delays", "another seed", again=True)
    claimed = claim(ledger, again)
    assert claimed is not None
    finish(ledger, claimed)
    grow(ledger, 1)
    assert claim(ledger, ask(ledger)) is not None


def test_a_run_that_has_nothing_new_to_train_when_its_turn_comes_is_called_off(ledger: Ledger) -> None:
    adopt(ledger)
    run = train(ledger)
    adopt(ledger, name="v2.0.0", commit="b" * 40)
    adopt(ledger, name="v1.0.1")  # the tag v2.0.0 is gone again
    left = waiting(ledger)
    assert claim(ledger, left) is None
    with ledger.read() as tx:
        row = runs.find(tx, left)
        assert (row.state, row.error["kind"]) == (RunState.CANCELLED, "unchanged")
        assert row.error["message"] == f"nothing has changed since run {run}: the same code and the same data"
        assert "--again" in row.error["advice"]
        assert [one.kind for one in fates.of_arrival(tx, 1)] == ["trained"]


def test_what_has_failed_is_tried_again_without_insisting(ledger: Ledger) -> None:
    adopt(ledger)
    train(ledger)
    with ledger.write() as tx:
        again = planning.ask(tx, "delays", "another seed", again=True)
    claimed = claim(ledger, again)
    assert claimed is not None
    with ledger.write() as tx:
        attempts.fail(tx, claimed.run, claimed.token, attempts.Failure("author_error", "no luck"), {})
        new = planning.retry(tx, claimed.run, "once more")
    assert claim(ledger, new) is not None


def test_a_model_without_a_release_cannot_be_asked_for(ledger: Ledger) -> None:
    with pytest.raises(Conflict, match="has no valid release yet"):
        ask(ledger)
    with pytest.raises(NotFound):
        ask(ledger, "unknown")


def test_a_reason_is_not_lost_because_it_is_part_of_another(ledger: Ledger) -> None:
    adopt(ledger)
    train(ledger)
    for rows in (21, 1, 1):
        grow(ledger, rows)
    with ledger.read() as tx:
        assert runs.find_waiting(tx, "delays").reason == "21 new rows in flights; 1 new rows in flights"


def test_a_thousand_arrivals_do_not_make_an_endless_reason(ledger: Ledger) -> None:
    adopt(ledger)
    for rows in range(1, 60):
        grow(ledger, rows)
    with ledger.read() as tx:
        assert len(runs.find_waiting(tx, "delays").reason) < 350


def test_a_cancelled_run_is_told_once_and_its_rows_count_for_the_next(ledger: Ledger) -> None:
    adopt(ledger)
    train(ledger)
    grow(ledger, 99)
    first = waiting(ledger)
    assert (cancel(ledger, first), cancel(ledger, first)) == (RunState.CANCELLED, RunState.CANCELLED)
    with ledger.read() as tx:
        assert [one.type for one in deliveries.read(tx, 0, 99)].count("run.cancelled") == 1
    grow(ledger, 1)
    assert waiting(ledger) != first
    assert due(ledger)[0] == START


def test_a_cancelled_run_can_be_retried_and_covers_the_same_rows(ledger: Ledger) -> None:
    adopt(ledger)
    grow(ledger)
    first = waiting(ledger)
    cancel(ledger, first)
    with ledger.write() as tx:
        second = planning.retry(tx, first, "once more")
    claimed = claim(ledger, second)
    assert claimed is not None
    assert claimed.cut["flights"].upto == 1000
    with pytest.raises(Conflict, match="only a failed or cancelled one"), ledger.write() as tx:
        planning.retry(tx, second, "too early")


def test_unknown_runs_are_not_found(ledger: Ledger) -> None:
    for act in (planning.cancel, planning.retry):
        with pytest.raises(NotFound), ledger.write() as tx:
            act(tx, 99, "x")


def test_a_bell_is_rung_once_for_each_time_that_a_run_becomes_due(ledger: Ledger, clock: HandClock) -> None:
    adopt(ledger)
    assert ring(ledger) == []
    grow(ledger)
    first = waiting(ledger)
    assert ring(ledger) == [first]
    assert ring(ledger) == []
    claimed = claim(ledger, first)
    assert claimed is not None
    clock.forward(seconds=1)
    grow(ledger)
    assert ring(ledger) == []
    finish(ledger, claimed)
    assert ring(ledger) == [waiting(ledger)]


def test_slots_are_free_that_no_run_has_or_is_on_its_way_to(ledger: Ledger, clock: HandClock) -> None:
    def free() -> dict[str, int]:
        with ledger.read() as tx:
            return workers.free_slots(tx, timedelta(minutes=1))

    with ledger.write() as tx:
        workers.seen(tx, "w1", "standard", 1, 0)
        workers.seen(tx, "w2", "standard", 2, 0)
        workers.seen(tx, "w3", "gpu", 1, 0)
    adopt(ledger)
    grow(ledger)
    assert free() == {"standard": 3, "gpu": 1}
    run = waiting(ledger)
    assert ring(ledger) == [run]
    assert free() == {"standard": 2, "gpu": 1}
    clock.forward(seconds=16)
    assert free() == {"standard": 3, "gpu": 1}, "nobody heard it"
    assert claim(ledger, run) is not None
    assert free() == {"standard": 2, "gpu": 1}
    clock.forward(seconds=31)
    assert free() == {"standard": 3, "gpu": 1}, "its worker is silent, and the run is there to be claimed"
    clock.forward(seconds=30)
    assert free() == {}


def test_the_bell_is_told_when_the_next_run_becomes_due(ledger: Ledger) -> None:
    put_config(ledger, PATIENT)
    adopt(ledger)
    train(ledger)
    grow(ledger)
    with ledger.read() as tx:
        assert runs.next_due(tx) == START + timedelta(minutes=1)
    assert unrung(ledger) == []


def test_a_run_that_is_due_keeps_its_place_in_the_queue_while_more_data_comes(ledger: Ledger, clock: HandClock) -> None:
    """Else a model with steady arrivals would be passed by every other, and never be old enough for a worker's own look."""
    put_config(ledger, CONFIG + '\n[models.second]\nrepository = "file:///nowhere/second.git"\n')
    adopt(ledger)
    adopt(ledger, "second", dataset="reported")
    train(ledger)
    with ledger.write() as tx:
        arrivals.receive(tx, _report())
    other = claim(ledger, waiting(ledger, "second"))
    assert other is not None
    finish(ledger, other)
    clock.forward(seconds=1)
    grow(ledger)
    first = waiting(ledger)
    assert ring(ledger) == [first]
    clock.forward(seconds=1)
    with ledger.write() as tx:
        arrivals.receive(tx, _report())
    for _ in range(5):
        clock.forward(seconds=0.3)
        grow(ledger)
    with ledger.read() as tx:
        assert runs.find(tx, first).due_at == START + timedelta(seconds=1)
        assert runs.claimable(tx, "standard", timedelta(seconds=0.5)) == first
    assert unrung(ledger) == [waiting(ledger, "second")]


def _report() -> Report:
    return Report(dataset="reported", source="/loader", rows=1)


def test_quiet_starts_anew_with_each_arrival_until_a_worker_has_the_run(ledger: Ledger, clock: HandClock) -> None:
    put_config(ledger, PATIENT)
    adopt(ledger)
    train(ledger)
    clock.forward(minutes=2)
    grow(ledger)
    clock.forward(seconds=11)
    grow(ledger)
    assert due(ledger)[0] == clock.now() + timedelta(seconds=10)


def test_the_longest_due_run_comes_first_and_a_lost_one_counts_from_its_lease(ledger: Ledger, clock: HandClock) -> None:
    put_config(ledger, CONFIG + '\n[models.second]\nrepository = "file:///nowhere/second.git"\n')
    adopt(ledger)
    adopt(ledger, "second")
    grow(ledger)
    lost, other = waiting(ledger), waiting(ledger, "second")
    assert claim(ledger, lost) is not None
    with ledger.read() as tx:
        assert runs.claimable(tx, "standard") == other
    assert claim(ledger, other) is not None
    clock.forward(seconds=30.5)
    with ledger.read() as tx:
        assert runs.claimable(tx, "standard", timedelta(seconds=0.5)) is None
        assert runs.claimable(tx, "standard") == lost
        assert runs.is_claimable(tx, lost)


def test_a_run_that_needs_two_datasets_waits_for_both_and_counts_both(ledger: Ledger) -> None:
    with ledger.write() as tx:
        planning.adopt(tx, "delays", "v1", "a" * 40, declare(datasets={"flights": {}, "reported": {}}))
    grow(ledger)
    assert due(ledger) == (None, "waits for the first rows of reported")
    with ledger.write() as tx:
        arrivals.receive(tx, _report())
    claimed = claim(ledger, waiting(ledger))
    assert claimed is not None
    assert {name: part.upto for name, part in claimed.cut.items()} == {"flights": 1000, "reported": None}
    finish(ledger, claimed)
    grow(ledger, 99)
    assert due(ledger)[0] is None
    with ledger.write() as tx:
        arrivals.receive(tx, _report())
    assert due(ledger)[0] == START


def test_runs_are_counted_by_state(ledger: Ledger) -> None:
    adopt(ledger)
    train(ledger)
    grow(ledger)
    with ledger.read() as tx:
        assert runs.count(tx) == {"trained": 1, "waiting": 1}
