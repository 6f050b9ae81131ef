"""Versions: one per run, judged beside the champion of the moment, and a champion that only changes by compare-and-set (I3, I6, I7, I8)."""

from __future__ import annotations

from datetime import timedelta

import pytest

from shared.errors import Conflict, Fenced, NotFound
from shared.gates import Decision, Verdict
from shared.ledger import Ledger, deliveries, runs, scores, versions
from shared.lifecycle import VersionState
from shared.notices import Notice
from tests.ledgers import HandClock, adopt, champion, decide, follow, register, serve, train

LEASE = timedelta(minutes=5)


@pytest.fixture(autouse=True)
def _released(ledger: Ledger) -> None:
    adopt(ledger)


def begin(ledger: Ledger, run: int) -> int | None:
    with ledger.write() as tx:
        return versions.begin_registration(tx, run, LEASE)


def holds(ledger: Ledger, run: int, token: int) -> bool:
    with ledger.read() as tx:
        try:
            versions.check_registration(tx, run, token)
        except Fenced:
            return False
        return True


def unregistered(ledger: Ledger) -> list[int]:
    with ledger.read() as tx:
        return versions.unregistered(tx)


def state(ledger: Ledger, number: int) -> str:
    with ledger.read() as tx:
        return str(versions.find(tx, "delays", number).state)


def promote(ledger: Ledger, number: int) -> None:
    with ledger.write() as tx:
        versions.promote(tx, "delays", number, "alice", "seen it")


def roll_back(ledger: Ledger, number: int | None = None) -> int:
    with ledger.write() as tx:
        versions.roll_back(tx, "delays", number, "alice", "late flights")
    assert champion(ledger) != number
    return follow(ledger) or 0


def news(ledger: Ledger) -> list[Notice]:
    with ledger.read() as tx:
        return [one for one in deliveries.read(tx, 0, 99) if one.type.startswith("version.")]


def candidate(ledger: Ledger, number: int) -> None:
    register(ledger, train(ledger), number)


def test_a_trained_run_is_registered_by_one_bridge_at_a_time(ledger: Ledger, clock: HandClock) -> None:
    run = train(ledger)
    assert unregistered(ledger) == [run]
    first = begin(ledger, run)
    assert first == 1
    assert (begin(ledger, run), unregistered(ledger)) == (None, [])
    assert holds(ledger, run, 1)
    clock.forward(seconds=LEASE.total_seconds() + 0.001)
    assert holds(ledger, run, 1)  # nobody has taken it over yet
    assert unregistered(ledger) == [run]
    assert begin(ledger, run) == 2
    assert (holds(ledger, run, 1), holds(ledger, run, 2)) == (False, True)


def test_only_a_trained_run_is_registered(ledger: Ledger) -> None:
    with ledger.read() as tx:
        waits = runs.find_waiting(tx, "delays").id
    assert begin(ledger, waits) is None
    assert begin(ledger, 99) is None


def test_a_run_yields_one_version_however_often_it_is_registered(ledger: Ledger) -> None:
    run = train(ledger)
    begin(ledger, run)
    register(ledger, run, 1)
    register(ledger, run, 2)
    with ledger.read() as tx:
        assert [row.number for row in versions.find_all(tx, "delays", before=None, limit=9)] == [1]
    assert (begin(ledger, run), unregistered(ledger)) == (None, [])


def test_a_registration_that_failed_is_tried_again_after_its_pause(ledger: Ledger, clock: HandClock) -> None:
    run = train(ledger)
    begin(ledger, run)
    fail_registration(ledger, run, 1)
    clock.forward(seconds=2)
    assert unregistered(ledger) == []
    clock.forward(seconds=0.001)
    assert unregistered(ledger) == [run]
    assert begin(ledger, run) == 2
    register(ledger, run, 1)
    with ledger.read() as tx:
        assert runs.find(tx, run).registration_error is None


def fail_registration(ledger: Ledger, run: int, token: int) -> None:
    with ledger.write() as tx:
        versions.registration_failed(tx, run, token, "MLflow is away", timedelta(seconds=2))


def test_a_stale_registration_that_fails_does_not_disturb_the_newer_one(ledger: Ledger, clock: HandClock) -> None:
    run = train(ledger)
    begin(ledger, run)
    clock.forward(minutes=6)
    begin(ledger, run)
    fail_registration(ledger, run, 1)
    assert holds(ledger, run, 2)
    clock.forward(seconds=3)
    assert unregistered(ledger) == []
    register(ledger, run, 1)
    fail_registration(ledger, run, 2)
    with ledger.read() as tx:
        assert runs.find(tx, run).registration_error is None


def test_a_version_serves_only_when_the_alias_has_followed(ledger: Ledger) -> None:
    candidate(ledger, 1)
    decide(ledger, 1)
    assert (champion(ledger), state(ledger, 1), news(ledger)) == (None, "candidate", [])
    assert follow(ledger) == 1
    assert (champion(ledger), state(ledger, 1)) == (1, "promoted")
    (told,) = news(ledger)
    assert (told.type, told.data["version"], told.data["replaces"]) == ("version.promoted", 1, None)
    assert told.data["reasons"] == ["auc: passes"]


