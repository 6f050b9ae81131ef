"""The rows of a job as the author asks for them; the database is a real SQLite file."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest
from headrace.harness_data import Dataset, Rows


@pytest.fixture
def database(tmp_path: Path) -> Path:
    path = tmp_path / "flights.db"
    connection = sqlite3.connect(path)
    with connection:
        connection.execute("CREATE TABLE flights (id INTEGER PRIMARY KEY, day TEXT)")
        connection.executemany("INSERT INTO flights VALUES (?, ?)", [(n, f"2013-01-{n:02}") for n in range(1, 21)])
    connection.close()
    return path


def rows(database: Path, **described: Any) -> Rows:
    given = {"table": "flights", "cursor": "id", "above": None, "upto": 20, **described}
    found: Rows = Dataset("flights", {"kind": "sql", "url": f"sqlite:///{database}", "train": given}).train
    return found


def ids(found: Rows, paramstyle: str = "named") -> list[int]:
    sql, params = found.query(paramstyle)
    connection = found.connect()
    try:
        return [row[0] for row in connection.execute(sql, params)]
    finally:
        connection.close()


@pytest.mark.parametrize("paramstyle", ["named", "qmark"])
@pytest.mark.parametrize(
    ("described", "expected"),
    [
        ({"upto": 18}, range(1, 19)),
        ({"above": 18}, range(19, 21)),
        ({"upto": 18, "newest": 3}, range(16, 19)),
        ({"above": 5, "upto": 9, "newest": 100}, range(6, 10)),
        ({"time_column": "day", "since": "2013-01-19"}, range(19, 21)),
    ],
)
def test_a_range_holds_its_rows_in_order(
    database: Path, described: dict[str, Any], expected: range, paramstyle: str
) -> None:
    assert ids(rows(database, **described), paramstyle) == list(expected)


def test_sql_and_params_alone_are_enough(database: Path) -> None:
    found = rows(database, above=2, upto=18, newest=3, time_column="day", since="2013-01-05")
    connection = found.connect()
    assert [row[0] for row in connection.execute(found.sql, found.params)] == [16, 17, 18]
    connection.close()


def test_the_connection_only_reads(database: Path) -> None:
    connection = rows(database).connect()
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        connection.execute("DELETE FROM flights")
    connection.close()


def test_an_address_that_is_not_passed_on_names_the_line_to_add() -> None:
    found = Dataset(
        "flights", {"kind": "sql", "url_variable": "NOT_GIVEN", "train": {"table": "t", "cursor": "id"}}
    ).train
    with pytest.raises(LookupError, match=r'pass_env = \["NOT_GIVEN"\]'):
        _ = found.url


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg"])
def test_the_address_of_a_postgresql_is_one_that_psycopg_and_sqlalchemy_take(scheme: str) -> None:
    described = {
        "kind": "sql",
        "url": f"{scheme}://me@host/db?sslmode=require",
        "train": {"table": "t", "cursor": "id"},
    }
    assert Dataset("flights", described).train.url == "postgresql://me@host/db?sslmode=require"
