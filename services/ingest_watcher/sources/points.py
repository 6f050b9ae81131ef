"""A cursor's values: as a driver gives them, and as a cut keeps them (pure).

A point is an integer, or a time as text that orders as the database orders it: text as it is stored, a datetime in ISO 8601 (in UTC if it has
a zone).
"""

from __future__ import annotations

from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

from shared.errors import Refused


def to_point(value: Any, cursor: str) -> int | str:
    """As a cut keeps it; raises `Refused` for what is neither an integer nor a time."""
    if isinstance(value, Decimal) and value == value.to_integral_value():
        return int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if text := _iso(value):
        return text
    raise Refused(
        f"the cursor {cursor!r} holds {str(value)[:60]!r}, which is neither an integer nor a time in ISO 8601; "
        "choose another `cursor`"
    )


def from_point(point: int | str, like: Any) -> Any:
    """As the driver gives such values; `like` is one of them."""
    if isinstance(point, int) or isinstance(like, str):
        return point
    return datetime.fromisoformat(point) if isinstance(like, datetime) else date.fromisoformat(point)


def to_time(value: Any, time_column: str) -> str:
    """A row's time as text; raises `Refused`."""
    if text := _iso(value):
        return text
    raise Refused(
        f"the time_column {time_column!r} holds {str(value)[:60]!r}, which is no time in ISO 8601; "
        "choose another `time_column`, or drop it"
    )


def _iso(value: Any) -> str | None:
    if isinstance(value, datetime):
        aware = value.tzinfo is not None
        return (value.astimezone(UTC) if aware else value).isoformat(" ", "microseconds")
    if isinstance(value, date):
        return value.isoformat()
    try:
        datetime.fromisoformat(value)
    except (TypeError, ValueError):
        return None
    return str(value)