def test_a_rejected_version_changes_nothing_but_what_is_told(ledger: Ledger) -> None:
    serve(ledger, 1)
    candidate(ledger, 2)
    decide(ledger, 2, Decision.REJECT)
    assert (champion(ledger), state(ledger, 2), follow(ledger)) == (1, "rejected", None)
    assert [
        (one.type, one.data["version"], one.data.get("replaces", one.data.get("champion"))) for one in news(ledger)
    ][1:] == [("version.rejected", 2, 1)]


def test_a_verdict_is_void_when_another_serves_than_it_names(ledger: Ledger) -> None:
    candidate(ledger, 1)
    with ledger.read() as tx:
        row, before = versions.find(tx, "delays", 1), versions.champion(tx, "delays")
    serve(ledger, 2)
    with pytest.raises(Conflict, match="has changed since version 1 was judged"), ledger.write() as tx:
        versions.decide(tx, row, before, Verdict(Decision.PROMOTE, ()), None, automatic=True)
    with ledger.read() as tx:
        assert versions.last_verdict(tx, row.id) is None
    assert (champion(ledger), state(ledger, 1)) == (2, "candidate")


def test_a_verdict_is_void_while_another_promotion_is_under_way(ledger: Ledger) -> None:
    candidate(ledger, 1)
    candidate(ledger, 2)
    decide(ledger, 1)
    with pytest.raises(Conflict):
        decide(ledger, 2)
    with pytest.raises(Conflict):
        decide(ledger, 2, Decision.REJECT)
    assert follow(ledger) == 1
    decide(ledger, 2)
    assert follow(ledger) == 2


def test_the_alias_is_moved_by_one_at_a_time(ledger: Ledger, clock: HandClock) -> None:
    candidate(ledger, 1)
    decide(ledger, 1)
    with ledger.write() as tx:
        first = versions.claim_intent(tx, "delays", LEASE)
        assert versions.claim_intent(tx, "delays", LEASE) is None
    clock.forward(minutes=6)
    with ledger.write() as tx:
        second = versions.claim_intent(tx, "delays", LEASE)
        assert second.number == first.number == 1
        versions.served(tx, second)
        versions.served(tx, first)
    assert [one.type for one in news(ledger)] == ["version.promoted"]
    with ledger.read() as tx:
        assert (versions.with_intent(tx), versions.has_intent(tx, "delays")) == ([], False)


def test_a_mover_that_slept_does_not_say_that_another_version_serves(ledger: Ledger, clock: HandClock) -> None:
    serve(ledger, 1)
    candidate(ledger, 2)
    decide(ledger, 2)
    with ledger.write() as tx:
        asleep = versions.claim_intent(tx, "delays", LEASE)
    clock.forward(minutes=6)
    assert follow(ledger) == 2
    with ledger.write() as tx:
        versions.roll_back(tx, "delays", None, "alice", "late")
        versions.served(tx, asleep)
    assert champion(ledger) == 2
    assert follow(ledger) == 1


def test_a_person_promotes_what_awaits_a_word(ledger: Ledger) -> None:
    serve(ledger, 1)
    candidate(ledger, 2)
    for early in (1, 2):
        with pytest.raises(Conflict, match="only an awaiting one"):
            promote(ledger, early)
    decide(ledger, 2, automatic=False)
    assert state(ledger, 2) == "awaiting"
    promote(ledger, 2)
    with pytest.raises(Conflict, match="under way"):
        promote(ledger, 2)
    assert follow(ledger) == 2
    assert [one.type for one in news(ledger)] == ["version.promoted", "version.awaiting", "version.promoted"]
    told = news(ledger)[-1].data
    assert (told["actor"], told["reasons"], told["replaces"]) == ("alice", ["seen it"], 1)
    with pytest.raises(NotFound):
        promote(ledger, 9)


def test_a_person_may_promote_over_a_newer_champion(ledger: Ledger) -> None:
    candidate(ledger, 1)
    decide(ledger, 1, Decision.UNDECIDED)
    serve(ledger, 2)
    promote(ledger, 1)
    assert follow(ledger) == 1
    assert news(ledger)[-1].data["replaces"] == 2


def test_a_rollback_leads_to_the_version_before_and_a_second_one_further_back(ledger: Ledger) -> None:
    for number in (1, 2, 3):
        serve(ledger, number)
    assert (roll_back(ledger), champion(ledger)) == (2, 2)
    assert (roll_back(ledger), champion(ledger)) == (1, 1)
    with pytest.raises(Conflict, match="no earlier version"):
        roll_back(ledger)
    told = news(ledger)[-1]
    assert (told.type, told.data["version"], told.data["replaces"]) == ("version.rolled_back", 1, 2)
    assert {state(ledger, number) for number in (1, 2, 3)} == {"promoted"}


def test_the_way_forward_again_is_by_name(ledger: Ledger) -> None:
    for number in (1, 2, 3):
        serve(ledger, number)
    roll_back(ledger)
    roll_back(ledger)
    assert roll_back(ledger, 3) == 3
    with pytest.raises(Conflict, match="version 3 of delays serves already"):
        roll_back(ledger, 3)
    assert roll_back(ledger) == 2


