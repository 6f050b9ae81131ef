"""How long a maximum waits before it becomes the cut, and how a cursor's values are kept."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal

import pytest

from services.ingest_watcher.sources.horizon import Horizon
from services.ingest_watcher.sources.points import from_point, to_point, to_time
from shared.errors import Refused


@dataclass
class Hands:
    at: float = 100.0

    def __call__(self) -> float:
        return self.at


def test_without_a_lag_the_maximum_is_settled_at_once() -> None:
    horizon = Horizon(0.0, Hands())
    assert horizon.settled(7) == 7
    assert horizon.settles_in_s() is None


def test_a_maximum_is_settled_when_it_has_been_there_for_the_lag() -> None:
    clock = Hands()
    horizon = Horizon(5.0, clock)
    assert horizon.settled(7) is None
    assert horizon.settles_in_s() == 5.0
    clock.at += 4.9
    assert horizon.settled(9) is None
    clock.at += 0.1
    assert horizon.settled(9) == 7
    assert horizon.settles_in_s() == pytest.approx(4.9)
    clock.at += 4.9
    assert horizon.settled(9) == 9
    assert horizon.settles_in_s() is None


def test_an_unchanged_maximum_does_not_start_its_wait_again() -> None:
    clock = Hands()
    horizon = Horizon(5.0, clock)
    for _ in range(10):
        horizon.settled(7)
        clock.at += 0.5
    assert horizon.settled(7) == 7


def test_a_table_that_always_grows_settles_all_the_same_and_fills_no_memory() -> None:
    clock = Hands()
    horizon = Horizon(10.0, clock)
    for step in range(10_000):  # a hundred seconds in steps of ten milliseconds
        settled = horizon.settled(step)
        assert settled is None or step - 1015 <= settled <= step - 1000
        clock.at += 0.01
    assert settled is not None
    assert len(horizon._seen) < 210


def test_points_are_integers_or_times_that_order_as_text() -> None:
    assert to_point(12, "id") == 12
    assert to_point(Decimal("12"), "id") == 12
    assert to_point("2013-01-01 05:00:00", "at") == "2013-01-01 05:00:00"
    assert to_point(date(2013, 1, 1), "day") == "2013-01-01"
    east = datetime(2013, 1, 1, 5, tzinfo=timezone(timedelta(hours=2)))
    points = [to_point(east + timedelta(microseconds=one), "at") for one in (0, 1, 10**6)]
    assert points == sorted(points)
    assert from_point(points[1], east) == east.astimezone(UTC) + timedelta(microseconds=1)
    assert from_point("2013-01-01", date.today()) == date(2013, 1, 1)  # noqa: DTZ011


@pytest.mark.parametrize("value", [True, 1.5, Decimal("1.5"), b"7", "seven", "1/2/2013", ""])
def test_a_cursor_of_another_kind_is_refused_by_name(value: object) -> None:
    with pytest.raises(Refused, match=r"the cursor 'id' holds .* neither an integer nor a time"):
        to_point(value, "id")


def test_a_time_column_without_times_is_refused_by_name() -> None:
    with pytest.raises(Refused, match="time_column 'note' holds 'soon'"):
        to_time("soon", "note")
