"""The wait for a commit that both databases' watchers share."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


def wait(
    poll: Callable[[], bool], rest: Callable[[float], object], timeout_s: float, stop: threading.Event | None
) -> bool:
    """Ask `poll` until it says so; False when the time is over or `stop` is set. `rest` returns after the seconds it is given, or sooner."""
    deadline = time.monotonic() + timeout_s
    while not poll():
        left = deadline - time.monotonic()
        if left <= 0 or (stop is not None and stop.is_set()):
            return False
        rest(left)
    return True
