"""What an attempt tells of itself while it trains: progress, and metrics by step, of which a bounded number is shown."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

MOST_SERIES, MOST_POINTS = 20, 100
_LARGEST_STEP = 2**53


@dataclass(frozen=True)
class Told:
    """`progress` from 0 to 1; `metrics` by name: [step, value], the newest last."""

    progress: float | None = None
    note: str | None = None
    metrics: dict[str, list[list[float]]] = field(default_factory=dict)


class Series:
    """A metric's values: of more than a hundred every second one is left out, again and again; the newest is always there."""

    def __init__(self) -> None:
        self._points: list[list[float]] = []
        self._newest: list[float] = []
        self.seen, self._every = 0, 1

    def add(self, step: int, value: float) -> None:
        self._newest = [step, value]
        if self.seen % self._every == 0:
            self._points.append(self._newest)
        self.seen += 1
        if len(self._points) > MOST_POINTS:
            self._points, self._every = self._points[::2], self._every * 2

    def shown(self) -> list[list[float]]:
        return [*self._points] if self._points[-1] is self._newest else [*self._points, self._newest]


class Metrics:
    """All series of an attempt; those that come after the twentieth are in the bundle only."""

    def __init__(self) -> None:
        self._series: dict[str, Series] = {}

    def add(self, key: object, step: object, value: object) -> None:
        """What the author's process wrote, and so checked; without a step, the next one. Raises `ValueError`."""
        if not isinstance(key, str) or not 0 < len(key) <= 250 or not key.isprintable():
            raise ValueError("a metric has a name")
        if type(value) not in (int, float) or not math.isfinite(float(value)):  # type: ignore[arg-type]
            raise ValueError("a metric is a finite number")
        if step is None:
            step = self._series[key].seen if key in self._series else 0
        if type(step) is not int or abs(step) > _LARGEST_STEP:
            raise ValueError("a step is a whole number")
        if key in self._series or len(self._series) < MOST_SERIES:
            self._series.setdefault(key, Series()).add(step, float(value))  # type: ignore[arg-type]

    def shown(self) -> dict[str, list[list[float]]]:
        return {key: series.shown() for key, series in self._series.items()}
