"""The ledger on SQLite: writers take turns, none upgrades half-way, and `data_version` tells of a commit. In memory it is the test twin."""

from __future__ import annotations

import fcntl
import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import IO, Any

from sqlalchemy import Connection, Engine, StaticPool, create_engine, event, make_url
from sqlalchemy.exc import DBAPIError, OperationalError

from shared.errors import Unavailable
from shared.ledger import place, waiting

BUSY_TIMEOUT_S = 15.0
CHANGE_TICK_S = 0.01


class Sqlite:
    """`shared.ledger.session.Database` over one file, or over one connection to memory."""

    def __init__(self, url: str) -> None:
        self.path = self.path_of(url)
        if self.path is not None:
            place.check(self.path)
        self.in_memory = self.path is None
        self.commits = 0
        self._turn: Any = threading.RLock() if self.in_memory else threading.Lock()
        self.engine = self._make_engine(url)

    @staticmethod
    def path_of(url: str) -> Path | None:
        """The file behind a URL; None for memory and for other databases."""
        parsed = make_url(url)
        if parsed.get_backend_name() != "sqlite" or not parsed.database or parsed.database == ":memory:":
            return None
        return Path(parsed.database)

    def _make_engine(self, url: str) -> Engine:
        if self.in_memory:
            engine = create_engine(url, poolclass=StaticPool, connect_args={"check_same_thread": False})
        else:
            engine = create_engine(url, pool_size=8, max_overflow=24)
        event.listen(engine, "connect", _configure)
        event.listen(engine, "begin", _begin)
        return engine

    @contextmanager
    def turn(self, *, writes: bool) -> Iterator[None]:
        """One writer at a time: SQLite's own busy handler is unfair (seconds of wait, measured), taking turns by a file lock is not.

        In memory there is one connection for all, so that a reader would look into a writer's half.
        """
        if not writes and not self.in_memory:
            yield
            return
        deadline = time.monotonic() + BUSY_TIMEOUT_S
        if not self._turn.acquire(timeout=BUSY_TIMEOUT_S):
            raise Unavailable("the ledger is busy: other writers hold it; nothing was written, try again")
        try:
            with _file_turn(self.path, deadline):
                yield
        finally:
            self._turn.release()

    def begin(self, connection: Connection, *, writes: bool) -> datetime | None:
        connection.execution_options(reads_only=not writes).begin()
        return None

    def committing(self, connection: Connection) -> None:
        """A file tells by itself, and only of commits that changed something."""
        self.commits += self.in_memory

    def blame(self, error: DBAPIError) -> type[Unavailable] | None:
        return Unavailable if isinstance(error, OperationalError) else None

    def watch(self) -> FileChanges:
        return FileChanges(self)

    def close(self) -> None:
        self.engine.dispose()


class FileChanges:
    """Reads `PRAGMA data_version` (4 µs) every 10 ms."""

    def __init__(self, database: Sqlite) -> None:
        self._database = database
        self._file = None
        if database.path is not None:
            uri = f"{database.path.absolute().as_uri()}?mode=ro"
            self._file = sqlite3.connect(uri, uri=True, check_same_thread=False, isolation_level=None)
        self._seen = self._version()

    def _version(self) -> tuple[int, int]:
        version = self._file.execute("PRAGMA data_version").fetchone()[0] if self._file else 0
        return version, self._database.commits

    def poll(self) -> bool:
        before, self._seen = self._seen, self._version()
        return before != self._seen

    def wait(self, timeout_s: float, stop: threading.Event | None = None) -> bool:
        return waiting.wait(self.poll, lambda left_s: time.sleep(min(CHANGE_TICK_S, left_s)), timeout_s, stop)

    def close(self) -> None:
        if self._file:
            self._file.close()


@contextmanager
def _file_turn(path: Path | None, deadline: float) -> Iterator[None]:
    """The turn to write among the processes that share a file; raises `Unavailable` when a holder does not give it back in time."""
    if path is None:
        yield
        return
    with open(f"{path}.turn", "ab") as turn:
        if not _has_turn(turn, max(0.0, deadline - time.monotonic())):
            raise Unavailable("the ledger is busy: another process holds it; nothing was written, try again")
        yield


def _has_turn(turn: IO[bytes], patience_s: float) -> bool:
    """Whether the lock was had in time. The kernel hands it out in order, which asking again and again does not (measured with eight
    writers: worst wait 1.4 s); only a thread can give up waiting for it. One that is left behind gets it and drops it, the file being closed."""
    try:
        fcntl.flock(turn, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        waits = threading.Thread(target=_wait_for_turn, args=(os.dup(turn.fileno()),), daemon=True)
        waits.start()
        waits.join(patience_s)
        return not waits.is_alive()
    return True


def _wait_for_turn(own: int) -> None:
    """Its own descriptor of the same open file: the lock is had by both, and who has given up may have closed the other, whose number
    then means another file."""
    try:
        fcntl.flock(own, fcntl.LOCK_EX)
    finally:
        os.close(own)


def _configure(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # the driver begins nothing by itself: `_begin` does
    for pragma in (
        "journal_mode=WAL",
        "synchronous=FULL",
        "foreign_keys=ON",
        f"busy_timeout={int(BUSY_TIMEOUT_S * 1000)}",
    ):
        connection.execute(f"PRAGMA {pragma}")


def _begin(connection: Connection) -> None:
    """IMMEDIATE: a deferred transaction that turns into a writer fails at once with SQLITE_BUSY_SNAPSHOT, whatever the busy timeout."""
    connection.exec_driver_sql("BEGIN" if connection.get_execution_options().get("reads_only") else "BEGIN IMMEDIATE")
