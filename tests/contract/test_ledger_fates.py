"""Every arrival has exactly one fate per model that uses it, in every state (I3), and `why` says it in sentences."""

from __future__ import annotations

from datetime import timedelta

import pytest
from sqlalchemy import update

from shared.errors import NotFound
from shared.gates import Decision
from shared.ledger import Ledger, attempts, fates, planning, restored, runs, versions, workers
from shared.ledger.attempts import Failure
from shared.ledger.fates import Fate
from shared.ledger.tables import model
from tests.ledgers import (
    CONFIG,
    HandClock,
    adopt,
    claim,
    decide,
    declare,
    finish,
    follow,
    grow,
    put_config,
    register,
    serve,
    train,
    waiting,
)

WRONG = Failure("author_error", "KeyError: 'x'\nat line 3", "mend the code")


def fate(ledger: Ledger, arrival: int) -> Fate:
    with ledger.read() as tx:
        (one,) = fates.of_arrival(tx, arrival)
        return one


def told(ledger: Ledger, arrival: int) -> tuple[str, int | None, int | None, str | None, str]:
    one = fate(ledger, arrival)
    return one.kind, one.run, one.version, one.decision, one.sentence


def why(ledger: Ledger) -> list[str]:
    with ledger.read() as tx:
        return fates.why(tx, "delays")


def cancel(ledger: Ledger, run: int) -> None:
    with ledger.write() as tx:
        planning.cancel(tx, run, "not now")


def test_an_arrival_that_no_model_uses_has_no_fate(ledger: Ledger) -> None:
    arrival = grow(ledger)
    with ledger.read() as tx:
        assert fates.of_arrival(tx, arrival) == []
        with pytest.raises(NotFound):
            fates.of_arrival(tx, 99)


def test_it_waits_and_says_for_what(ledger: Ledger) -> None:
    adopt(ledger)
    train(ledger)
    arrival = grow(ledger, 1)
    assert told(ledger, arrival) == (
        "waits", 2, None, None, "waits in run 2, which has 1 new rows and waits for 100 (min_rows)",
    )  # fmt: skip


def test_what_is_due_says_whether_there_is_a_worker(ledger: Ledger) -> None:
    adopt(ledger)
    arrival = grow(ledger)
    assert "no worker serves train.standard" in fate(ledger, arrival).sentence

    def seen(busy: int) -> str:
        with ledger.write() as tx:
            workers.seen(tx, "w1", "standard", 2, busy)
        return fate(ledger, arrival).sentence

    assert "waits for a free slot: 1 worker(s) of class standard are busy" in seen(2)
    assert seen(1) == "waits in run 1, which is due (was asked for, due at once) and is about to be claimed"
    with ledger.write() as tx:
        workers.left(tx, "w1")
    assert "no worker" in fate(ledger, arrival).sentence


def test_a_worker_that_was_not_seen_for_a_minute_does_not_count(ledger: Ledger, clock: HandClock) -> None:
    with ledger.write() as tx:
        workers.seen(tx, "w1", "standard", 1, 0)
    clock.forward(seconds=60)
    with ledger.read() as tx:
        assert [row.name for row in workers.alive(tx, fates.WORKER_SEEN)] == ["w1"]
    clock.forward(seconds=1)
    with ledger.read() as tx:
        assert workers.alive(tx, fates.WORKER_SEEN) == []
    clock.forward(hours=1)
    with ledger.write() as tx:
        workers.seen(tx, "w2", "standard", 1, 0)
        assert [row.name for row in workers.alive(tx, timedelta(days=1))] == ["w2"]


def test_from_the_claim_to_the_champion(ledger: Ledger) -> None:
    adopt(ledger)
    arrival = grow(ledger)
    claimed = claim(ledger, waiting(ledger))
    assert claimed is not None
    assert told(ledger, arrival)[:2] == ("waits", 1)
    assert fate(ledger, arrival).sentence == "is in run 1, which is training on w1, attempt 1"
    finish(ledger, claimed)
    assert told(ledger, arrival) == (
        "trained", 1, None, None, "is in run 1, which was trained at 2026-01-01 00:00:00Z and waits to be registered in MLflow",
    )  # fmt: skip
    register(ledger, 1, 7)
    assert told(ledger, arrival) == (
        "trained", 1, 7, None, "was trained in run 1; version 7 is about to be judged",
    )  # fmt: skip
    decide(ledger, 7)
    assert told(ledger, arrival)[3:] == ("promote", "was trained in run 1; version 7 passed and is about to serve")
    follow(ledger)
    assert told(ledger, arrival)[4] == "was trained in run 1; version 7 was promoted"


@pytest.mark.parametrize(
    ("decision", "ending"),
    [
        (Decision.REJECT, "was rejected"),
        (Decision.UNDECIDED, "awaits evidence"),
        (Decision.PROMOTE, "awaits a person's word"),
    ],
)
def test_a_version_that_does_not_serve_says_why(ledger: Ledger, decision: Decision, ending: str) -> None:
    adopt(ledger)
    arrival = grow(ledger)
    register(ledger, train(ledger), 1)
    decide(ledger, 1, decision, automatic=False)
    assert told(ledger, arrival)[3:] == (decision, f"was trained in run 1; version 1 {ending}")


