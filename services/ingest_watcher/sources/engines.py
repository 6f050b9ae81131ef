"""How a source's database is opened: for reading only, with time limits, and without a word of its password in any message."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psycopg
from sqlalchemy import URL, Connection, Engine, NullPool, create_engine, event
from sqlalchemy.exc import ArgumentError, NoSuchModuleError

from services.ingest_watcher.sources.commits import open_read_only
from shared.databases import driver_url
from shared.errors import ConfigurationError

LOCKED_S = 2.0
CONNECT_S = 5
STATEMENT_S = 900  # the first look counts all rows
_TIMEOUT_NAMED_SO = {"psycopg2", "pymysql", "mysqldb"}
# A server or a network that is gone is noticed within half a minute. Without prepared statements: a pooler changes sessions between transactions.
_POSTGRES: dict[str, Any] = {
    "connect_timeout": CONNECT_S,
    "keepalives_idle": 15,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "application_name": "headrace watcher",
    "prepare_threshold": None,
}
# For this transaction only, for the same reason.
_LIMITS = f"""SELECT set_config('statement_timeout', '{STATEMENT_S}s', true), set_config('lock_timeout', '10s', true),
set_config('idle_in_transaction_session_timeout', '60s', true)"""


def read_url(url: str) -> URL:
    """Raises `ConfigurationError`, which never quotes the URL: it may hold a password."""
    try:
        parsed = driver_url(url)
    except (ArgumentError, ValueError) as error:
        raise ConfigurationError(
            "the database's URL cannot be read; write it as in postgresql://user@host/name"
        ) from error
    if "@" in (parsed.host or ""):
        raise ConfigurationError(
            "the database's URL has two @; one in a password is written %40 (and so are : / ? # by their codes)"
        )
    return parsed


def sqlite_file(url: URL) -> Path | None:
    if url.get_backend_name() != "sqlite":
        return None
    if not url.database or url.database == ":memory:":
        raise ConfigurationError(
            "a database in memory is seen by its own process only; name a file: sqlite:////srv/flights.db"
        )
    return Path(url.database)


def make_engine(url: URL) -> Engine:
    """Of one connection, which is asked whether it still works before each use. Opens nothing yet."""
    if file := sqlite_file(url):
        return _sqlite(file)
    try:
        if url.get_dialect().driver == "psycopg":
            return _postgres(url)
        limits: dict[str, Any] = {"connect_timeout": CONNECT_S} if url.get_dialect().driver in _TIMEOUT_NAMED_SO else {}
        return create_engine(url, connect_args=limits, **_ONE)
    except (NoSuchModuleError, ImportError) as error:
        raise ConfigurationError(
            f"there is no driver for {url.drivername} here ({error}); install it beside the watcher"
        ) from error


def listening(engine: Engine) -> psycopg.Connection[Any]:
    """One more connection to the same PostgreSQL, without transactions."""
    _, arguments = engine.dialect.create_connect_args(engine.url)
    return psycopg.connect(**{**arguments, **_settings(engine.url), "autocommit": True})


_ONE: dict[str, Any] = {"pool_size": 1, "max_overflow": 1, "pool_pre_ping": True, "hide_parameters": True}


def _settings(url: URL) -> dict[str, Any]:
    return {name: value for name, value in _POSTGRES.items() if name not in url.query}


def _postgres(url: URL) -> Engine:
    """What one transaction counts agrees: REPEATABLE READ."""
    engine = create_engine(
        url,
        connect_args=_settings(url),
        isolation_level="REPEATABLE READ",
        execution_options={"postgresql_readonly": True},
        **_ONE,
    )
    event.listen(engine, "begin", _limit)
    return engine


def _limit(connection: Connection) -> None:
    connection.exec_driver_sql(_LIMITS)


def _sqlite(file: Path) -> Engine:
    """A connection a look: it costs 0.2 ms, and a file that was put in the place of the old one is read at once."""
    engine = create_engine(
        "sqlite://", creator=lambda: open_read_only(file, LOCKED_S), poolclass=NullPool, hide_parameters=True
    )
    event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN"))
    return engine
