"""Where a process may be killed by a test: declared by the code, reached in order, and not to be armed from outside."""

from __future__ import annotations

import timeit
from collections.abc import Iterator

import pytest

from shared import points
from shared.points import POINTS, Side, point
from shared.settings import Settings
from tests import ledgers


@pytest.fixture
def reached() -> Iterator[list[tuple[tuple[str, ...], Side]]]:
    seen: list[tuple[tuple[str, ...], Side]] = []
    points.arm(lambda names, side: seen.append((names, side)))
    yield seen
    points.arm(None)


@pytest.fixture
def mine() -> Iterator[points.Point]:
    yield point("test point", __name__)
    del POINTS["test point"]


def test_both_sides_of_a_call_are_reached_and_only_the_first_of_one_that_fails(
    reached: list[object], mine: points.Point
) -> None:
    with mine:
        reached.append("the call")
    with pytest.raises(OSError, match="away"), mine:
        raise OSError("away")
    name = ("test point",)
    assert reached == [(name, "before"), "the call", (name, "after"), (name, "before")]


def test_a_name_is_declared_once(mine: points.Point) -> None:
    with pytest.raises(ValueError, match=f"is a point of {__name__} already; give that of elsewhere another name"):
        point("test point", "elsewhere")


def test_a_commit_is_named_by_the_steps_that_were_taken_in_it(reached: list[tuple[tuple[str, ...], Side]]) -> None:
    ledger, _ = ledgers.in_memory()
    ledgers.adopt(ledger)
    ledgers.grow(ledger)
    reached.clear()
    assert ledgers.claim(ledger, ledgers.waiting(ledger)) is not None
    assert [side for names, side in reached if "commit attempts.claim" in names] == ["before", "after"]


def test_a_commit_that_fails_is_never_said_to_have_been_made(reached: list[tuple[tuple[str, ...], Side]]) -> None:
    ledger, _ = ledgers.in_memory()
    reached.clear()
    with pytest.raises(RuntimeError, match="half-way"), ledger.write():
        raise RuntimeError("half-way")
    assert reached == []


def test_no_setting_arms_it() -> None:
    assert not {"points", "arm", "strike", "crash"} & set(Settings.model_fields)


def test_a_point_costs_less_than_a_microsecond(mine: points.Point) -> None:
    def reach() -> None:
        with mine:
            pass

    assert min(timeit.repeat(reach, number=10_000, repeat=5)) / 10_000 < 1e-6
