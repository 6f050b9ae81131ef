"""A run on a sample: a version to build against on the first day, and nothing else of the model is different for it."""

from __future__ import annotations

from typing import Any

import pytest

from shared.arrivals import Report
from shared.errors import Conflict
from shared.gates import Decision, Verdict
from shared.ledger import (
    Ledger,
    arrivals,
    attempts,
    deliveries,
    fates,
    history,
    pauses,
    planning,
    restored,
    retention,
    runs,
    unchanged,
    usage,
    versions,
)
from shared.ledger.attempts import Claim, Failure
from shared.lifecycle import RunState
from tests import audited
from tests.ledgers import (
    CONFIG,
    HandClock,
    adopt,
    champion,
    claim,
    finish,
    grow,
    put_config,
    register,
    serve,
    train,
    waiting,
)

WRONG = Failure("author_error", "KeyError: 'x'", "mend the code")


def ask(ledger: Ledger, sample: str | None = "1%", **more: Any) -> int:
    with ledger.write() as tx:
        return planning.ask(tx, "delays", "consumers begin", "carol", sample=sample, **more)


def take(ledger: Ledger, run: int) -> Claim:
    held = claim(ledger, run)
    assert held is not None
    return held


def sampled(ledger: Ledger, number: int, sample: str = "1%") -> int:
    """A trained and registered run on a sample."""
    held = take(ledger, ask(ledger, sample))
    finish(ledger, held)
    register(ledger, held.run, number)
    return held.run


def state(ledger: Ledger, run: int) -> str:
    with ledger.read() as tx:
        return str(runs.find(tx, run).state)


def why(ledger: Ledger) -> str:
    with ledger.read() as tx:
        return " ".join(fates.why(tx, "delays"))


def test_a_model_that_was_never_trained_is_trained_on_the_newest_hundredth(ledger: Ledger) -> None:
    adopt(ledger)
    grow(ledger, 10_000)
    held = take(ledger, ask(ledger))
    assert held.cut["flights"].newest == 90, "of the 9,000 that are not held out"
    assert (held.cut["flights"].upto, held.cut["flights"].holdout_above) == (10_000, 9_000)
    assert held.champion is None
    with ledger.read() as tx:
        assert history.find_all(tx, model="delays", before=None, limit=1)[0].after == {"run": held.run, "sample": "1%"}


def test_it_trains_beside_the_run_that_new_data_waits_in_and_takes_nothing_from_it(ledger: Ledger) -> None:
    adopt(ledger)
    arrival = grow(ledger)
    real = waiting(ledger)
    beside = ask(ledger)
    assert beside != real
    finish(ledger, take(ledger, beside))
    with ledger.read() as tx:
        (fate,) = fates.of_arrival(tx, arrival)
        assert (fate.kind, fate.run) == ("waits", real)
        assert arrivals.answered_by(tx, runs.find(tx, beside)) == []
    finish(ledger, take(ledger, real))
    with ledger.read() as tx:
        assert arrivals.answered_by(tx, runs.find(tx, real)) == [arrival]
    earlier = ask(ledger)
    newer = grow(ledger)
    finish(ledger, take(ledger, earlier))
    later = take(ledger, waiting(ledger))
    with ledger.read() as tx:
        assert arrivals.answered_by(tx, runs.find(tx, later.run)) == [newer]


def test_both_train_at_once_and_of_each_kind_there_is_one(ledger: Ledger) -> None:
    adopt(ledger)
    grow(ledger)
    real, beside = take(ledger, waiting(ledger)), take(ledger, ask(ledger))
    next_one = ask(ledger, "5%")
    assert ask(ledger, "7%") == next_one, "the newer share joins the one that waits"
    assert claim(ledger, next_one) is None
    with ledger.read() as tx:
        assert runs.find(tx, next_one).sentence == f"waits for run {beside.run} of the same model to end"
        assert runs.find(tx, next_one).sample == "7%"
    finish(ledger, real)
    assert claim(ledger, next_one) is None
    finish(ledger, beside)
    assert take(ledger, next_one).cut["flights"].newest == 63


def test_it_waits_for_the_first_rows_and_for_nothing_else(ledger: Ledger) -> None:
    adopt(ledger)
    run = ask(ledger)
    with ledger.read() as tx:
        assert runs.find(tx, run).sentence == "waits for the first rows of flights"
    grow(ledger, 1)
    assert take(ledger, run).cut["flights"].newest == 1


