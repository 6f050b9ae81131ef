"""The sql source: a table whose growth is noticed by an indexed column, its cursor, that is higher in every new row.

A look reads the highest cursor, counts what lies between that and the last one, and finds where the holdout begins: through the index, never
the table (only `time_column` is read from the new rows themselves). The first look counts all rows once. Rows without a cursor do not exist.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from sqlalchemy import BigInteger, Connection, DateTime, Numeric, column, func, inspect, literal, select, table
from sqlalchemy.exc import DataError, SQLAlchemyError
from sqlalchemy.sql import quoted_name

from services.ingest_watcher.sources.commits import Commits
from services.ingest_watcher.sources.engines import listening, make_engine, read_url, sqlite_file
from services.ingest_watcher.sources.horizon import Horizon
from services.ingest_watcher.sources.points import from_point, to_point, to_time
from services.ingest_watcher.sources.postgres import Postgres
from services.ingest_watcher.watch import Look
from shared.catalog import Holdout
from shared.cuts import Cut
from shared.errors import Conflict, HeadraceError, NotFound, Refused, Unavailable

_NOT_ORDERED, _NOT_GRANTED = "42883", "42501"  # PostgreSQL: there is no max() of such a type; the role may not do this


class SqlSource:
    """A table, looked at over one connection at a time; `lag` is explained at `Horizon`, and what more PostgreSQL knows at `Postgres`.

    `told` is called, from another thread, when the database itself tells of new rows; `stirred` is true from then on until it is asked.
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
        told: Callable[[], None] = lambda: None,
    ) -> None:
        address = read_url(url)
        self._file = sqlite_file(address)
        self._engine = make_engine(address)
        self._commits = Commits(self._file) if self._file else None
        # Columns are always written with their table's name: SQLite takes an unknown "name" alone for a text.
        self._cursor: Any = column(quoted_name(cursor, True))
        self._time: Any = column(quoted_name(time_column, True)) if time_column else None
        columns = [self._cursor] if self._time is None or time_column == cursor else [self._cursor, self._time]
        self._table = table(quoted_name(table_name, True), *columns)
        self._time = self._table.c[time_column] if time_column else None
        self._holdout = holdout or Holdout()
        self._horizon = Horizon(lag.total_seconds(), clock)
        self._postgres: Postgres | None = None
        if self._engine.dialect.driver == "psycopg":
            connect = partial(listening, self._engine)
            self._postgres = Postgres(table_name, cursor, lag.total_seconds(), clock, connect, told)

    @property
    def tells(self) -> bool:
        """Whether `stirred` knows of every commit, so that no poll needs to be waited for."""
        return self._commits is not None

    def stirred(self) -> bool:
        knows = self._commits or self._postgres
        return knows is not None and knows.stirred()

    def settles_in_s(self) -> float | None:
        pauses = [self._horizon.settles_in_s(), self._postgres.settles_in_s() if self._postgres else None]
        return min((pause for pause in pauses if pause is not None), default=None)

    def close(self) -> None:
        self._engine.dispose()
        for held in (self._commits, self._postgres):
            if held is not None:
                held.close()

    def look(self, before: Cut | None) -> Look | None:
        """How far the table goes now; None while there is nothing (settled) above `before`. Writes nothing.

        Raises `Unavailable` when the database does not answer or a transaction holds rows back for long, `NotFound` for a table or column that
        is not there, `Refused` for a cursor that is neither integer nor time, `Conflict` when the table ends below `before`.
        """
        with self._explained(), self._engine.connect() as connection:
            with connection.begin():
                newest = connection.scalar(select(func.max(self._cursor)))
                above = self._above(before, newest)
                upto = self._settled(connection, newest)
                if upto is None or (above is not None and upto <= above):
                    if self._postgres is not None:
                        self._postgres.check_held(connection, above)
                    return None
            # Begun anew: only so it sees what was committed while the maximum was found settled.
            with connection.begin():
                return self._measure(connection, before, above, upto)

    def _settled(self, connection: Connection, newest: Any) -> Any:
        by_database = self._postgres.settled(connection, newest) if self._postgres is not None else newest
        by_age = self._horizon.settled(newest) if newest is not None else None
        return None if by_database is None or by_age is None else min(by_database, by_age)

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
        cause = getattr(error, "orig", None) or error
        if getattr(cause, "sqlstate", None) == _NOT_GRANTED:
            return Refused(
                f"the database says: {str(cause).splitlines()[0][:300]}; grant its role SELECT on {self._table.name!r}"
            )
        if getattr(cause, "sqlstate", None) == _NOT_ORDERED:
            return Refused(
                f"{self._where} is neither an integer nor a time, and the database knows no highest of its type; choose another `cursor`"
            )
        said = str(cause).strip().splitlines()
        if isinstance(error, DataError):
            return Refused(
                f"{self._where} holds what cannot be read ({said[0][:300]}); correct that row, or choose another `cursor`"
            )
        return Unavailable(
            f"the database did not answer ({said[0][:300] if said else type(error).__name__}); it is asked again"
        )


def _bound(value: Any) -> Any:
    if isinstance(value, int):
        return literal(value, BigInteger() if abs(value) < 2**63 else Numeric())
    if isinstance(value, datetime):
        return literal(value, DateTime(timezone=value.tzinfo is not None))
    return literal(value)
