"""Notices in the order of their commits, and a delivery of each to everyone who wants it, until it has arrived or is given up (I8)."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import timedelta
from typing import Any

import pytest

from shared.errors import Conflict, NotFound
from shared.ledger import Ledger, deliveries
from shared.ledger.deliveries import Sending
from shared.notices import NoticeType
from tests.ledgers import CONFIG, LEASE, START, HandClock, put_config

SECOND = """
[[subscriptions]]
name = "page"
url = "http://127.0.0.1:2/hook"
secret = "env:PAGE_SECRET"
allow_private = true
models = ["delays"]
types = ["version.*"]
"""


def tell(ledger: Ledger, kind: str = "run.failed", run: int = 1) -> int:
    with ledger.write() as tx:
        return deliveries.tell(tx, NoticeType(kind), "delays", "delays", {"run": run})


def claim(ledger: Ledger, limit: int = 10, busy: Sequence[str] = ()) -> list[Sending]:
    with ledger.write() as tx:
        return deliveries.claim_due(tx, LEASE, limit, busy)


def rows(ledger: Ledger, state: str | None = None) -> list[Any]:
    with ledger.read() as tx:
        return deliveries.find_all(tx, state=state, subject=None, after=None, limit=99)


def next_due(ledger: Ledger, *busy: str) -> object:
    with ledger.read() as tx:
        return deliveries.next_due(tx, busy)


def fail(ledger: Ledger, id: str, again_in: timedelta | None) -> None:
    with ledger.write() as tx:
        deliveries.undelivered(tx, id, 500, "answered 500", again_in)


def test_each_subscription_gets_what_it_wishes_for(ledger: Ledger) -> None:
    put_config(ledger, CONFIG + SECOND)
    for kind in ("run.failed", "version.promoted"):
        tell(ledger, kind)
    with ledger.write() as tx:
        deliveries.tell(tx, NoticeType.ARRIVAL_OBSERVED, "flights", None, {})
    found = [(one.subscription.name, one.notice.sequence, one.notice.type) for one in claim(ledger)]
    assert sorted(found) == [
        ("page", 2, "version.promoted"),
        ("shop", 1, "run.failed"),
        ("shop", 2, "version.promoted"),
        ("shop", 3, "arrival.observed"),
    ]


def test_a_subscription_that_comes_later_hears_of_what_comes_later(ledger: Ledger) -> None:
    tell(ledger, "version.promoted")
    put_config(ledger, CONFIG + SECOND)
    tell(ledger, "version.promoted")
    assert [one.notice.sequence for one in claim(ledger) if one.subscription.name == "page"] == [2]


def test_a_notice_is_gone_with_the_transaction_that_failed_and_leaves_no_gap(ledger: Ledger) -> None:
    tell(ledger)
    with pytest.raises(ZeroDivisionError), ledger.write() as tx:
        deliveries.tell(tx, NoticeType.RUN_FAILED, "delays", "delays", {"run": 1 // 0})
    with pytest.raises(ZeroDivisionError), ledger.write() as tx:
        deliveries.tell(tx, NoticeType.RUN_FAILED, "delays", "delays", {"run": 1})
        raise ZeroDivisionError
    assert tell(ledger) == 2
    assert len(rows(ledger)) == 2


def test_notices_are_numbered_in_the_order_of_their_commits_without_gaps(ledger: Ledger) -> None:
    started, seen = threading.Barrier(3), []

    def write(_: int) -> list[int]:
        started.wait()
        return [tell(ledger) for _ in range(25)]

    with ThreadPoolExecutor(2) as pool, closing(ledger.watch()) as commits:
        writers = [pool.submit(write, number) for number in range(2)]
        started.wait()
        while len(seen) < 50:
            commits.wait(0.5)
            with ledger.read() as tx:  # a reader that asks for what comes after never passes over a late one
                seen += [one.sequence for one in deliveries.read(tx, seen[-1] if seen else 0, 9)]
        numbers = [number for writer in writers for number in writer.result()]
    assert seen == list(range(1, 51))
    assert sorted(numbers) == seen


def test_a_delivery_is_leased_to_one_sender(ledger: Ledger, clock: HandClock) -> None:
    tell(ledger)
    (first,) = claim(ledger)
    assert claim(ledger) == []
    assert next_due(ledger) == START + LEASE
    clock.forward(seconds=30.001)
    (again,) = claim(ledger)
    assert (again.id, again.notice.id) == (first.id, first.notice.id)


def test_a_delivery_that_arrived_is_done(ledger: Ledger) -> None:
    tell(ledger)
    (one,) = claim(ledger)
    with ledger.write() as tx:
        deliveries.delivered(tx, one.id, 204)
        deliveries.delivered(tx, one.id, 200)
        deliveries.undelivered(tx, one.id, 500, "late", None)
        deliveries.undelivered(tx, one.id, 500, "late", LEASE)
    (row,) = rows(ledger)
    assert (row.state, row.answer, row.attempts, row.error) == ("delivered", 204, 1, None)
    assert next_due(ledger) is None


def test_a_delivery_that_failed_is_tried_again_when_its_pause_is_over(ledger: Ledger, clock: HandClock) -> None:
    tell(ledger)
    (one,) = claim(ledger)
    fail(ledger, one.id, timedelta(seconds=5))
    assert (claim(ledger), next_due(ledger)) == ([], START + timedelta(seconds=5))
    clock.forward(seconds=5)
    (again,) = claim(ledger)
    assert (again.id, again.attempts) == (one.id, 1)


def test_a_delivery_that_is_given_up_is_kept_and_can_be_replayed(ledger: Ledger) -> None:
    tell(ledger)
    (one,) = claim(ledger)
    with pytest.raises(Conflict, match="is pending"), ledger.write() as tx:
        deliveries.replay(tx, one.id)
    fail(ledger, one.id, None)
    assert (claim(ledger), rows(ledger)[0].state) == ([], "failed")
    with ledger.write() as tx:
        deliveries.replay(tx, one.id)
    (again,) = claim(ledger)
    assert (again.id, again.attempts) == (one.id, 0)
    with pytest.raises(NotFound), ledger.write() as tx:
        deliveries.replay(tx, "msg_unknown")


def test_a_busy_subscription_does_not_hold_up_another(ledger: Ledger) -> None:
    put_config(ledger, CONFIG + SECOND)
    for _ in range(3):
        tell(ledger, "version.promoted")
    assert {one.subscription.name for one in claim(ledger, busy=("shop",))} == {"page"}
    assert next_due(ledger, "shop", "page") is None
    assert next_due(ledger, "page") == START


def test_what_is_due_first_is_sent_first_and_only_so_many_at_once(ledger: Ledger) -> None:
    for _ in range(5):
        tell(ledger)
    assert [[one.notice.sequence for one in claim(ledger, limit=2)] for _ in range(3)] == [[1, 2], [3, 4], [5]]


def test_deliveries_to_a_subscription_that_was_removed_end_as_failed(ledger: Ledger) -> None:
    put_config(ledger, CONFIG + SECOND)
    tell(ledger, "version.promoted")
    put_config(ledger, CONFIG)
    assert [one.subscription.name for one in claim(ledger)] == ["shop"]
    (ended,) = rows(ledger, "failed")
    assert (ended.subscription, ended.error) == ("page", "the subscription is no longer in the configuration")
    put_config(ledger, CONFIG + SECOND)
    with ledger.write() as tx:
        deliveries.replay(tx, ended.id)
    assert [one.id for one in claim(ledger)] == [ended.id]


def test_notices_are_read_by_type_and_model_from_a_number_on(ledger: Ledger) -> None:
    with ledger.write() as tx:
        deliveries.tell(tx, NoticeType.ARRIVAL_OBSERVED, "flights", None, {})
        deliveries.tell(tx, NoticeType.RUN_FAILED, "delays", "delays", {"run": 3})
        deliveries.tell(tx, NoticeType.RUN_FAILED, "other", "other", {"run": 4})

    def read(after: int = 0, **filters: Any) -> list[int]:
        with ledger.read() as tx:
            return [one.sequence for one in deliveries.read(tx, after, 9, **filters)]

    assert (read(), read(1), read(3)) == ([1, 2, 3], [2, 3], [])
    assert read(types=["run.failed"], models=["delays"]) == [2]
    with ledger.read() as tx:
        assert [row.sequence for row in deliveries.of_run(tx, 4)] == [3]
        assert [row.sequence for row in deliveries.find_all(tx, state=None, subject="other", after=None, limit=9)] == [
            3
        ]
        assert deliveries.count(tx) == {"pending": 3}


def test_pages_of_deliveries_meet_without_gap_or_overlap(ledger: Ledger) -> None:
    put_config(ledger, CONFIG + SECOND)
    for _ in range(4):
        tell(ledger, "version.promoted")
    seen: list[Any] = []
    with ledger.read() as tx:
        while page := deliveries.find_all(tx, state=None, subject=None, after=seen[-1] if seen else None, limit=3):
            seen += page
    assert [row.id for row in seen] == [row.id for row in rows(ledger)]
    assert [row.sequence for row in seen] == [4, 4, 3, 3, 2, 2, 1, 1]