def test_a_rollback_after_a_promotion_leads_to_what_that_replaced(ledger: Ledger) -> None:
    for number in (1, 2, 3):
        serve(ledger, number)
    roll_back(ledger, 1)
    serve(ledger, 4)
    assert roll_back(ledger) == 1


def test_nothing_is_rolled_back_to_what_has_never_served(ledger: Ledger) -> None:
    with pytest.raises(Conflict):
        roll_back(ledger)
    serve(ledger, 1)
    with pytest.raises(Conflict, match="no earlier version"):
        roll_back(ledger)
    candidate(ledger, 2)
    decide(ledger, 2, Decision.REJECT)
    with pytest.raises(Conflict, match="no such version that has served"):
        roll_back(ledger, 2)
    with pytest.raises(NotFound):
        roll_back(ledger, 9)
    assert champion(ledger) == 1


def test_a_rollback_waits_for_the_alias_of_the_change_before(ledger: Ledger) -> None:
    serve(ledger, 1)
    candidate(ledger, 2)
    decide(ledger, 2)
    with pytest.raises(Conflict, match="under way"):
        roll_back(ledger)
    assert follow(ledger) == 2


def test_a_candidate_is_found_until_it_is_judged(ledger: Ledger) -> None:
    run = train(ledger)
    register(ledger, run, 1)

    def candidates() -> list[int]:
        with ledger.read() as tx:
            return versions.candidates(tx)

    assert candidates() == [run]
    decide(ledger, 1, Decision.UNDECIDED)
    assert (candidates(), state(ledger, 1)) == ([], VersionState.AWAITING)


SCORE = (1, "sha256:h", {"flights": {"above": 1, "upto": 2}}, "standard")


def test_a_score_is_made_by_one_worker_and_the_first_metrics_stay(ledger: Ledger) -> None:
    run = train(ledger)
    with ledger.write() as tx:
        scores.want(tx, run, *SCORE[1:])
        scores.want(tx, run, *SCORE[1:])
        assert tuple(scores.wanted(tx, "standard")) == (run, "sha256:h")
        assert scores.wanted(tx, "gpu") is None
        assert scores.claim(tx, run, "sha256:h", LEASE).rows == SCORE[2]
        assert scores.claim(tx, run, "sha256:h", LEASE) is None
        assert scores.wanted(tx, "standard") is None
        scores.store(tx, run, *SCORE[1:], {"auc": 0.7}, None)
        scores.store(tx, run, *SCORE[1:], {"auc": 0.1}, None)
        assert scores.metrics(tx, run) == {"auc": 0.7}
        assert scores.claim(tx, run, "sha256:h", LEASE) is None
        assert scores.find(tx, run, "sha256:other") is None


def test_a_score_that_loses_three_workers_is_given_up_and_says_so(ledger: Ledger, clock: HandClock) -> None:
    run = train(ledger)
    with ledger.write() as tx:
        scores.want(tx, run, *SCORE[1:])
    for _ in range(3):
        with ledger.write() as tx:
            assert scores.claim(tx, run, "sha256:h", LEASE) is not None
            scores.beat(tx, run, "sha256:h", LEASE)
        clock.forward(minutes=6)
    with ledger.write() as tx:
        assert scores.claim(tx, run, "sha256:h", LEASE) is None
        found = scores.find(tx, run, "sha256:h")
        assert (found.metrics, found.error) == (None, "three workers were lost while they scored it")
        assert scores.wanted(tx, "standard") is None


def test_a_versions_metrics_are_those_of_its_own_holdout(ledger: Ledger, clock: HandClock) -> None:
    run = train(ledger)
    for holdout, metrics in (("sha256:own", {"auc": 0.7}), ("sha256:later", {"auc": 0.6})):
        with ledger.write() as tx:
            scores.store(tx, run, holdout, {}, "standard", metrics, None)
        clock.forward(hours=1)
    with ledger.read() as tx:
        assert scores.metrics(tx, run) == {"auc": 0.7}


def test_a_slow_registration_that_nobody_has_taken_over_is_not_fenced(ledger: Ledger, clock: HandClock) -> None:
    train(ledger)
    token = begin(ledger, 1)
    assert token is not None
    clock.forward(hours=1)
    assert holds(ledger, 1, token)
    with ledger.write() as tx:
        versions.keep_registration(tx, 1, token, LEASE)
    assert begin(ledger, 1) is None  # it has its lease again


def test_a_score_that_is_given_back_is_not_used_up(ledger: Ledger, clock: HandClock) -> None:
    train(ledger)
    with ledger.write() as tx:
        scores.want(tx, 1, "sha256:rows", {}, "standard")
    for _ in range(5):
        with ledger.write() as tx:
            assert scores.claim(tx, 1, "sha256:rows", LEASE) is not None
        with ledger.write() as tx:
            scores.release(tx, 1, "sha256:rows", timedelta(seconds=10))
        clock.forward(seconds=11)
    with ledger.read() as tx:
        assert scores.find(tx, 1, "sha256:rows").scored_at is None
