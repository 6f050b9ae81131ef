"""Which maximum of a cursor no open transaction can put a row below any more (pure, but for the clock that it is given).

A number is drawn, and a time taken, before the row's commit: a lower one may become visible later. A *mark* is a maximum with the transactions
that were open *after* it was read. Whatever lies below it was drawn earlier, so it is there already or belongs to one of those: when the last
of them has ended, the mark is settled, and rows up to it may be counted by whoever begins to read now.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol, Self

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.02, 1.0
_MOST = 100
_RENAMED = "-1/"  # a prepared transaction is called so after a restart of the server


class Open(Protocol):
    """Transactions that are open at a moment. `left` says which of them still are at a later one; None when all have ended."""

    def left(self, now: Self) -> Self | None: ...


@dataclass(frozen=True)
class Writers:
    """By PostgreSQL's virtual ids, each of which names one transaction for its whole life."""

    ids: frozenset[str]

    def left(self, now: Writers) -> Writers | None:
        still = self.ids & now.ids
        if any(not gone.startswith(_RENAMED) for gone in self.ids - now.ids):
            still |= {id for id in now.ids if id.startswith(_RENAMED)}  # what is gone may go on under such a name
        return Writers(still) if still else None


@dataclass(frozen=True)
class Snapshot:
    """On a standby, where the primary's transactions have numbers only: all below `xmin` have ended, none from `xmax` on has begun."""

    xmin: int
    xmax: int

    def left(self, now: Snapshot) -> Snapshot | None:
        return self if now.xmin < self.xmax else None


@dataclass(frozen=True)
class Mark:
    newest: Any
    open: Any
    since_s: float


class Marks:
    """The marks that wait, oldest first. A newer one waits for all that an older one waits for, so they settle in order.

    Two that wait for the same are one, the newer: there are never more than transactions that write at once, and a table on which somebody
    always writes settles as fast as each of its transactions ends.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._waiting: deque[Mark] = deque()
        self._settled: Any = None
        self._pause_s = 0.0

    def settled(self, newest: Any, now: Any) -> Any:
        """Take note of the maximum and of what is open (`now`, read after it); the newest settled one, None before the first."""
        last = self._waiting[-1].newest if self._waiting else self._settled
        if last is not None and newest < last:  # rows were removed, or another server answers: what was known is void
            self._waiting.clear()
            self._settled = last = None
        self._settle(now)
        if last is None or newest > last:
            self._add(Mark(newest, now, self._clock()))
        self._pause_s = min(max(2 * self._pause_s, FIRST_PAUSE_S), LONGEST_PAUSE_S) if self._waiting else 0.0
        return self._settled

    def oldest(self) -> Mark | None:
        """What has waited longest."""
        return self._waiting[0] if self._waiting else None

    def settles_in_s(self) -> float | None:
        """A pause after which it is worth asking again, longer each time; None while nothing waits."""
        return self._pause_s if self._waiting else None

    def _settle(self, now: Any) -> None:
        waiting, self._waiting = self._waiting, deque()
        for mark in waiting:
            same = type(mark.open) is type(now)  # else a standby has become a primary
            left = mark.open.left(now) if same else now.left(now)
            if left is None:
                self._settled = mark.newest
                self._waiting.clear()  # older ones are below it
            else:
                self._keep(mark if left == mark.open else replace(mark, open=left))

    def _add(self, mark: Mark) -> None:
        if mark.open.left(mark.open) is None:
            self._settled = mark.newest
        else:
            self._keep(mark)

    def _keep(self, mark: Mark) -> None:
        last = self._waiting[-1] if self._waiting else None
        if last is not None and (last.open == mark.open or len(self._waiting) == _MOST):
            self._waiting.pop()
            mark = replace(mark, since_s=last.since_s)
        self._waiting.append(mark)
