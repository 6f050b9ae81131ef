"""Hears PostgreSQL's NOTIFY, which the trigger of deploy/postgresql/notify.sql sends when rows have been committed."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import psycopg
import structlog

CHANNEL = "headrace"
GATHER_S = 0.02  # what comes within this is heard as one
_TICK_S = 0.5
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 10.0

log = structlog.get_logger()


class Listener:
    """A connection of its own on a thread of its own; `told` is called there at each notification for `name`.

    It is called once after each connection too: what was committed meanwhile was told to nobody. A lost connection is made again with a growing
    pause. Nothing depends on it: behind a transaction pooler it hears nothing, and the source is looked at every `poll`.
    """

    def __init__(self, connect: Callable[[], psycopg.Connection[Any]], name: str, told: Callable[[], None]) -> None:
        self._connect, self._name, self._told = connect, name, told
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"listen {name}", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ask it to end, which it does within half a second; returns at once."""
        self._stop.set()

    def _run(self) -> None:
        pause_s = _FIRST_PAUSE_S
        while not self._stop.is_set():
            try:
                with self._connect() as connection:
                    connection.execute(f"LISTEN {CHANNEL}")
                    pause_s = _FIRST_PAUSE_S
                    log.info("listen.connected", table=self._name)
                    self._told()
                    self._hear(connection)
            except psycopg.Error as error:
                log.warning("listen.lost", table=self._name, why=type(error).__name__, advice="polls go on meanwhile")
            self._stop.wait(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    def _hear(self, connection: psycopg.Connection[Any]) -> None:
        while not self._stop.is_set():
            heard = [one for one in connection.notifies(timeout=_TICK_S, stop_after=1) if one.payload == self._name]
            if heard:
                self._told()
                self._stop.wait(GATHER_S)
