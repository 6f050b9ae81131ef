"""A model whose runs fail one after the other pauses and says so; a person, a new release or a good run lets it go on."""

from __future__ import annotations

import pytest

from shared.errors import NotFound
from shared.ledger import Ledger, attempts, deliveries, fates, history, pauses, planning, runs
from shared.ledger.attempts import Failure
from shared.lifecycle import RunState
from tests.ledgers import CONFIG, LEASE, HandClock, adopt, claim, finish, grow, put_config, waiting

WRONG = Failure("author_error", "KeyError: 'x'\nand a traceback", "mend the code")


def fail(ledger: Ledger, times: int = 1) -> None:
    for _ in range(times):
        grow(ledger)
        claimed = claim(ledger, waiting(ledger))
        assert claimed is not None
        with ledger.write() as tx:
            attempts.fail(tx, claimed.run, claimed.token, WRONG, {})


def succeed(ledger: Ledger) -> None:
    grow(ledger)
    claimed = claim(ledger, waiting(ledger))
    assert claimed is not None
    finish(ledger, claimed)


def resume(ledger: Ledger, model: str = "delays") -> None:
    with ledger.write() as tx:
        planning.resume(tx, model, "the disk is larger", "carol")


def paused(ledger: Ledger) -> int | None:
    with ledger.read() as tx:
        found = pauses.of(tx, "delays")
        return found.failed if found is not None else None


def is_due(ledger: Ledger) -> bool:
    with ledger.read() as tx:
        return runs.claimable(tx, "standard") is not None


def told(ledger: Ledger) -> list[dict[str, object]]:
    with ledger.read() as tx:
        return [dict(one.data) for one in deliveries.read(tx, 0, 99) if one.type == "model.paused"]


def test_after_three_failed_runs_in_a_row_new_data_waits_and_says_why(ledger: Ledger) -> None:
    adopt(ledger)
    fail(ledger, 2)
    assert paused(ledger) is None
    assert told(ledger) == []
    fail(ledger)
    assert paused(ledger) == 3
    grow(ledger)
    assert not is_due(ledger)
    with ledger.read() as tx:
        first, second, *_ = fates.why(tx, "delays")
    assert first == (
        "It is paused since 2026-01-01 00:00:00Z, for its last 3 runs have failed; run 3 failed (author_error): KeyError: 'x'; mend the code. "
        "Mend it and tag a new release, or let it go on with `headrace resume delays`."
    )
    assert "is paused, for the last 3 runs have failed, until `headrace resume` or a new release" in second


def test_a_pause_is_told_once(ledger: Ledger) -> None:
    adopt(ledger)
    fail(ledger, 3)
    ask_and_fail(ledger)
    (notice,) = told(ledger)
    assert notice["failed"] == 3
    assert (notice["run"], notice["kind"], notice["message"]) == (3, "author_error", "KeyError: 'x'")
    assert "headrace resume delays" in str(notice["advice"])


def ask_and_fail(ledger: Ledger) -> None:
    with ledger.write() as tx:
        id = planning.ask(tx, "delays", "to see", "carol")
    claimed = claim(ledger, id)
    assert claimed is not None, "what a person asks for is trained all the same"
    with ledger.write() as tx:
        attempts.fail(tx, claimed.run, claimed.token, WRONG, {})


def test_a_person_lets_it_go_on_and_is_remembered(ledger: Ledger) -> None:
    adopt(ledger)
    fail(ledger, 3)
    grow(ledger)
    resume(ledger)
    assert is_due(ledger)
    assert paused(ledger) is None
    resume(ledger)
    with ledger.read() as tx:
        done = [row for row in history.find_all(tx, model="delays", before=None, limit=9) if row.action == "resume"]
    assert [(row.actor, row.reason, row.before) for row in done] == [
        ("carol", "the disk is larger", {"paused": True, "failed": 3})
    ]
    fail(ledger, 2)
    assert paused(ledger) is None, "counted anew"


def test_a_new_release_lets_it_go_on(ledger: Ledger) -> None:
    adopt(ledger)
    fail(ledger, 3)
    adopt(ledger, name="v1.0.1", commit="b" * 40)
    assert paused(ledger) is None
    assert is_due(ledger)


def test_a_good_run_in_between_begins_the_count_anew_and_a_cancelled_one_does_not(ledger: Ledger) -> None:
    adopt(ledger)
    fail(ledger, 2)
    grow(ledger)
    with ledger.write() as tx:
        assert planning.cancel(tx, runs.find_waiting(tx, "delays").id, "not now") == RunState.CANCELLED
    fail(ledger)
    assert paused(ledger) == 3
    with ledger.write() as tx:
        planning.ask(tx, "delays", "mended", "carol")
    succeed(ledger)
    assert paused(ledger) is None
    fail(ledger, 2)
    assert paused(ledger) is None


def test_workers_that_go_silent_count_too(ledger: Ledger, clock: HandClock) -> None:
    adopt(ledger)
    fail(ledger, 2)
    grow(ledger)
    run = waiting(ledger)
    for _ in range(3):
        assert claim(ledger, run) is not None
        clock.forward(seconds=LEASE.total_seconds() + 1)
    assert claim(ledger, run) is None
    assert paused(ledger) == 3


@pytest.mark.parametrize(("pause_after", "wanted"), [(1, 1), (5, None), (0, None)])
def test_the_operator_says_after_how_many(ledger: Ledger, pause_after: int, wanted: int | None) -> None:
    put_config(ledger, CONFIG.replace("policy =", f"pause_after = {pause_after}\npolicy ="))
    adopt(ledger)
    fail(ledger, 4 if wanted is None else wanted)
    assert paused(ledger) == wanted


def test_a_model_that_there_is_not_cannot_go_on(ledger: Ledger) -> None:
    with pytest.raises(NotFound, match="headrace models"):
        resume(ledger, "nobody")
