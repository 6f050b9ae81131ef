"""How an attempt's process comes to be: the tests of some modules run both ways, for an attempt is to behave the same."""

from __future__ import annotations

EXECUTED, FORKED = "executed", "forked of a warm parent"
_way = EXECUTED


def choose(way: str) -> None:
    global _way
    _way = way


def forked() -> bool:
    return _way == FORKED
