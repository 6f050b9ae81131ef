"""The ledger on PostgreSQL: time and limits asked for with each transaction, so that nothing hangs on a session; commits told by NOTIFY."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import psycopg
import structlog
from sqlalchemy import Connection, Engine, create_engine, text
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError, OperationalError

from shared.databases import driver_url
from shared.errors import Unavailable, Undone
from shared.ledger import waiting

STATEMENT_S, LOCK_S, IDLE_S = 15, 10, 10
CONNECT: dict[str, Any] = {
    "connect_timeout": 5,
    "keepalives_idle": 10,  # a half-open connection is noticed in 25 s
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 20_000,  # ms
    "application_name": "headrace",
    "prepare_threshold": None,  # a prepared statement belongs to a session, and a pooler gives each transaction another one
}
CHANNEL = "headrace_ledger"
CHECK_S, LOOK_S, LONGEST_PAUSE_S = 0.2, 0.25, 5.0
STOP_S = 0.1  # a `stop` is noticed so late at most
_UNDONE = {"40001", "40P01"}  # serialization failure, deadlock
_UNAVAILABLE = {
    "08",  # connection
    "53",  # out of disk, memory, connections
    "57",  # shut down, or a statement past its limit
    "58",  # the disk itself
}
_LIMITS = {
    "55P03",
    "25P03",
    "25006",
}  # waited too long for a lock; was idle in a transaction; a standby that cannot write
log = structlog.get_logger()


class Postgres:
    """`shared.ledger.session.Database` on PostgreSQL, directly or behind a pooler that hands out a session for each transaction."""

    def __init__(self, url: str) -> None:
        self._url = driver_url(url)
        self.engine: Engine = create_engine(
            self._url,
            connect_args=CONNECT,
            isolation_level="READ COMMITTED",
            pool_size=8,
            max_overflow=24,
            hide_parameters=True,
        )
        limits = {
            "statement_timeout": STATEMENT_S,
            "lock_timeout": LOCK_S,
            "idle_in_transaction_session_timeout": IDLE_S,
        }
        settings = ", ".join(f"set_config('{name}', '{seconds}s', true)" for name, seconds in limits.items())
        self._start = text(f"SELECT clock_timestamp(), {settings}")
        self._bell: Bell | None = None
        self._lock = threading.Lock()

    @contextmanager
    def turn(self, *, writes: bool) -> Iterator[None]:
        """Transactions run side by side; `Transaction.lock` keeps apart those that decide about the same."""
        yield

    def begin(self, connection: Connection, *, writes: bool) -> datetime | None:
        """A reader sees one moment (REPEATABLE READ); a writer sees what was committed before each of its statements, and so after a lock."""
        if not writes:
            connection.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
        now: datetime = connection.execute(self._start).one()[0]
        return now

    def committing(self, connection: Connection) -> None:
        """Tell, within the transaction, whoever watches; not of one that changed nothing."""
        connection.execute(_TELL)

    def blame(self, error: DBAPIError) -> type[Unavailable] | None:
        state = getattr(error.orig, "sqlstate", None) or ""
        if state in _UNDONE or error.connection_invalidated:
            return Undone
        known = state in _LIMITS or state[:2] in _UNAVAILABLE
        return Unavailable if known or (not state and isinstance(error, OperationalError)) else None

    def watch(self) -> ToldChanges:
        with self._lock:
            if self._bell is None:
                self._bell = Bell(self._url)
            return ToldChanges(self._bell)

    def close(self) -> None:
        if self._bell is not None:
            self._bell.close()
        self.engine.dispose()


_TELL = text(f"SELECT pg_notify('{CHANNEL}', '') WHERE pg_current_xact_id_if_assigned() IS NOT NULL")


class ToldChanges:
    """Wakes within a millisecond of a commit."""

    def __init__(self, bell: Bell) -> None:
        self._bell = bell
        self._seen = bell.rung

    def poll(self) -> bool:
        before, self._seen = self._seen, self._bell.rung
        return before != self._seen

    def wait(self, timeout_s: float, stop: threading.Event | None = None) -> bool:
        return waiting.wait(self.poll, lambda left_s: self._bell.wait(self._seen, min(left_s, STOP_S)), timeout_s, stop)

    def close(self) -> None:
        """The bell is the ledger's."""


class Bell:
    """Counts the commits of all processes, on a connection and a thread of its own; after a lost connection it counts one more.

    Behind a pooler nobody can LISTEN; there it looks every 0.25 s whether anything was written.
    """

    def __init__(self, url: URL) -> None:
        self._dsn = url.set(drivername="postgresql").render_as_string(hide_password=False)
        self.rung = 0
        self._news = threading.Condition()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ledger bell", daemon=True)
        self._thread.start()

    def wait(self, seen: int, timeout_s: float) -> None:
        """Return when more than `seen` were counted, or when the time is over."""
        with self._news:
            self._news.wait_for(lambda: self.rung != seen, timeout_s)

    def close(self) -> None:
        self._stop.set()
        self._thread.join(LOOK_S * 2)

    def _ring(self) -> None:
        with self._news:
            self.rung += 1
            self._news.notify_all()

    def _run(self) -> None:
        pause_s = LOOK_S
        while not self._stop.is_set():
            try:
                with psycopg.connect(self._dsn, autocommit=True, **CONNECT) as connection:
                    pause_s = LOOK_S
                    self._listen(connection)
            except psycopg.Error as error:
                log.warning("ledger.bell_lost", why=str(error).partition("\n")[0], again_in_s=pause_s)
                self._stop.wait(pause_s)
                pause_s = min(pause_s * 2, LONGEST_PAUSE_S)

    def _listen(self, connection: psycopg.Connection[Any]) -> None:
        if not self._is_session(connection):
            log.info("ledger.no_listen", advice="give processes a way around the pooler to save a quarter of a second")
            return self._look(connection)
        connection.execute(f"LISTEN {CHANNEL}")
        self._ring()  # what was committed while nobody listened
        while not self._stop.is_set():
            for _ in connection.notifies(timeout=CHECK_S, stop_after=1):
                self._ring()

    def _is_session(self, connection: psycopg.Connection[Any]) -> bool:
        """Whether the server itself is at the other end: a pooler gives out a process number of its own."""
        row = connection.execute("SELECT pg_backend_pid()").fetchone()
        return row is not None and row[0] == connection.info.backend_pid

    def _look(self, connection: psycopg.Connection[Any]) -> None:
        """The snapshot's text changes with each transaction that writes."""
        seen = None
        while not self._stop.wait(LOOK_S):
            row = connection.execute("SELECT pg_current_snapshot()::text").fetchone()
            if row != seen:
                seen = row
                self._ring()
