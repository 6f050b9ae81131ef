"""Which maximum no open transaction can get below any more, over made-up transactions."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.ingest_watcher.sources.settling import Marks, Snapshot, Writers


@dataclass
class Hands:
    at: float = 100.0

    def __call__(self) -> float:
        return self.at


def writers(*ids: str) -> Writers:
    return Writers(frozenset(ids))


@dataclass
class Server:
    """Numbers drawn by transactions, some of which commit."""

    drawn: int = 0
    visible: set[int] = field(default_factory=set)
    open: dict[str, set[int]] = field(default_factory=dict)

    def write(self, who: str) -> None:
        self.drawn += 1
        self.open.setdefault(who, set()).add(self.drawn)

    def end(self, who: str, commit: bool) -> None:
        rows = self.open.pop(who, set())
        if commit:
            self.visible |= rows

    def look(self, marks: Marks) -> int | None:
        return marks.settled(max(self.visible), writers(*self.open)) if self.visible else None


_ACTS = st.one_of(
    st.tuples(st.sampled_from(["write", "commit", "rollback"]), st.sampled_from("abcde")), st.just(("look", ""))
)


@given(st.lists(_ACTS, max_size=80))
def test_below_a_settled_maximum_nothing_ever_appears_and_in_the_end_all_is_settled(
    acts: list[tuple[str, str]],
) -> None:
    server, marks, generation = Server(), Marks(Hands()), dict.fromkeys("abcde", 0)
    settled, counted = None, 0
    for act, who in [*acts, *[("commit", one) for one in "abcde"], ("look", "")]:
        name = f"{who}{generation[who]}" if who else ""  # an id names one transaction for its whole life
        if act == "write":
            server.write(name)
        elif act == "look":
            found = server.look(marks)
            assert settled is None or (found is not None and found >= settled)
            if settled is not None:
                assert len([row for row in server.visible if row <= settled]) == counted
            settled = found
            counted = len([row for row in server.visible if found is not None and row <= found])
        else:
            server.end(name, act == "commit")
            generation[who] += 1
    assert settled == max(server.visible, default=None)


def test_a_table_on_which_somebody_always_writes_settles_at_the_pace_of_its_transactions_and_fills_no_memory() -> None:
    marks, open_now = Marks(Hands()), [f"t{number}" for number in range(8)]
    for step in range(8, 2000):
        settled = marks.settled(step, writers(*open_now))
        open_now = [*open_now[1:], f"t{step}"]  # the oldest of eight ends, another begins
        if step > 20:
            assert settled == step - 8
        assert len(marks._waiting) <= 8


def test_on_a_standby_that_is_held_back_for_long_no_memory_is_filled_and_the_newest_settles_at_the_end() -> None:
    clock = Hands()
    marks = Marks(clock)
    for step in range(1000):
        assert marks.settled(step, Snapshot(xmin=5, xmax=100 + step)) is None
    assert len(marks._waiting) <= 100
    assert marks.settled(1000, Snapshot(xmin=1099, xmax=1100)) == 999
    assert marks.settled(1000, Snapshot(xmin=1100, xmax=1100)) == 1000


def test_what_waits_longest_is_known_with_its_time() -> None:
    clock = Hands()
    marks = Marks(clock)
    assert marks.oldest() is None
    marks.settled(1, writers("a"))
    clock.at += 3
    marks.settled(2, writers("a"))
    oldest = marks.oldest()
    assert oldest is not None
    assert (oldest.newest, oldest.since_s) == (2, 100.0)
    marks.settled(3, writers("a", "b"))
    marks.settled(3, writers("b"))
    oldest = marks.oldest()
    assert oldest is not None
    assert (oldest.newest, oldest.since_s) == (3, 103.0)


@pytest.mark.parametrize(("name", "left"), [("-1/735", True), ("4/9", False)])
def test_a_transaction_that_is_gone_may_go_on_under_the_name_of_a_prepared_one(name: str, left: bool) -> None:
    marks = Marks(Hands())
    assert marks.settled(2, writers("4/2")) is None
    assert marks.settled(2, writers(name)) == (None if left else 2)
    assert marks.settled(2, writers("-1/800")) == 2  # a prepared one that is gone has ended


def test_a_standby_that_becomes_the_primary_is_asked_for_its_writers_from_then_on() -> None:
    marks = Marks(Hands())
    assert marks.settled(7, Snapshot(xmin=5, xmax=9)) is None
    assert marks.settled(7, writers("4/2")) is None
    assert marks.settled(7, writers("4/3")) == 7


def test_a_maximum_that_went_back_makes_what_was_known_void() -> None:
    marks = Marks(Hands())
    assert marks.settled(7, writers()) == 7
    assert marks.settled(9, writers("4/2")) == 7
    assert marks.settled(5, writers("4/9")) is None
    assert marks.settled(6, writers("4/9", "5/1")) is None
    assert marks.settled(6, writers("5/1")) == 5
