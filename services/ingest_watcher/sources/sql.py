"""The sql source: a table whose growth is noticed by an indexed column, its cursor, that is higher in every new row.

A look reads the highest cursor, counts what lies between that and the last one, and finds where the holdout begins: through the index, never
the table (only `time_column` is read from the new rows themselves). The first look counts all rows once. Rows without a cursor do not exist.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import (
    BigInteger,
    Connection,
    DateTime,
    Engine,
    NullPool,
    column,
    create_engine,
    event,
    func,
    inspect,
    literal,
    make_url,
    select,
    table,
)
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError
from sqlalchemy.sql import quoted_name

from services.ingest_watcher.sources.commits import Commits, open_read_only
from services.ingest_watcher.sources.horizon import Horizon
from services.ingest_watcher.sources.points import from_point, to_point, to_time
from services.ingest_watcher.watch import Look
from shared.catalog import Holdout
from shared.cuts import Cut
from shared.errors import ConfigurationError, Conflict, HeadraceError, NotFound, Unavailable

LOCKED_S = 2.0
CONNECT_S = 5
_TIMEOUT_NAMED_SO = {"psycopg", "psycopg2", "pymysql", "mysqldb"}


class SqlSource:
    """A table, looked at over one connection at a time; `lag` is explained at `Horizon`.

    Rows with the same cursor are never parted, so a holdout of times may be somewhat smaller than its share. Raises `ConfigurationError` for
    a URL that cannot be used.
    """

    def __init__(
        self,
        url: str,
        table_name: str,
        cursor: str,
        lag: timedelta = timedelta(0),
        time_column: str | None = None,
        holdout: Holdout | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._file = _sqlite_file(url)
        self._engine = _make_engine(url, self._file)
        self._commits = Commits(self._file) if self._file else None
        # Columns are always written with their table's name: SQLite takes an unknown "name" alone for a text.
        self._cursor: Any = column(quoted_name(cursor, True))
        self._time: Any = column(quoted_name(time_column, True)) if time_column else None
        columns = [self._cursor] if self._time is None or time_column == cursor else [self._cursor, self._time]
        self._table = table(quoted_name(table_name, True), *columns)
        self._time = self._table.c[time_column] if time_column else None
        self._holdout = holdout or Holdout()
        self._horizon = Horizon(lag.total_seconds(), clock)

    @property
    def tells(self) -> bool:
        """Whether `stirred` knows of every commit, so that no poll needs to be waited for."""
        return self._commits is not None

    def stirred(self) -> bool:
        return self._commits is not None and self._commits.stirred()

    def settles_in_s(self) -> float | None:
        return self._horizon.settles_in_s()

    def close(self) -> None:
        self._engine.dispose()
        if self._commits:
            self._commits.close()

    def look(self, before: Cut | None) -> Look | None:
        """How far the table goes now; None while there is nothing (settled) above `before`. Writes nothing.

        Raises `Unavailable` when the database does not answer, `NotFound` for a table or column that is not there, `Refused` for a cursor that
        is neither integer nor time, `Conflict` when the table ends below `before`.
        """
        with self._explained(), self._engine.connect() as connection, connection.begin():
            newest = connection.scalar(select(func.max(self._cursor)))
            above = self._above(before, newest)
            upto = self._horizon.settled(newest) if newest is not None else None
            if upto is None or (above is not None and upto <= above):
                return None
            return self._measure(connection, before, above, upto)

    def _above(self, before: Cut | None, newest: Any) -> Any:
        """The last cut's point as the driver wants it; None before the first rows."""
        end = to_point(newest, self._cursor.name) if newest is not None else None
        if before is None or before.upto is None:
            return None
        if end is None or type(end) is not type(before.upto):
            raise Conflict(
                f"{self._where} has {'no rows' if end is None else repr(end)}, but rows up to {before.upto!r} were seen before: was it emptied, "
                "or replaced by another table? Put the rows back, or name the new table as a new dataset"
            )
        above = from_point(before.upto, newest)
        if newest < above:
            raise Conflict(
                f"{self._where} ends at {end!r}, but rows up to {before.upto!r} were seen before: rows were removed, or the table began anew. "
                "New rows are noticed above that point only; for a table that began anew name a new dataset"
            )
        return above

    def _measure(self, connection: Connection, before: Cut | None, above: Any, upto: Any) -> Look | None:
        rows, newest_time = self._count(connection, above, upto)
        if not rows:
            return None
        if before is not None and before.newest_time is not None:
            newest_time = max(before.newest_time, newest_time or "")
        if above is None:
            total = rows
        elif before is not None and before.rows is not None:
            total = before.rows + rows
        else:
            total = self._count(connection, None, upto)[0]
        boundary, held = self._divide(connection, total, upto)
        point = to_point(upto, self._cursor.name)
        after = Cut(point, total, to_point(boundary, self._cursor.name), held, newest_time)
        return Look(after, rows)

    def _count(self, connection: Connection, above: Any, upto: Any) -> tuple[int, str | None]:
        newest_time = [func.max(self._time)] if self._time is not None else []
        row = connection.execute(self._between(select(func.count(), *newest_time), above, upto)).one()
        return row[0], to_time(row[1], self._time.name) if newest_time and row[1] is not None else None

    def _divide(self, connection: Connection, total: int, upto: Any) -> tuple[Any, int]:
        """Where the holdout begins, and how many rows lie above that: the share of all, or fewer where many rows have one cursor."""
        boundary = self._nth_newest(connection, total, upto)
        if boundary is None:  # rows were deleted since they were counted
            boundary = self._nth_newest(connection, self._count(connection, None, upto)[0], upto)
        if boundary is None:
            raise Unavailable(f"rows of {self._where} disappear while they are counted; it is looked at again")
        return boundary, self._count(connection, boundary, upto)[0]

    def _nth_newest(self, connection: Connection, total: int, upto: Any) -> Any:
        wanted = min(int(self._holdout.newest * total), self._holdout.max_rows)
        newest_first = self._between(select(self._cursor), None, upto).order_by(self._cursor.desc())
        return connection.scalar(newest_first.offset(wanted).limit(1))

    def _between(self, query: Any, above: Any, upto: Any) -> Any:
        query = query.select_from(self._table).where(self._cursor <= _bound(upto))
        return query.where(self._cursor > _bound(above)) if above is not None else query

    @property
    def _where(self) -> str:
        return f"the column {self._cursor.name!r} of the table {self._table.name!r}"

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except SQLAlchemyError as error:
            raise self._explain(error) from error

    def _explain(self, error: SQLAlchemyError) -> HeadraceError:
        """What is wrong and what to do, found out by asking the database what it has."""
        if self._file and not self._file.exists():
            return NotFound(f"there is no file {self._file}; it is read as soon as it is there (or correct `url`)")
        try:
            with self._engine.connect() as connection:
                catalogue = inspect(connection)
                if not catalogue.has_table(self._table.name):
                    known = ", ".join(sorted(catalogue.get_table_names())[:10]) or "none"
                    return NotFound(
                        f"there is no table {self._table.name!r} in the database; create it, or correct `table` (tables: {known})"
                    )
                there = [found["name"] for found in catalogue.get_columns(self._table.name)]
        except SQLAlchemyError as second:
            error = second
        else:
            missing = [known.name for known in self._table.c if known.name not in there]
            if missing:
                return NotFound(
                    f"the table {self._table.name!r} has no column {missing[0]!r}; it has {', '.join(there[:30])}"
                )
        said = str(getattr(error, "orig", None) or error).strip().splitlines()
        return Unavailable(
            f"the database did not answer ({said[0][:300] if said else type(error).__name__}); it is asked again"
        )


