"""Transactions on the ledger: one write at a time on SQLite and fair, nothing deferred, and a change that can be waited for."""

from __future__ import annotations

import fcntl
import random
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, StaticPool, create_engine, event, inspect, make_url, text
from sqlalchemy.exc import OperationalError

from shared.clock import Clock, SystemClock
from shared.errors import ConfigurationError, Unavailable
from shared.ledger.tables import metadata

BUSY_TIMEOUT_S = 15.0
CHANGE_TICK_S = 0.01


@dataclass(frozen=True)
class Transaction:
    """An open transaction and the one time that all it writes bears."""

    connection: Connection
    now: datetime

    def execute(self, statement: Any) -> Any:
        return self.connection.execute(statement)


class Ledger:
    """The ledger behind a SQLAlchemy URL. `sqlite://` (in memory) is the test twin: one connection, the same statements."""

    def __init__(self, url: str, clock: Clock | None = None) -> None:
        self.url = url
        self.clock = clock or SystemClock()
        self._path = _sqlite_path(url)
        self._memory = make_url(url).get_backend_name() == "sqlite" and self._path is None
        self._lock = threading.RLock() if self._memory else threading.Lock()
        self._nested = threading.local()
        self._changes = 0
        self.engine = self._make_engine()

    def _make_engine(self) -> Engine:
        if self._memory:
            engine = create_engine(self.url, poolclass=StaticPool, connect_args={"check_same_thread": False})
        else:
            engine = create_engine(self.url, pool_size=8, max_overflow=24)
        if engine.dialect.name == "sqlite":
            event.listen(engine, "connect", _configure_sqlite)
            event.listen(engine, "begin", _begin_sqlite)
        return engine

    @contextmanager
    def write(self) -> Iterator[Transaction]:
        """A transaction that may write: `BEGIN IMMEDIATE` on SQLite, so that it never fails half-way on an upgrade.

        Raises `Unavailable` when the database stays locked or away: nothing was written. Not to be nested.
        """
        with self._alone(), self._translated(), self.engine.begin() as connection:
            yield Transaction(connection, self.clock.now())
        if self._memory:
            self._changes += 1  # a file tells by itself, and only of commits that changed something

    @contextmanager
    def read(self) -> Iterator[Transaction]:
        """A consistent look that writes nothing; keep it short: a long reader stops SQLite's checkpoints."""
        with (
            self._translated(),
            self._reading(),
            self.engine.connect().execution_options(reads_only=True) as connection,
        ):
            yield Transaction(connection, self.clock.now())

    @contextmanager
    def _reading(self) -> Iterator[None]:
        if not self._memory:
            yield
            return
        with self._lock:
            yield

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """One writer at a time: SQLite's own busy handler is unfair (seconds of wait, measured), taking turns by a file lock is not."""
        if getattr(self._nested, "open", False):
            raise RuntimeError("a write transaction is open in this thread already")
        self._nested.open = True
        try:
            if self.engine.dialect.name != "sqlite":
                yield
                return
            deadline = time.monotonic() + BUSY_TIMEOUT_S
            if not self._lock.acquire(timeout=BUSY_TIMEOUT_S):
                raise Unavailable("the ledger is busy: other writers hold it; nothing was written, try again")
            try:
                with _turn(self._path, deadline):
                    yield
            finally:
                self._lock.release()
        finally:
            self._nested.open = False

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except OperationalError as error:
            raise Unavailable(f"the ledger did not answer ({error.orig}); nothing was written, try again") from error

    def watch(self) -> Changes:
        """Something to wait on for the next commit of any process. One for each thread that waits."""
        return Changes(self)

    def close(self) -> None:
        self.engine.dispose()


class Changes:
    """Tells of commits by others and by us. On a SQLite file it reads `data_version` (4 µs) every 10 ms; a wait holds no transaction."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._file = None
        if ledger._path is not None:
            self._file = sqlite3.connect(
                f"{ledger._path.absolute().as_uri()}?mode=ro", uri=True, check_same_thread=False, isolation_level=None
            )
        self._seen = self._version()

    def _version(self) -> tuple[int, int]:
        version = self._file.execute("PRAGMA data_version").fetchone()[0] if self._file else 0
        return version, self._ledger._changes

    def poll(self) -> bool:
        """Whether anything was committed since the last call."""
        before, self._seen = self._seen, self._version()
        return before != self._seen

    def wait(self, timeout_s: float, stop: threading.Event | None = None) -> bool:
        """Wait for a commit; False after `timeout_s` or as soon as `stop` is set."""
        deadline = time.monotonic() + timeout_s
        while not self.poll():
            left = deadline - time.monotonic()
            if left <= 0 or (stop is not None and stop.is_set()):
                return False
            time.sleep(min(CHANGE_TICK_S, left))
        return True

    def close(self) -> None:
        if self._file:
            self._file.close()


def migrate(url: str) -> None:
    """Bring the ledger's tables to what this code knows; safe to call at every start, and by two processes in turn.

    Raises `Unavailable` when the database stays locked or away: nothing was changed.
    """
    if path := _sqlite_path(url):
        path.parent.mkdir(parents=True, exist_ok=True)
    ledger = Ledger(url)
    try:
        with ledger._alone(), ledger._translated(), ledger.engine.begin() as connection:
            config = _alembic()
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
    finally:
        ledger.close()


def check_schema(ledger: Ledger) -> None:
    """Raise `ConfigurationError` unless the tables are exactly those that this code knows."""
    known = ScriptDirectory.from_config(_alembic()).get_current_head()
    with ledger.read() as tx:
        found = None
        if inspect(tx.connection).has_table("alembic_version"):
            found = tx.connection.scalar(text("SELECT version_num FROM alembic_version"))
    if found != known:
        raise ConfigurationError(
            f"the ledger has schema {found or 'none'}, this program needs {known}: run `python -m stack migrate`"
        )


def create_all(ledger: Ledger) -> None:
    """The tables without alembic: for the in-memory twin."""
    metadata.create_all(ledger.engine)


@contextmanager
def _turn(path: Path | None, deadline: float) -> Iterator[None]:
    """The turn to write among the processes that share a file; raises `Unavailable` when a holder does not give it back in time."""
    if path is None:
        yield
        return
    with open(f"{path}.turn", "ab") as turn:
        while True:
            try:
                fcntl.flock(turn, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise Unavailable(
                        "the ledger is busy: another process holds it; nothing was written, try again"
                    ) from None
                time.sleep(
                    random.uniform(0.0005, 0.004)
                )  # jitter keeps it fair (measured: worst wait 0.2 s with six writers)
        yield


def _alembic() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    return config


def _sqlite_path(url: str) -> Path | None:
    parsed = make_url(url)
    if parsed.get_backend_name() != "sqlite" or not parsed.database or parsed.database == ":memory:":
        return None
    return Path(parsed.database)


def _configure_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # the driver begins nothing by itself: `_begin_sqlite` does
    for pragma in (
        "journal_mode=WAL",
        "synchronous=FULL",
        "foreign_keys=ON",
        f"busy_timeout={int(BUSY_TIMEOUT_S * 1000)}",
    ):
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: Connection) -> None:
    """IMMEDIATE: a deferred transaction that turns into a writer fails at once with SQLITE_BUSY_SNAPSHOT, whatever the busy timeout."""
    connection.exec_driver_sql("BEGIN" if connection.get_execution_options().get("reads_only") else "BEGIN IMMEDIATE")
