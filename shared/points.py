"""The places where a death of this process would tell: just before and just after each commit and each call to another system.

Each is declared where its code stands, so the code itself lists them (`POINTS`). Here nothing ever happens at one. A test kills its own process
there: its launcher gives `arm` a function before the service's main runs. Nothing outside the process can: no variable, setting or message leads here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Literal

COMMIT = "commit "
Side = Literal["before", "after"]
Strike = Callable[[tuple[str, ...], Side], None]

POINTS: dict[str, str] = {}
"""The module that declares it, by the point's name. Complete as soon as every module of a service is imported."""

_strike: Strike | None = None


class Point:
    """`with POINT:` around the call. After a call that raised nothing is reached: what became of it is not known."""

    __slots__ = ("_names",)

    def __init__(self, name: str) -> None:
        self._names = (name,)

    def __enter__(self) -> None:
        if _strike is not None:
            _strike(self._names, "before")

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        if _strike is not None and kind is None:
            _strike(self._names, "after")


def point(name: str, where: str) -> Point:
    """Declare one in the module `where`, when that is imported. Raises `ValueError` for a name that is taken."""
    if name in POINTS:
        raise ValueError(f"{name!r} is a point of {POINTS[name]} already; give that of {where} another name")
    POINTS[name] = where
    return Point(name)


def commits(step: str, where: str) -> None:
    """Declare the commit of a transaction in which this step of the ledger was taken."""
    point(COMMIT + step, where)


def committing(steps: Iterable[str], side: Side) -> None:
    """A transaction is about to be committed, or has been; `steps` were taken in it."""
    if _strike is not None:
        _strike(tuple(COMMIT + step for step in steps), side)


def arm(strike: Strike | None) -> None:
    """Call `strike` at every point from now on; for tests, which start the services through a program of their own."""
    global _strike
    _strike = strike
