"""The table that rows arrive in: always as many before an arrival as before the last."""

from __future__ import annotations

import itertools
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

from stack.demo.flights import Flights, Row

BEFORE, ARRIVING, HOLDOUT = 26_000, 1_000, 2_700


class Table:
    """A SQLite table of flights with `BEFORE` rows between two arrivals, `BEFORE + ARRIVING` after one."""

    def __init__(self, path: Path, columns: Sequence[str]) -> None:
        self.path = path
        names = ", ".join(f'"{name}"' for name in columns)
        self._insert = f"INSERT INTO flights ({names}) VALUES ({', '.join('?' * len(columns))})"

    def make_room(self) -> None:
        """Take the oldest rows away that the last arrival was too many: every training sees the same number."""
        with closing(sqlite3.connect(self.path)) as connection, connection:
            connection.execute(
                "DELETE FROM flights WHERE id <= (SELECT id FROM flights ORDER BY id DESC LIMIT 1 OFFSET ?)", (BEFORE,)
            )

    def arrive(self, rows: Sequence[Row]) -> float:
        """Insert as one load of an ingestion; the wall time just before the commit."""
        with closing(sqlite3.connect(self.path)) as connection:
            connection.executemany(self._insert, rows)
            began = time.time()
            connection.commit()
        return began


def make_tables(paths: Sequence[Path]) -> tuple[list[Table], Iterator[Sequence[Row]]]:
    """A table at each path with its first rows, and the batches that are still to arrive."""
    flights = Flights(paths[0])
    rows = itertools.chain.from_iterable(flights.months.values())
    flights.insert(list(itertools.islice(rows, BEFORE)))
    for path in paths[1:]:
        with closing(sqlite3.connect(paths[0])) as first, closing(sqlite3.connect(path)) as copy:
            first.backup(copy)
            copy.execute("PRAGMA journal_mode=WAL")
    return [Table(path, flights.columns) for path in paths], _batches(rows)


def _batches(rows: Iterator[Row]) -> Iterator[Sequence[Row]]:
    while batch := list(itertools.islice(rows, ARRIVING)):
        yield batch
