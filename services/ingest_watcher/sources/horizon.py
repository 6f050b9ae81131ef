"""Which maximum of a cursor has been there long enough (pure, but for the clock that it is given)."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

_GRAIN = 100  # maxima are told apart to a hundredth of the lag, so that a busy table fills no memory


class Horizon:
    """Gives a row time to get company below it: a number drawn earlier, or the start of a longer transaction, commits later.

    A maximum that is first seen at `t` is settled at `t + lag_s`. Then every row below it has had `lag_s` to be committed, so `lag_s` must be
    at least as long as the longest transaction that writes to the table. Nothing is kept: after a restart the lag begins anew.
    """

    def __init__(self, lag_s: float, clock: Callable[[], float]) -> None:
        self._lag_s = lag_s
        self._clock = clock
        self._seen: deque[tuple[float, Any]] = deque()
        self._settled: Any = None

    def settled(self, newest: Any) -> Any:
        """Take note of the maximum that is there now; the newest settled one, None before the first."""
        if not self._lag_s:
            return newest
        now = self._clock()
        last = self._seen[-1][1] if self._seen else self._settled
        if last is None or newest > last:
            if len(self._seen) > 1 and self._seen[-1][0] - self._seen[-2][0] < self._lag_s / _GRAIN:
                self._seen.pop()
            self._seen.append((now, newest))
        while self._seen and self._seen[0][0] + self._lag_s <= now:
            self._settled = self._seen.popleft()[1]
        return self._settled

    def settles_in_s(self) -> float | None:
        """Seconds until the next maximum is settled; None while there is none to wait for."""
        return max(0.0, self._seen[0][0] + self._lag_s - self._clock()) if self._seen else None