def test_a_new_release_is_what_a_waiting_one_trains(ledger: Ledger) -> None:
    adopt(ledger)
    run = ask(ledger)
    adopt(ledger, name="v2.0.0", commit="b" * 40)
    grow(ledger)
    assert take(ledger, run).release.name == "v2.0.0"


def test_each_attempt_sees_the_same_rows(ledger: Ledger) -> None:
    adopt(ledger)
    grow(ledger)
    first = take(ledger, ask(ledger))
    grow(ledger, 50_000)
    with ledger.write() as tx:
        attempts.hand_back(tx, first.run, first.token, "leaves", {})
    assert take(ledger, first.run).cut == first.cut


def test_of_reported_data_the_newest_reports_are_the_sample(ledger: Ledger) -> None:
    adopt(ledger, dataset="reported")
    for start in range(0, 1000, 100):
        with ledger.write() as tx:
            arrivals.receive(
                tx, Report(dataset="reported", source="/l", from_point=start, to_point=start + 100, rows=100)
            )
    held = take(ledger, ask(ledger, "15%"))
    assert (held.cut["reported"].above, held.cut["reported"].upto) == (800, 1000)


def test_of_reports_that_do_not_say_where_they_begin_it_is_all_and_is_trained_all_the_same(ledger: Ledger) -> None:
    adopt(ledger, dataset="reported")
    with ledger.write() as tx:
        arrivals.receive(tx, Report(dataset="reported", source="/l", rows=100))
    finish(ledger, take(ledger, waiting(ledger)))
    held = take(ledger, ask(ledger))
    assert (held.cut["reported"].above, held.cut["reported"].newest) == (None, None)


def test_it_is_not_compared_with_the_champion(ledger: Ledger) -> None:
    adopt(ledger)
    serve(ledger, 1)
    assert take(ledger, ask(ledger)).champion is None


def test_its_version_is_marked_and_no_candidate(ledger: Ledger) -> None:
    adopt(ledger)
    grow(ledger)
    run = sampled(ledger, 1)
    with ledger.read() as tx:
        assert versions.of_run(tx, run).state == "sample"
        assert versions.candidates(tx) == []
        assert [one.type for one in deliveries.read(tx, 0, 99)] == ["arrival.observed"], "nobody is told to take it"
    assert "Version 1 (run 2) is a sample of 1% of the rows, to build against; it never serves." in why(ledger)
    assert "No version serves yet." in why(ledger)


@pytest.mark.parametrize("serves", [False, True])
def test_nobody_can_make_it_serve(ledger: Ledger, serves: bool) -> None:
    adopt(ledger)
    grow(ledger)
    if serves:
        finish(ledger, take(ledger, waiting(ledger)))
        serve(ledger, 1)
    sampled(ledger, 2)
    said = r"version 2 of delays was trained on a sample of 1% of the rows: .* never serves; `headrace retrain delays`"
    with pytest.raises(Conflict, match=said), ledger.write() as tx:
        versions.promote(tx, "delays", 2, "carol", "I like it")
    with pytest.raises(Conflict, match=said), ledger.write() as tx:
        versions.roll_back(tx, "delays", 2, "carol", "I like it")
    with pytest.raises(Conflict), ledger.write() as tx:
        row, serving = versions.find(tx, "delays", 2), versions.champion(tx, "delays")
        versions.decide(tx, row, serving, Verdict(Decision.PROMOTE, ("x",)), None, automatic=True)
    assert champion(ledger) == (1 if serves else None)
    assert not [one for one in audited.found(ledger) if one.invariant == "I7"]


def test_it_is_no_training_that_another_would_repeat_nor_repeats_one(ledger: Ledger) -> None:
    adopt(ledger)
    grow(ledger)
    sampled(ledger, 1)
    finish(ledger, take(ledger, waiting(ledger)))
    with ledger.read() as tx:
        newest = unchanged.newest_run(tx, "delays")
        assert newest.sample is None
    with pytest.raises(Conflict, match="nothing has changed since run 1"):
        ask(ledger, None)
    assert take(ledger, ask(ledger)).cut["flights"].newest == 9