def _sqlite_file(url: str) -> Path | None:
    try:
        parsed = make_url(url)
    except ArgumentError as error:  # whose text quotes the URL, password and all
        raise ConfigurationError(
            "the database's URL cannot be read; write it as in postgresql+psycopg://user@host/name"
        ) from error
    if parsed.get_backend_name() != "sqlite":
        return None
    if not parsed.database or parsed.database == ":memory:":
        raise ConfigurationError(
            "a database in memory is seen by its own process only; name a file: sqlite:////srv/flights.db"
        )
    return Path(parsed.database)


def _make_engine(url: str, file: Path | None) -> Engine:
    if file is not None:
        # A connection a look: it costs 0.2 ms, and a file that was put in the place of the old one is read at once.
        engine = create_engine(
            "sqlite://", creator=lambda: open_read_only(file, LOCKED_S), poolclass=NullPool, hide_parameters=True
        )
        event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN"))
        return engine
    parsed = make_url(url)
    try:
        driver = parsed.get_dialect().driver
        limits: dict[str, Any] = {"connect_timeout": CONNECT_S} if driver in _TIMEOUT_NAMED_SO else {}
        return create_engine(
            parsed, pool_size=1, max_overflow=1, pool_pre_ping=True, connect_args=limits, hide_parameters=True
        )
    except (NoSuchModuleError, ImportError) as error:
        raise ConfigurationError(
            f"there is no driver for {parsed.drivername} here ({error}); install it beside the watcher"
        ) from error


def _bound(value: Any) -> Any:
    if isinstance(value, int):
        return literal(value, BigInteger())
    if isinstance(value, datetime):
        return literal(value, DateTime(timezone=value.tzinfo is not None))
    return literal(value)
