"""The watch over a dataset: when it looks, what it writes down, and who holds it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from services.ingest_watcher.loop import Loop, Wake
from services.ingest_watcher.watch import DatasetWatch, Look
from shared.arrivals import Report
from shared.cuts import Cut
from shared.errors import HeadraceError, Unavailable
from shared.ledger import Ledger, arrivals, datasets
from tests.ledgers import in_memory

DAY = timedelta(days=1)
SHORT = timedelta(milliseconds=10)


@dataclass
class Pile:
    """A source in memory: so many rows. It does not tell; `trouble` is raised at each look while it is set."""

    rows: int = 0
    trouble: HeadraceError | None = None
    looks: int = 0
    tells: bool = False
    meanwhile: Callable[[], None] = field(default=lambda: None)

    def look(self, before: Cut | None) -> Look | None:
        self.looks += 1
        if self.trouble is not None:
            raise self.trouble
        known, rows = before.upto if before else 0, self.rows
        assert isinstance(known, int)
        self.meanwhile()
        return Look(Cut(upto=rows, rows=rows), rows - known) if rows > known else None

    def stirred(self) -> bool:
        return False

    def settles_in_s(self) -> float | None:
        return None

    def close(self) -> None:
        self.looks = -1


def watch(
    ledger: Ledger, pile: Pile, owner: str = "w1", poll: timedelta = SHORT, lease: timedelta = DAY
) -> DatasetWatch:
    return DatasetWatch(ledger, "flights", lambda: pile, Wake(), owner=owner, lease=lease, poll=poll)


@contextmanager
def running(ledger: Ledger, pile: Pile, poll: timedelta) -> Iterator[DatasetWatch]:
    wake = Wake()
    body = DatasetWatch(ledger, "flights", lambda: pile, wake, owner="w1", lease=DAY, poll=poll)
    loop = Loop("dataset flights", body, wake)
    try:
        yield body
    finally:
        loop.stop()
        assert loop.join(10)


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.005)


def row(ledger: Ledger) -> Any:
    with ledger.read() as tx:
        return next(one for one in datasets.find_all(tx) if one.name == "flights")


def seen(ledger: Ledger) -> list[int]:
    with ledger.read() as tx:
        return [one.rows for one in reversed(arrivals.find_all(tx, dataset="flights", before=None, limit=100))]


def test_growth_becomes_one_arrival_with_its_cursor() -> None:
    ledger, _ = in_memory()
    pile = Pile(rows=5)
    one = watch(ledger, pile)
    one.step()
    one.step()
    pile.rows = 7
    one.step()
    assert seen(ledger) == [5, 2]
    assert row(ledger).cut["upto"] == 7


def test_an_idle_poll_writes_nothing() -> None:
    ledger, _ = in_memory()
    one = watch(ledger, Pile(rows=5))
    one.step()
    changes = ledger.watch()
    for _ in range(5):
        one.step()
    assert not changes.poll()


def test_an_error_is_written_down_once_and_taken_back_when_it_is_over() -> None:
    ledger, _ = in_memory()
    pile = Pile(rows=5, trouble=Unavailable("the database is away; it is asked again"))
    one = watch(ledger, pile)
    one.step()
    assert row(ledger).error == "the database is away; it is asked again"
    changes = ledger.watch()
    one.step()
    one.step()
    assert not changes.poll()
    pile.trouble = None
    one.step()
    assert (row(ledger).error, seen(ledger)) == (None, [5])


def test_an_error_that_the_last_watcher_left_is_taken_back() -> None:
    ledger, _ = in_memory()
    with ledger.write() as tx:
        datasets.ensure(tx, "flights")
        datasets.looked(tx, "flights", "an old error")
    watch(ledger, Pile()).step()
    assert row(ledger).error is None


def test_a_source_that_cannot_be_opened_is_tried_again() -> None:
    ledger, _ = in_memory()
    tries: list[Pile | HeadraceError] = [Unavailable("the variable FLIGHTS_URL is not set"), Pile(rows=5)]

    def open_source() -> Pile:
        found = tries.pop(0)
        if isinstance(found, HeadraceError):
            raise found
        return found

    one = DatasetWatch(ledger, "flights", open_source, Wake(), owner="w1", lease=DAY, poll=SHORT)
    one.step()
    assert row(ledger).error == "the variable FLIGHTS_URL is not set"
    one.step()
    assert seen(ledger) == [5]


def test_a_nudge_makes_it_look_now_and_is_answered_by_the_arrival() -> None:
    ledger, _ = in_memory()
    pile = Pile()
    with running(ledger, pile, poll=DAY) as one:
        until(lambda: pile.looks == 1)
        pile.rows = 5
        with ledger.write() as tx:
            told = arrivals.receive(tx, Report(dataset="flights", source="loader", event_id="february", rows=5))
        assert told.nudged
        one.nudge(row(ledger).nudged_at)
        until(lambda: seen(ledger) == [5])
    with ledger.write() as tx:
        again = arrivals.receive(tx, Report(dataset="flights", source="loader", event_id="february", rows=5))
    assert again.repeated
    assert again.arrival == 1


def test_a_nudge_without_news_is_noted_once() -> None:
    ledger, clock = in_memory()
    pile = Pile()
    with running(ledger, pile, poll=DAY) as one:
        until(lambda: row(ledger).looked_at == clock.at)
        clock.forward(seconds=5)
        with ledger.write() as tx:
            datasets.nudge(tx, "flights")
        one.nudge(row(ledger).nudged_at)
        one.nudge(row(ledger).nudged_at)
        until(lambda: row(ledger).looked_at == clock.at)
        assert pile.looks == 2
    assert seen(ledger) == []


def test_a_nudge_that_comes_during_a_look_makes_it_look_again() -> None:
    ledger, clock = in_memory()
    pile = Pile()
    watches: list[DatasetWatch] = []

    def nudged_meanwhile() -> None:
        if pile.looks == 1:
            until(lambda: watches)
            pile.rows = 5  # committed after this look has counted
            watches[0].nudge(clock.at)

    pile.meanwhile = nudged_meanwhile
    with running(ledger, pile, poll=DAY) as one:
        watches.append(one)
        until(lambda: seen(ledger) == [5])


def test_only_the_holder_of_the_lease_looks() -> None:
    ledger, clock = in_memory()
    first, second = Pile(rows=5), Pile(rows=5)
    one, two = watch(ledger, first, "w1", lease=timedelta(seconds=30)), watch(ledger, second, "w2", lease=SHORT)
    one.step()
    two.step()
    assert (first.looks, second.looks) == (1, 0)
    clock.forward(seconds=31)
    two.step()
    assert second.looks == 1
    assert seen(ledger) == [5]


def test_a_watch_that_is_closed_is_taken_over_at_once() -> None:
    ledger, clock = in_memory()
    one, two = watch(ledger, Pile(rows=5), "w1"), watch(ledger, second := Pile(rows=8), "w2")
    one.step()
    one.close()
    clock.forward(microseconds=1)
    two.step()
    assert second.looks == 1
    assert seen(ledger) == [5, 3]


def test_who_lost_the_lease_during_a_slow_look_reports_nothing() -> None:
    ledger, clock = in_memory()
    pile = Pile(rows=5)
    one = watch(ledger, pile, "w1", lease=timedelta(seconds=30))
    two = watch(ledger, Pile(rows=5), "w2", lease=timedelta(seconds=30))

    def slowly() -> None:
        clock.forward(seconds=31)
        two.step()

    pile.meanwhile = slowly
    one.step()
    assert seen(ledger) == [5]
    assert row(ledger).lease_owner == "w2"