def test_what_mlflow_says_against_it_is_told(ledger: Ledger) -> None:
    adopt(ledger)
    run = train(ledger)
    with ledger.write() as tx:
        token = versions.begin_registration(tx, run, timedelta(minutes=1))
        assert token is not None
        versions.registration_failed(tx, run, token, "MLflow is away", timedelta(seconds=2))
    assert fate(ledger, 1).sentence.endswith("in MLflow: MLflow is away")


def test_a_failed_run_is_the_fate_until_another_covers_it(ledger: Ledger) -> None:
    adopt(ledger)
    arrival = grow(ledger)
    claimed = claim(ledger, waiting(ledger))
    assert claimed is not None
    with ledger.write() as tx:
        attempts.fail(tx, claimed.run, claimed.token, WRONG, {})
    sentence = "was in run 1, which failed (author_error): KeyError: 'x'; mend the code"
    assert told(ledger, arrival) == ("failed", 1, None, None, sentence)
    with ledger.write() as tx:
        second = planning.retry(tx, 1, "mended")
    assert told(ledger, arrival)[:2] == ("waits", second)
    again = claim(ledger, second)
    assert again is not None
    finish(ledger, again)
    assert told(ledger, arrival)[:2] == ("trained", second)


def test_a_retrying_run_says_when_it_is_tried_again(ledger: Ledger) -> None:
    adopt(ledger)
    arrival = grow(ledger)
    claimed = claim(ledger, waiting(ledger))
    assert claimed is not None
    with ledger.write() as tx:
        attempts.fail(tx, 1, claimed.token, Failure("infrastructure", "disk full", transient=True), {})
    assert told(ledger, arrival)[:2] == ("waits", 1)
    assert fate(ledger, arrival).sentence == (
        "is in run 1, which tries again after infrastructure: disk full; due at 2026-01-01 00:00:05Z"
    )


def test_a_run_that_was_handed_back_says_who_takes_it_up(ledger: Ledger) -> None:
    adopt(ledger)
    arrival = grow(ledger)
    claimed = claim(ledger, waiting(ledger))
    assert claimed is not None
    with ledger.write() as tx:
        attempts.hand_back(tx, 1, claimed.token, "its worker leaves", {})
    assert fate(ledger, arrival).sentence == (
        "is in run 1, which is due since 2026-01-01 00:00:00Z but no worker serves train.standard; start one with "
        "`HEADRACE_COMPUTE_CLASS=standard python -m services.trainer`"
    )
    seen(ledger, busy=0)
    assert told(ledger, arrival)[:2] == ("waits", 1)
    assert fate(ledger, arrival).sentence == (
        "is in run 1, which is due (was handed back: its worker leaves) and is about to be claimed"
    )


def test_a_run_whose_worker_went_silent_says_so_and_what_it_waits_for(ledger: Ledger, clock: HandClock) -> None:
    adopt(ledger)
    arrival = grow(ledger)
    assert claim(ledger, waiting(ledger)) is not None
    clock.forward(seconds=31)
    silent = "is in run 1, which lost its worker w1 (attempt 1), silent since 2026-01-01 00:00:30Z, "
    assert told(ledger, arrival)[:2] == ("waits", 1)
    assert fate(ledger, arrival).sentence.startswith(f"{silent}but no worker serves train.standard; start one with `")
    seen(ledger, busy=1)
    assert fate(ledger, arrival).sentence == (
        f"{silent}and waits for a free slot: 1 worker(s) of class standard are busy"
    )
    seen(ledger, busy=0)
    cancel(ledger, 1)
    assert fate(ledger, arrival).sentence == f"{silent}and is about to be claimed; it is being cancelled: not now"


def test_a_run_that_lost_three_workers_says_so_until_another_covers_it(ledger: Ledger, clock: HandClock) -> None:
    adopt(ledger)
    arrival = grow(ledger)
    for _ in range(3):
        assert claim(ledger, 1) is not None
        clock.forward(seconds=31)
    assert claim(ledger, 1) is None
    assert told(ledger, arrival) == (
        "failed",
        1,
        None,
        None,
        "was in run 1, which failed (lost_worker): 3 workers were lost while they trained it; look at the log and the memory of the "
        "workers, then `headrace retry`",
    )
    with ledger.write() as tx:
        planning.retry(tx, 1, "more memory")
    assert told(ledger, arrival)[:2] == ("waits", 2)


def test_a_run_that_the_restored_ledger_called_off_gives_its_arrivals_to_the_new_one(ledger: Ledger) -> None:
    adopt(ledger)
    arrival = grow(ledger)
    assert claim(ledger, waiting(ledger)) is not None
    with ledger.write() as tx:
        restored.begin_anew(tx, "carol")
    assert told(ledger, arrival)[:2] == ("waits", 1_000_001)


