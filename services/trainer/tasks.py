"""The messages that a trainer hears. A message is a doorbell: with no free slot it is let go, since a free slot looks in the ledger."""

from __future__ import annotations

from collections.abc import Callable

from celery import Celery

from services.trainer.lookout import Due, Lookout, Slots
from shared.messages import EVALUATE, TRAIN


def register(app: Celery, slots: Slots, lookout: Lookout, do: Callable[[Due], None]) -> None:
    """Bind the two messages to the process that `app.py` has built."""

    def answer(due: Due) -> None:
        lookout.heard()
        if lookout.leaving.is_set() or not slots.take():
            return
        try:
            do(due)
        finally:
            slots.give_back()

    @app.task(name=TRAIN)  # type: ignore[untyped-decorator]
    def train(run: int) -> None:
        answer(run)

    @app.task(name=EVALUATE)  # type: ignore[untyped-decorator]
    def evaluate(run: int, holdout: str) -> None:
        answer((run, holdout))
