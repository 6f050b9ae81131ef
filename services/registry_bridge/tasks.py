"""The message that the bridge hears: a run has been trained. The sweep finds it without the message too."""

from __future__ import annotations

from celery import Celery

from services.registry_bridge.sweep import Sweep
from shared.messages import REGISTER


def register(app: Celery, sweep: Sweep) -> None:
    """Bind the message to the process that `app.py` has built."""

    @app.task(name=REGISTER)  # type: ignore[untyped-decorator]
    def register(run: int) -> None:
        sweep.advance(run)