def test_a_failed_one_pauses_nothing_and_a_good_one_ends_no_pause(ledger: Ledger) -> None:
    adopt(ledger)
    grow(ledger)
    for _ in range(4):
        fail(ledger, take(ledger, ask(ledger)))
    with ledger.read() as tx:
        assert pauses.of(tx, "delays") is None
        told = [one.data for one in deliveries.read(tx, 0, 99) if one.type == "run.failed"]
    assert [one["sample"] for one in told] == ["1%"] * 4
    for _ in range(3):
        fail(ledger, take(ledger, waiting(ledger)))
        grow(ledger)
    finish(ledger, take(ledger, ask(ledger)))
    with ledger.read() as tx:
        paused = pauses.of(tx, "delays")
        assert paused is not None
        assert paused.failed == 3


def fail(ledger: Ledger, held: Claim) -> None:
    with ledger.write() as tx:
        assert attempts.fail(tx, held.run, held.token, WRONG, {}) == RunState.FAILED


def test_a_failed_one_is_retried_as_one(ledger: Ledger) -> None:
    adopt(ledger)
    grow(ledger)
    first = take(ledger, ask(ledger, "20"))
    fail(ledger, first)
    with ledger.write() as tx:
        again = planning.retry(tx, first.run, "once more")
    assert take(ledger, again).cut == first.cut


def test_a_cancelled_one_takes_no_arrival_with_it(ledger: Ledger) -> None:
    adopt(ledger)
    arrival = grow(ledger)
    real = waiting(ledger)
    run = ask(ledger)
    with ledger.write() as tx:
        planning.cancel(tx, run, "not now")
    with ledger.read() as tx:
        assert [(one.kind, one.run) for one in fates.of_arrival(tx, arrival)] == [("waits", real)]
    assert state(ledger, real) == "waiting"


def test_what_an_operator_takes_out_of_the_file_is_called_off_once_each(ledger: Ledger) -> None:
    adopt(ledger)
    grow(ledger)
    real, beside = waiting(ledger), ask(ledger)
    put_config(ledger, CONFIG.replace("[models.delays]", "[models.other]"))
    assert (state(ledger, real), state(ledger, beside)) == ("cancelled", "cancelled")
    with ledger.read() as tx:
        told = [one.data["run"] for one in deliveries.read(tx, 0, 99) if one.type == "run.cancelled"]
    assert sorted(told) == [real, beside]


def test_a_restored_ledger_plans_it_anew_as_one(ledger: Ledger) -> None:
    adopt(ledger)
    grow(ledger)
    held = take(ledger, ask(ledger, "5%"))
    with ledger.write() as tx:
        done = restored.begin_anew(tx, "carol")
    with ledger.read() as tx:
        planned = [(runs.find(tx, id).sample, runs.find(tx, id).state) for id in done.planned]
    assert sorted(planned, key=str) == [("5%", "waiting"), (None, "waiting")]
    assert state(ledger, held.run) == "cancelled"


def test_what_is_left_of_a_run_goes_by_those_on_as_much_data(ledger: Ledger, clock: HandClock) -> None:
    adopt(ledger)
    grow(ledger)
    quick = take(ledger, ask(ledger))
    clock.forward(seconds=2)
    finish(ledger, quick)
    real = take(ledger, waiting(ledger))
    with ledger.read() as tx:
        assert usage.left_s(tx, runs.find(tx, real.run)) is None, "a sample says nothing of it"
    again = take(ledger, ask(ledger))
    with ledger.read() as tx:
        assert usage.left_s(tx, runs.find(tx, again.run)) == 2


def test_its_files_are_tidied_when_there_are_newer_samples_and_never_while_it_is_pinned(ledger: Ledger) -> None:
    adopt(ledger)
    grow(ledger)
    first, second = sampled(ledger, 1), sampled(ledger, 2)
    with ledger.write() as tx:
        retention.pin(tx, "delays", 2, "shop", "builds against it")
        assert retention.take_files(tx, [first, second]) == 1
    with ledger.read() as tx:
        assert [row.tidied_at is None for row in versions.find_all(tx, "delays", before=None, limit=9)] == [True, False]
    assert not [one for one in audited.found(ledger) if one.invariant == "I7"]


def test_a_ledger_with_samples_is_as_it_must_be(ledger: Ledger) -> None:
    adopt(ledger)
    grow(ledger)
    early = take(ledger, ask(ledger))
    train(ledger)  # sees more than the one on a sample, and has the lower number
    serve(ledger, 1)
    finish(ledger, early)
    register(ledger, early.run, 2)
    assert not [one for one in audited.found(ledger) if one.invariant in ("I3", "I4", "I5", "I7", "I8")]
