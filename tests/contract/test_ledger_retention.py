"""What the janitor may do to the ledger: its turn, what it marks as taken, what it forgets; and pins. The same on every database."""

from __future__ import annotations

from datetime import timedelta

import pytest

from shared.errors import Conflict, Fenced, NotFound
from shared.gates import Decision
from shared.ledger import Ledger, deliveries, retention, runs, versions
from tests import ledgers
from tests.ledgers import HandClock

LEASE = timedelta(minutes=5)
RULES = {"runs": "180d"}


def reject(ledger: Ledger, number: int) -> int:
    run = ledgers.train(ledger)
    ledgers.register(ledger, run, number)
    ledgers.decide(ledger, number, Decision.REJECT)
    return run


def begin(ledger: Ledger, owner: str) -> int | None:
    with ledger.write() as tx:
        return retention.begin(tx, owner, RULES, LEASE)


def test_one_turn_is_open_at_a_time_and_a_lost_one_is_closed_by_the_next(ledger: Ledger, clock: HandClock) -> None:
    assert (begin(ledger, "one"), begin(ledger, "two")) == (1, None)
    clock.forward(minutes=4)
    with ledger.write() as tx:
        retention.renew(tx, 1, LEASE)
    clock.forward(minutes=4)
    assert begin(ledger, "two") is None, "its lease was renewed"
    clock.forward(minutes=2)
    assert begin(ledger, "two") == 2
    with ledger.read() as tx:
        assert retention.last_ended(tx).error == "one went silent"
    with pytest.raises(Fenced), ledger.write() as tx:
        retention.renew(tx, 1, LEASE)
    with ledger.write() as tx:
        retention.end(tx, 2, {"logs": {"count": 1, "size_bytes": 2}}, None)
        retention.end(tx, 2, {}, "a second call changes nothing")
    with ledger.read() as tx:
        row = retention.last_ended(tx)
        assert (row.id, row.taken, row.error) == (2, {"logs": {"count": 1, "size_bytes": 2}}, None)


def test_only_files_of_rejected_versions_are_taken_and_bundles_after_them(ledger: Ledger) -> None:
    ledgers.adopt(ledger)
    served = ledgers.serve(ledger, 1)
    first, second = reject(ledger, 2), reject(ledger, 3)
    ledgers.register(ledger, waits := ledgers.train(ledger), 4)
    with ledger.write() as tx:
        everything = [served, first, second, waits]
        assert retention.take_bundles(tx, everything) == 0, "their versions have their files"
        assert retention.take_files(tx, [served, first, waits]) == 1
        assert retention.take_files(tx, [first]) == 0
        assert retention.take_bundles(tx, everything) == 1
        assert retention.take_bundles(tx, everything) == 0
    with ledger.read() as tx:
        row = runs.find(tx, first)
        assert (row.bundle, row.tidied_at is not None) == (None, True)
        bundles, files = retention.named(tx, (0, 0), 100)
        assert {one.id for one in bundles} == {one.run_id for one in files} == {served, second, waits}
        assert [one.number for one in retention.unremoved(tx, 0, 10)] == [2]
        trained = retention.trained(tx, "delays", None, 10)
    assert [one.id for one in trained] == [waits, second, served]
    assert [one.version.promoted for one in trained if one.version] == [False, False, True]


def test_runs_are_gone_through_page_by_page(ledger: Ledger) -> None:
    ledgers.adopt(ledger)
    made = [reject(ledger, number) for number in range(1, 6)]
    with ledger.read() as tx:
        assert retention.models(tx) == ["delays"]
        first = retention.trained(tx, "delays", None, 2)
        rest = retention.trained(tx, "delays", first[-1].id, 10)
    assert [one.id for one in (*first, *rest)] == sorted(made, reverse=True)


def test_a_pinned_version_is_not_taken_until_it_is_unpinned(ledger: Ledger) -> None:
    ledgers.adopt(ledger)
    run = reject(ledger, 1)
    with ledger.write() as tx:
        row = retention.pin(tx, "delays", 1, "alice", "the storefront runs it")
        assert (row.pinned_by, row.pin_reason) == ("alice", "the storefront runs it")
        assert retention.take_files(tx, [run]) == 0
        assert retention.pin(tx, "delays", 1, "bob", "so does the app").pinned_by == "bob"
        assert retention.unpin(tx, "delays", 1).pinned_at is None
        assert retention.unpin(tx, "delays", 1).pin_reason is None
        assert retention.take_files(tx, [run]) == 1
    with pytest.raises(Conflict, match="tidied away"), ledger.write() as tx:
        retention.pin(tx, "delays", 1, "alice", "too late")
    with pytest.raises(NotFound), ledger.write() as tx:
        retention.pin(tx, "delays", 9, "alice", "no such one")


def test_a_version_whose_files_are_gone_is_neither_promoted_nor_rolled_back_to(ledger: Ledger) -> None:
    ledgers.adopt(ledger)
    ledgers.serve(ledger, 1)
    run = reject(ledger, 2)
    with ledger.write() as tx:
        retention.take_files(tx, [run])
    for act in (
        lambda tx: versions.promote(tx, "delays", 2, "alice", "please"),
        lambda tx: versions.roll_back(tx, "delays", 2, "alice", "please"),
    ):
        with pytest.raises(Conflict, match="version 2 of delays were tidied away on 2026-01-01"), ledger.write() as tx:
            act(tx)
    assert ledgers.champion(ledger) == 1


def test_old_notices_go_with_their_deliveries_but_never_the_newest_nor_one_on_its_way(
    ledger: Ledger, clock: HandClock
) -> None:
    ledgers.adopt(ledger)
    for number in (1, 2, 3):
        reject(ledger, number)
    with ledger.write() as tx:
        open_ = deliveries.find_all(tx, state="pending", subject=None, after=None, limit=100)
        waits = min(row.sequence for row in open_)
        for row in open_:
            if row.sequence != waits:
                deliveries.delivered(tx, row.id, 200)
        told = [one.sequence for one in deliveries.read(tx, 0, 100)]
    clock.forward(days=10)
    with ledger.read() as tx:
        assert retention.old_notices(tx, tx.now - timedelta(days=11), 0, 100) == ([], None)
        before = tx.now - timedelta(days=9)
        first, behind = retention.old_notices(tx, before, 0, 2)
        assert behind == told[1]
        rest, end = retention.old_notices(tx, before, behind, 100)
    assert ([*first, *rest], end) == ([one for one in told[:-1] if one != waits], None)
    with ledger.write() as tx:
        assert retention.forget_notices(tx, [*first, *rest, waits]) == len(told) - 2, "one is on its way still"
    with ledger.read() as tx:
        assert [one.sequence for one in deliveries.read(tx, 0, 100)] == [waits, told[-1]]


def test_runs_say_when_they_ended(ledger: Ledger) -> None:
    ledgers.adopt(ledger)
    run = ledgers.train(ledger)
    ledgers.grow(ledger)
    with ledger.read() as tx:
        waits = runs.find_waiting(tx, "delays").id
        assert retention.ended(tx, [run, waits, 99]) == {run: runs.find(tx, run).finished_at, waits: None}
