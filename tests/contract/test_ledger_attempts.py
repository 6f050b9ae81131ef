"""What a worker may do to a run: only the newest claim can write, and a lost worker is followed by another (I5, I10)."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from shared.errors import Conflict, Fenced
from shared.ledger import Ledger, Transaction, attempts, deliveries, fates, planning, runs, unchanged
from shared.ledger.attempts import Claim, Failure
from shared.lifecycle import RunState
from tests.ledgers import CONFIG, LEASE, HandClock, adopt, claim, finish, grow, put_config, serve, waiting

AWAY = Failure("infrastructure", "the disk is full", transient=True)
WRONG = Failure("author_error", "KeyError: 'x'", "mend the code")
WITHOUT_MODEL = CONFIG.split("[models.delays]")[0]
WITHOUT_DATASET = CONFIG.replace("[datasets.flights]", "[datasets.other]")


@pytest.fixture
def claimed(ledger: Ledger) -> Claim:
    adopt(ledger)
    grow(ledger)
    first = claim(ledger, waiting(ledger))
    assert first is not None
    return first


def state(ledger: Ledger, run: int) -> Any:
    with ledger.read() as tx:
        return runs.find(tx, run)


def outcomes(ledger: Ledger, run: int) -> list[str | None]:
    with ledger.read() as tx:
        return [row.outcome for row in attempts.of_run(tx, run)]


def fail(ledger: Ledger, held: Claim, failure: Failure = AWAY) -> RunState:
    with ledger.write() as tx:
        return attempts.fail(tx, held.run, held.token, failure, {})


def hand_back(ledger: Ledger, held: Claim) -> None:
    with ledger.write() as tx:
        attempts.hand_back(tx, held.run, held.token, "the worker shuts down", {})


def beat(ledger: Ledger, held: Claim) -> str | None:
    with ledger.write() as tx:
        return attempts.beat(tx, held.run, held.token, LEASE, 0.5, "epoch 5")


def lose(ledger: Ledger, clock: HandClock, held: Claim) -> Claim | None:
    """The worker goes silent for longer than its lease, and another one looks."""
    clock.forward(seconds=LEASE.total_seconds() + 1)
    return claim(ledger, held.run, "w2")


def test_a_claim_carries_all_that_an_attempt_needs(ledger: Ledger, claimed: Claim) -> None:
    assert (claimed.token, claimed.release.name, claimed.cut["flights"].upto) == (1, "v1.0.0", 1000)
    assert list(claimed.datasets) == ["flights"]
    assert claimed.champion is None
    row = state(ledger, claimed.run)
    assert (row.state, row.lease_owner, row.due_at) == (RunState.RUNNING, "w1", None)
    assert row.cut_digest == claimed.cut_digest == unchanged.digest(row.cut)


def test_a_claim_names_the_champion_with_its_code_and_cut(ledger: Ledger) -> None:
    adopt(ledger)
    first = serve(ledger, 1)
    adopt(ledger, name="v2.0.0", commit="b" * 40)
    claimed = claim(ledger, waiting(ledger))
    assert claimed is not None
    assert claimed.champion is not None
    assert (claimed.champion.run, claimed.champion.release.name, claimed.release.name) == (first, "v1.0.0", "v2.0.0")
    assert claimed.champion.cut["flights"].upto == 1000


def test_a_second_message_finds_the_run_taken(ledger: Ledger, claimed: Claim) -> None:
    assert claim(ledger, claimed.run, "w2") is None
    finish(ledger, claimed)
    assert claim(ledger, claimed.run, "w2") is None


def test_a_run_that_does_not_exist_or_is_not_due_is_not_claimed(ledger: Ledger) -> None:
    adopt(ledger)
    grow(ledger)
    assert claim(ledger, 99) is None
    claimed = claim(ledger, waiting(ledger))
    assert claimed is not None
    grow(ledger, 1)
    assert claim(ledger, waiting(ledger)) is None


STALE: dict[str, Callable[[Transaction, Claim], object]] = {
    "checkpoint": lambda tx, held: attempts.checkpoint(tx, held.run, held.token, "c" * 64, 9),
    "beat": lambda tx, held: attempts.beat(tx, held.run, held.token, LEASE, 0.9, "late"),
    "finish": lambda tx, held: attempts.finish(tx, held.run, held.token, "sha256:" + "c" * 64, {}),
    "fail": lambda tx, held: attempts.fail(tx, held.run, held.token, AWAY, {}),
    "fail for good": lambda tx, held: attempts.fail(tx, held.run, held.token, WRONG, {}),
    "hand back": lambda tx, held: attempts.hand_back(tx, held.run, held.token, "late", {}),
    "cancelled": lambda tx, held: attempts.cancelled(tx, held.run, held.token, {}),
}


@pytest.mark.parametrize("after", ["claimed again", "handed back", "failing", "trained", "failed", "cancelled"])
def test_a_stale_claim_changes_nothing(ledger: Ledger, clock: HandClock, claimed: Claim, after: str) -> None:
    match after:
        case "claimed again":
            assert lose(ledger, clock, claimed) is not None
        case "handed back":
            hand_back(ledger, claimed)
        case "failing":
            fail(ledger, claimed)
        case "trained":
            finish(ledger, claimed)
        case "failed":
            fail(ledger, claimed, WRONG)
        case "cancelled":
            with ledger.write() as tx:
                planning.cancel(tx, claimed.run, "not now")
                attempts.cancelled(tx, claimed.run, claimed.token, {})
    before = everything(ledger, claimed.run)
    for act in STALE.values():
        with pytest.raises(Fenced), ledger.write() as tx:
            act(tx, claimed)
    assert everything(ledger, claimed.run) == before


def everything(ledger: Ledger, run: int) -> object:
    with ledger.read() as tx:
        return runs.find(tx, run), attempts.of_run(tx, run), deliveries.read(tx, 0, 100)


def test_a_beat_keeps_the_lease_and_tells_the_progress(ledger: Ledger, clock: HandClock, claimed: Claim) -> None:
    for _ in range(3):
        clock.forward(seconds=20)
        assert beat(ledger, claimed) is None
        assert claim(ledger, claimed.run, "w2") is None
    row = state(ledger, claimed.run)
    assert (row.progress, row.progress_note) == (0.5, "epoch 5")
    assert row.lease_until == clock.now() + LEASE


def test_the_lease_holds_to_its_last_moment_and_a_late_beat_still_keeps_it(
    ledger: Ledger, clock: HandClock, claimed: Claim
) -> None:
    clock.forward(seconds=30)
    assert claim(ledger, claimed.run, "w2") is None
    clock.forward(seconds=0.001)
    beat(ledger, claimed)
    assert claim(ledger, claimed.run, "w2") is None


def test_a_lost_lease_can_be_claimed_again_with_the_same_release_and_cut(
    ledger: Ledger, clock: HandClock, claimed: Claim
) -> None:
    grow(ledger, 500)
    adopt(ledger, name="v2.0.0", commit="b" * 40)
    second = lose(ledger, clock, claimed)
    assert second is not None
    assert (second.token, second.release.name, second.cut) == (2, "v1.0.0", claimed.cut)
    row = state(ledger, claimed.run)
    assert (row.lost, row.lease_owner, row.progress) == (1, "w2", None)
    assert outcomes(ledger, claimed.run) == ["lost", None]
    with pytest.raises(Fenced):
        finish(ledger, claimed)
    finish(ledger, second)


def test_a_run_that_lost_three_workers_fails_and_is_not_tried_for_ever(
    ledger: Ledger, clock: HandClock, claimed: Claim
) -> None:
    grow(ledger)
    for lost in (1, 2):
        assert lose(ledger, clock, claimed) is not None
        assert state(ledger, claimed.run).lost == lost
    assert lose(ledger, clock, claimed) is None
    row = state(ledger, claimed.run)
    assert (row.state, row.lost, row.error["kind"]) == (RunState.FAILED, 3, "lost_worker")
    assert outcomes(ledger, claimed.run) == ["lost", "lost", "lost"]
    with ledger.read() as tx:
        assert deliveries.read(tx, 0, 99)[-1].type == "run.failed"
        assert runs.claimable(tx, "standard") == runs.find_waiting(tx, "delays").id


def test_a_failure_that_may_pass_is_tried_again_after_a_growing_pause(
    ledger: Ledger, clock: HandClock, claimed: Claim
) -> None:
    for pause in (5, 15):
        assert fail(ledger, claimed) is RunState.RETRYING
        row = state(ledger, claimed.run)
        assert (row.due_at - clock.now(), row.lease_owner) == (timedelta(seconds=pause), None)
        assert row.sentence == "tries again after infrastructure: the disk is full"
        clock.forward(seconds=pause - 0.001)
        assert claim(ledger, claimed.run) is None
        clock.forward(seconds=0.001)
        again = claim(ledger, claimed.run)
        assert again is not None
        claimed = again
    assert fail(ledger, claimed) is RunState.FAILED
    assert outcomes(ledger, claimed.run) == ["failed"] * 3
    assert state(ledger, claimed.run).error == AWAY.to_json()


def test_a_failure_of_the_authors_is_not_tried_again(ledger: Ledger, claimed: Claim) -> None:
    assert fail(ledger, claimed, WRONG) is RunState.FAILED
    with ledger.read() as tx:
        (told,) = [one for one in deliveries.read(tx, 0, 99) if one.type == "run.failed"]
    assert told.data | {"run": claimed.run, "advice": "mend the code", "kind": "author_error"} == told.data


@pytest.mark.parametrize("transient", [False, True])
def test_whatever_an_author_says_can_be_stored_and_sent(ledger: Ledger, claimed: Claim, transient: bool) -> None:
    fail(ledger, claimed, Failure("author_error", "half \ud800, none \0", transient=transient))
    row = state(ledger, claimed.run)
    assert row.error["message"] == "half ?, none ?"
    with ledger.read() as tx:
        assert all(one.body() for one in deliveries.read(tx, 0, 99))


def test_what_was_handed_back_is_due_at_once_and_costs_no_try(ledger: Ledger, claimed: Claim) -> None:
    for _ in range(5):
        hand_back(ledger, claimed)
        again = claim(ledger, claimed.run, "w2")
        assert again is not None
        claimed = again
    row = state(ledger, claimed.run)
    assert (row.failures, row.lost, row.token) == (0, 0, 6)


def test_a_retrying_run_keeps_its_models_place(ledger: Ledger, claimed: Claim) -> None:
    fail(ledger, claimed)
    grow(ledger)
    assert state(ledger, waiting(ledger)).due_at is None
    assert claim(ledger, waiting(ledger)) is None


def test_a_run_that_is_to_stop_is_told_at_the_next_beat(ledger: Ledger, claimed: Claim) -> None:
    assert cancel(ledger, claimed.run) is RunState.RUNNING
    assert beat(ledger, claimed) == "not now"
    with ledger.write() as tx:
        attempts.cancelled(tx, claimed.run, claimed.token, {"train": 1.0})
    row = state(ledger, claimed.run)
    assert (row.state, row.error["message"]) == (RunState.CANCELLED, "not now")
    assert outcomes(ledger, claimed.run) == ["cancelled"]
    assert cancel(ledger, claimed.run) is RunState.CANCELLED


def cancel(ledger: Ledger, run: int, reason: str = "not now") -> RunState:
    with ledger.write() as tx:
        return planning.cancel(tx, run, reason)


def test_the_first_word_to_stop_counts(ledger: Ledger, claimed: Claim) -> None:
    cancel(ledger, claimed.run)
    cancel(ledger, claimed.run, "a second time")
    assert beat(ledger, claimed) == "not now"


def test_a_run_that_is_to_stop_and_loses_its_worker_is_cancelled(
    ledger: Ledger, clock: HandClock, claimed: Claim
) -> None:
    cancel(ledger, claimed.run)
    assert lose(ledger, clock, claimed) is None
    assert state(ledger, claimed.run).state == RunState.CANCELLED


@pytest.mark.parametrize("leave", [fail, hand_back])
def test_a_run_that_is_to_stop_is_not_started_again(
    ledger: Ledger, claimed: Claim, leave: Callable[[Ledger, Claim], object]
) -> None:
    cancel(ledger, claimed.run)
    leave(ledger, claimed)
    row = state(ledger, claimed.run)
    assert (row.state, row.error["message"]) == (RunState.CANCELLED, "not now")


def test_a_run_that_finishes_before_it_hears_of_the_wish_is_trained(ledger: Ledger, claimed: Claim) -> None:
    cancel(ledger, claimed.run)
    finish(ledger, claimed)
    assert state(ledger, claimed.run).state == RunState.TRAINED
    with pytest.raises(Conflict, match="a trained run cannot become cancelled"):
        cancel(ledger, claimed.run)


def test_a_retrying_run_is_cancelled_at_once_and_the_next_one_becomes_due(ledger: Ledger, claimed: Claim) -> None:
    fail(ledger, claimed)
    grow(ledger)
    assert cancel(ledger, claimed.run) is RunState.CANCELLED
    assert claim(ledger, waiting(ledger)) is not None


@pytest.mark.parametrize("config", [WITHOUT_MODEL, WITHOUT_DATASET])
@pytest.mark.parametrize("how", ["lost", "failing", "handed back"])
def test_a_run_that_left_the_configuration_is_called_off_when_it_would_be_claimed_again(
    ledger: Ledger, clock: HandClock, claimed: Claim, config: str, how: str
) -> None:
    put_config(ledger, config)
    match how:
        case "failing":
            fail(ledger, claimed)
        case "handed back":
            hand_back(ledger, claimed)
    clock.forward(minutes=1)
    assert claim(ledger, claimed.run, "w2") is None
    row = state(ledger, claimed.run)
    assert row.state == RunState.CANCELLED or (config, how) == (WITHOUT_MODEL, "failing")
    with ledger.read() as tx:
        assert runs.claimable(tx, "standard") is None


def test_a_running_run_of_a_model_that_left_ends_well(ledger: Ledger, claimed: Claim) -> None:
    put_config(ledger, WITHOUT_MODEL)
    beat(ledger, claimed)
    finish(ledger, claimed)
    assert state(ledger, claimed.run).state == RunState.TRAINED


def test_the_worker_is_named_while_it_trains(ledger: Ledger, claimed: Claim) -> None:
    beat(ledger, claimed)
    with ledger.read() as tx:
        assert fates.describe(tx, runs.find(tx, claimed.run)) == "is training on w1, attempt 1 (50%, epoch 5)"


def test_metrics_by_step_are_the_attempts_own_and_a_stale_worker_changes_none(
    ledger: Ledger, clock: HandClock, claimed: Claim
) -> None:
    with ledger.write() as tx:
        attempts.beat(tx, claimed.run, claimed.token, LEASE, 0.5, "epoch 1", {"loss": [[1, 0.5]]})
        attempts.beat(tx, claimed.run, claimed.token, LEASE)
    assert lose(ledger, clock, claimed) is not None
    with pytest.raises(Fenced), ledger.write() as tx:
        attempts.beat(tx, claimed.run, claimed.token, LEASE, 0.9, "late", {"loss": [[2, 0.1]]})
    with ledger.read() as tx:
        assert [row.metrics for row in attempts.of_run(tx, claimed.run)] == [{"loss": [[1, 0.5]]}, None]


def test_a_checkpoint_goes_with_the_next_claim(ledger: Ledger, claimed: Claim) -> None:
    with ledger.write() as tx:
        kept = attempts.checkpoint(tx, claimed.run, claimed.token, "c" * 64, 9)
    hand_back(ledger, claimed)
    again = claim(ledger, claimed.run, "w2")
    assert again is not None
    assert again.checkpoint == kept
    assert (kept.attempt, kept.size_bytes) == (1, 9)
