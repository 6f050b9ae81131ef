"""What time it is, as a port: a test holds the hands."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    def now(self) -> datetime:
        """The time, aware, in UTC; steps of the wall clock may make it go back."""
        ...


class SystemClock:
    def now(self) -> datetime:
        return datetime.now(UTC)
