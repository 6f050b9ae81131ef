"""Transactions on the ledger: short, never nested, with one time each, on SQLite and PostgreSQL alike; and a change that can be waited for."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from functools import wraps
from typing import Any, ParamSpec, Protocol, TypeVar

from sqlalchemy import ColumnElement, Connection, Engine, Text, cast, func, make_url, select
from sqlalchemy.dialects.postgresql import array
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from shared import points
from shared.clock import Clock, SystemClock
from shared.errors import ConfigurationError, Unavailable, Undone
from shared.ledger.postgres import Postgres
from shared.ledger.sqlite import Sqlite

TRIES = 5
AGAIN_S = 0.05  # and twice as long each time, with jitter
P = ParamSpec("P")
T = TypeVar("T")


class Changes(Protocol):
    """Tells of commits by others and by us; a wait holds no transaction. One for each thread that waits."""

    def poll(self) -> bool:
        """Whether anything was committed since the last call."""
        ...

    def wait(self, timeout_s: float, stop: threading.Event | None = None) -> bool:
        """Wait for a commit; False after `timeout_s` or as soon as `stop` is set."""
        ...

    def close(self) -> None: ...


class Database(Protocol):
    """What differs between the databases that a ledger can stand on.

    `turn` keeps transactions apart where they must be; `begin` opens one on a connection and answers with the database's time where that is the
    one to go by; `committing` is called last in a write. `blame` says what an error means: `Unavailable`, `Undone` where the same transaction
    may be tried again at once, None for a mistake of ours.
    """

    engine: Engine

    def turn(self, *, writes: bool) -> AbstractContextManager[None]: ...
    def begin(self, connection: Connection, *, writes: bool) -> datetime | None: ...
    def committing(self, connection: Connection) -> None: ...
    def blame(self, error: DBAPIError) -> type[Unavailable] | None: ...
    def watch(self) -> Changes: ...
    def close(self) -> None: ...


@dataclass(frozen=True)
class Transaction:
    """An open transaction and the one time that all it writes bears."""

    connection: Connection
    now: datetime
    held: set[str] = field(default_factory=set)
    did: list[str] = field(default_factory=list)
    kept: dict[Any, Any] = field(
        default_factory=dict
    )  # what was read, and cannot change before the end of the transaction
    took: list[str] = field(default_factory=list)
    _inside: list[str] = field(default_factory=list)

    @contextmanager
    def doing(self, name: str) -> Iterator[None]:
        """Note the name of a step in `took`, and in `did` unless it is part of another."""
        if name not in self.took:
            self.took.append(name)
        if not self._inside and name not in self.did:
            self.did.append(name)
        self._inside.append(name)
        try:
            yield
        finally:
            self._inside.pop()

    def execute(self, statement: Any, values: Any = None) -> Any:
        """With `values` for its parameters, or a list of such: a statement made once costs half of one that is made anew each time."""
        return self.connection.execute(statement, values)

    def lock(self, *names: str, shared: bool = False) -> None:
        """Hold these names until the end of the transaction; who asks for one of them meanwhile waits and then sees what was written.

        Whatever decides by what it has read takes the names of what it decides about first, in the order configuration, dataset, model. On
        SQLite nothing is to be done: one writer is alone there. Held by the transaction and not by the session, so a pooler between does no harm.
        """
        wanted = sorted(set(names) - self.held)
        self.held.update(wanted)
        if not wanted or self.connection.dialect.name != "postgresql":
            return
        key = func.hashtextextended(func.unnest(array(wanted)), 0).label("key")
        keys = select(key).order_by("key").subquery()
        taken = func.pg_advisory_xact_lock_shared if shared else func.pg_advisory_xact_lock
        self.connection.execute(select(func.count(taken(keys.c.key))))

    def holds(self, name: str) -> bool:
        """Whether what is read about it stays so until the end of the transaction."""
        return name in self.held or self.connection.dialect.name != "postgresql"

    def holding(self, model: ColumnElement[str]) -> list[ColumnElement[Any]]:
        """Columns that, where a SELECT has them, hold what `hold_models` holds for the model in this column: a round trip saved."""
        self.held.add("configuration")
        if self.connection.dialect.name != "postgresql":
            return []
        shared = func.pg_advisory_xact_lock_shared(func.hashtextextended("configuration", 0))
        alone = func.pg_advisory_xact_lock(func.hashtextextended(func.concat("model ", model), 0))
        return [cast(shared, Text).label("shared"), cast(alone, Text).label("alone")]

    def hold_models(self, *models: str) -> None:
        """Be the only one that decides about these models, with a configuration that stays as it is."""
        self.lock("configuration", shared=True)
        self.lock(*(f"model {name}" for name in models))


class Ledger:
    """The ledger behind a SQLAlchemy URL. `sqlite://` (in memory) is the test twin: one connection, the same statements.

    Without a `clock` it goes by the database's time on PostgreSQL, where workers are on many machines, and by this machine's on SQLite.
    """

    def __init__(self, url: str, clock: Clock | None = None) -> None:
        self.url = url
        self.clock = clock or SystemClock()
        self._trusts_database = clock is None
        self._database = _open(url)
        self._process = os.getpid()
        self._nested = threading.local()

    def go_by(self, clock: Clock) -> None:
        """Take the time from this clock from now on."""
        self.clock, self._trusts_database = clock, False

    @property
    def engine(self) -> Engine:
        return self._database.engine

    @contextmanager
    def write(self, *, tells: bool = True) -> Iterator[Transaction]:
        """A transaction that may write. Raises `Unavailable` when the database stays locked or away. Not to be nested.

        Whoever watches is woken, unless it has nothing to tell: on PostgreSQL commits that notify wait for each other. The block runs once; what the database undid or lost before the commit is `Undone`, and `repeats` does it again.
        """
        with self._alone(), self._begun(writes=True) as tx:
            yield tx
            if tells:
                self._database.committing(tx.connection)
            points.committing(tx.took, "before")
            _commit(tx.connection)
            points.committing(tx.took, "after")

    @contextmanager
    def read(self) -> Iterator[Transaction]:
        """A consistent look that writes nothing; keep it short: a long reader stops SQLite's checkpoints and PostgreSQL's vacuum."""
        with self._begun(writes=False) as tx:
            yield tx

    def watch(self) -> Changes:
        """Something to wait on for the next commit of any process. One for each thread that waits."""
        return self._database.watch()

    def close(self) -> None:
        self._database.close()

    @contextmanager
    def _alone(self) -> Iterator[None]:
        if getattr(self._nested, "open", False):
            raise RuntimeError("a write transaction is open in this thread already")
        self._nested.open = True
        try:
            yield
        finally:
            self._nested.open = False

    @contextmanager
    def _begun(self, *, writes: bool) -> Iterator[Transaction]:
        if os.getpid() != self._process:
            raise RuntimeError("this ledger was opened by another process; a connection does not survive a fork")
        with self._database.turn(writes=writes), self._translated():
            connection, told = self._begin(writes)
            try:
                now = told if told is not None and self._trusts_database else self.clock.now()
                yield Transaction(connection, now)
            finally:
                connection.close()

    def _begin(self, writes: bool) -> tuple[Connection, datetime | None]:
        """A connection of the pool may have died in it: the first statement finds out, and the next try gets a fresh one."""
        for last in (False, True):
            connection = self.engine.connect()
            try:
                return connection, self._database.begin(connection, writes=writes)
            except BaseException as error:
                connection.close()
                if last or not (isinstance(error, DBAPIError) and error.connection_invalidated):
                    raise
        raise AssertionError

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except PoolTimeout as error:
            raise Unavailable("all connections to the ledger are in use; nothing was written, try again") from error
        except DBAPIError as error:
            if (kind := self._database.blame(error)) is None:
                raise
            said = str(error.orig).strip().partition("\n")[0]
            raise kind(f"the ledger did not answer ({said}); nothing was written, try again") from error


def repeats(work: Callable[P, T]) -> Callable[P, T]:
    """Do it again, a few times and soon, when the database undid its one transaction (a deadlock) or lost it before the commit.

    What `work` does outside the ledger it must be able to do twice.
    """

    @wraps(work)
    def repeated(*args: P.args, **kwargs: P.kwargs) -> T:
        for tried in range(1, TRIES):
            try:
                return work(*args, **kwargs)
            except Undone:
                time.sleep(AGAIN_S * 2**tried * random.uniform(0.5, 1))
        return work(*args, **kwargs)

    return repeated


def _commit(connection: Connection) -> None:
    try:
        connection.commit()
    except DBAPIError as error:
        if not error.connection_invalidated:
            raise
        raise Unavailable(
            f"the connection broke while the ledger committed ({error.orig}); whether it was written is not known: look before you repeat"
        ) from error


def _open(url: str) -> Database:
    try:
        backend = make_url(url).get_backend_name()
    except (ArgumentError, ValueError) as error:  # whose text quotes the URL, password and all
        raise ConfigurationError(
            "ledger_url cannot be read; write it as in postgresql://user:password@host/headrace"
        ) from error
    if backend == "sqlite":
        return Sqlite(url)
    if backend in ("postgresql", "postgres"):
        return Postgres(url)
    raise ConfigurationError(f"the ledger stands on SQLite or PostgreSQL, not on {backend}")