def seen(ledger: Ledger, busy: int) -> None:
    """A worker of one slot is there."""
    with ledger.write() as tx:
        workers.seen(tx, "w2", "standard", 1, busy)


def test_a_run_that_is_cancelled_takes_its_arrivals_along(ledger: Ledger) -> None:
    adopt(ledger)
    arrival = grow(ledger)
    cancel(ledger, waiting(ledger))
    assert told(ledger, arrival)[:2] == ("cancelled", 1)
    following = grow(ledger)
    assert told(ledger, arrival)[:2] == told(ledger, following)[:2] == ("waits", 2)


def test_a_run_that_is_to_stop_says_so(ledger: Ledger) -> None:
    adopt(ledger)
    arrival = grow(ledger)
    assert claim(ledger, waiting(ledger)) is not None
    cancel(ledger, 1)
    assert fate(ledger, arrival).sentence.endswith("it is being cancelled: not now")


def test_an_arrival_that_came_while_the_model_was_away_is_trained_on_when_it_is_back(
    ledger: Ledger, clock: HandClock
) -> None:
    adopt(ledger)
    before = grow(ledger)
    put_config(ledger, CONFIG.split("[models.delays]")[0])
    clock.forward(seconds=1)
    away = grow(ledger)
    put_config(ledger, CONFIG)
    assert told(ledger, before)[:2] == told(ledger, away)[:2] == ("waits", 2)
    cancel(ledger, 2)
    assert told(ledger, before)[:2] == told(ledger, away)[:2] == ("cancelled", 2)


def test_a_model_that_no_longer_uses_the_dataset_supersedes_it(ledger: Ledger) -> None:
    adopt(ledger)
    trained = grow(ledger)
    train(ledger)
    missed = grow(ledger, 1)
    adopt(ledger, name="v2.0.0", commit="b" * 40, dataset="reported")
    assert told(ledger, missed) == ("superseded", None, None, None, "delays no longer uses flights")
    assert told(ledger, trained)[:2] == ("trained", 1)


def test_an_arrival_that_came_before_the_model_is_covered_by_its_first_run(ledger: Ledger) -> None:
    arrival = grow(ledger)
    adopt(ledger)
    assert told(ledger, arrival)[:2] == ("waits", 1)
    claimed = claim(ledger, waiting(ledger))
    assert claimed is not None
    finish(ledger, claimed)
    assert told(ledger, arrival)[:2] == ("trained", 1)


def test_the_earliest_good_run_is_the_fate(ledger: Ledger) -> None:
    adopt(ledger)
    arrival = grow(ledger)
    train(ledger)
    train(ledger)
    assert fate(ledger, arrival).run == 1


def test_each_model_has_a_fate_of_its_own(ledger: Ledger) -> None:
    put_config(ledger, CONFIG + '\n[models.second]\nrepository = "file:///nowhere/second.git"\n')
    adopt(ledger)
    with ledger.write() as tx:
        planning.adopt(tx, "second", "v9", "c" * 40, declare())
    arrival = grow(ledger)
    cancel(ledger, waiting(ledger, "second"))
    with ledger.read() as tx:
        found = fates.of_arrival(tx, arrival)
    assert [(one.model, one.kind) for one in found] == [("delays", "waits"), ("second", "cancelled")]


def test_why_tells_the_whole_story(ledger: Ledger) -> None:
    adopt(ledger)
    assert why(ledger) == [
        "Run 1 (new release v1.0.0) waits for the first rows of flights.",
        "No version serves yet.",
    ]
    serve(ledger, 1)
    assert why(ledger) == [
        "Nothing new since run 1 (new release v1.0.0; 1,000 new rows in flights), which was trained at 2026-01-01 00:00:00Z.",
        "Version 1 serves since 2026-01-01 00:00:00Z.",
    ]
    register(ledger, train(ledger), 2)
    decide(ledger, 2, Decision.REJECT)
    assert why(ledger)[1:] == [
        "Version 2 (run 2) is rejected: auc: passes.",
        "Version 1 serves since 2026-01-01 00:00:00Z.",
    ]
    with ledger.read() as tx, pytest.raises(NotFound, match="known are: delays"):
        fates.why(tx, "unknown")


def test_why_knows_a_model_that_has_never_been_seen(ledger: Ledger) -> None:
    assert why(ledger) == [
        "It has no valid release yet, so nothing can be trained.",
        "It has never been trained.",
        "No version serves yet.",
    ]
    with ledger.read() as tx:
        assert runs.find_all(tx) == []


def test_an_arrival_that_came_after_the_run_was_cancelled_was_not_in_it(ledger: Ledger, clock: HandClock) -> None:
    adopt(ledger)
    grow(ledger)
    cancel(ledger, 1)
    clock.forward(seconds=1)
    with ledger.engine.begin() as by_hand:
        by_hand.execute(update(model).values(release_id=None))  # no release, no run: nothing is planned for it
    arrival = grow(ledger)
    with ledger.engine.begin() as by_hand:
        by_hand.execute(update(model).values(release_id=1))
    assert told(ledger, arrival)[:2] == ("waits", None)
