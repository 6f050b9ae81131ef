"""How often one caller may ask: a bucket of requests that fills steadily, in this process alone."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

BURST_S = 10.0
"""A bucket holds what flows in during this time."""


class Rates:
    """A bucket for each name; `per_s` = 0 lets everybody ask as often as they like. Names come from the ledger, so there are few."""

    def __init__(self, per_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_s = per_s
        self._clock = clock
        self._buckets: dict[str, tuple[float, float]] = {}  # requests left, at what time
        self._lock = threading.Lock()

    def take(self, name: str) -> float:
        """Seconds to wait; 0.0: the request may go on, and is counted."""
        if self._per_s <= 0:
            return 0.0
        now, full = self._clock(), max(1.0, self._per_s * BURST_S)
        with self._lock:
            left, at = self._buckets.get(name, (full, now))
            left = min(full, left + (now - at) * self._per_s)
            self._buckets[name] = (left - 1.0 if left >= 1.0 else left, now)
        return 0.0 if left >= 1.0 else (1.0 - left) / self._per_s
