"""Every change of the ledger is one named function, and a commit bears the names of those that were called in it."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, cast

from shared import points
from shared.ledger.session import Transaction

Step = TypeVar("Step", bound=Callable[..., Any])

TRANSITIONS: dict[str, Callable[..., Any]] = {}
"""By the name that commits and documents know it by: `attempts.claim`."""


def name_of(step: Callable[..., Any]) -> str:
    return f"{step.__module__.rpartition('.')[2]}.{step.__name__}"


def transition(step: Step) -> Step:
    """Name a function `(tx, …)` that changes rows. What it calls in turn belongs to it and leaves no name of its own in `tx.did`."""
    name = name_of(step)

    @wraps(step)
    def named(tx: Transaction, *args: Any, **kwargs: Any) -> Any:
        with tx.doing(name):
            return step(tx, *args, **kwargs)

    TRANSITIONS[name] = named
    points.commits(name, step.__module__)
    return cast(Step, named)
