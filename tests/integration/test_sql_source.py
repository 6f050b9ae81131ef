"""The sql source over real SQLite files: what it sees, what it says, and what it never does."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from pathlib import Path

import pytest
from sqlalchemy import event

from services.ingest_watcher.sources.sql import SqlSource
from shared.catalog import Holdout
from shared.cuts import Cut
from shared.errors import ConfigurationError, Conflict, NotFound, Refused, Unavailable

TENTH = Holdout(newest=Decimal("0.1"), max_rows=1000, min_rows=1)


@dataclass
class Hands:
    at: float = 0.0

    def __call__(self) -> float:
        return self.at


class Table:
    """A table `flights` in a file, as an upstream ingestion would fill it."""

    def __init__(self, path: Path, columns: str = "id INTEGER PRIMARY KEY, at TEXT, delay INTEGER") -> None:
        self.path = path
        self.run(f"CREATE TABLE flights ({columns})")

    def run(self, *statements: str) -> None:
        with closing(sqlite3.connect(self.path)) as connection, connection:
            for statement in statements:
                connection.execute(statement)

    def insert(self, ids: Iterable[int]) -> None:
        rows = [(id, f"2013-01-01 {id // 3600 % 24:02}:{id // 60 % 60:02}:{id % 60:02}", id % 7) for id in ids]
        with closing(sqlite3.connect(self.path)) as connection, connection:
            connection.executemany("INSERT INTO flights (id, at, delay) VALUES (?, ?, ?)", rows)

    def source(self, cursor: str = "id", table: str = "flights", **more: object) -> SqlSource:
        return SqlSource(f"sqlite:///{self.path}", table, cursor, **({"holdout": TENTH} | more))  # type: ignore[arg-type]


@pytest.fixture
def table(tmp_path: Path) -> Table:
    return Table(tmp_path / "flights.db")


def follow(source: SqlSource, cut: Cut | None = None) -> Iterator[int]:
    """Look as long as there is something new; the rows of each look."""
    while look := source.look(cut):
        cut = look.after
        yield look.rows


def test_the_first_look_counts_all_rows_and_the_next_only_what_came(table: Table) -> None:
    source = table.source()
    assert source.look(None) is None
    table.insert(range(1, 101))
    first = source.look(None)
    assert first is not None
    assert (first.rows, first.after) == (100, Cut(upto=100, rows=100, holdout_above=90, holdout_rows=10))
    assert source.look(first.after) is None
    table.insert([105, 110, 200])
    second = source.look(first.after)
    assert second is not None
    assert (second.rows, second.after) == (3, Cut(upto=200, rows=103, holdout_above=93, holdout_rows=10))


def test_a_look_twice_from_the_same_cut_sees_the_same(table: Table) -> None:
    table.insert(range(1, 11))
    source = table.source()
    assert source.look(None) == source.look(None)


def test_the_holdout_is_bounded_by_max_rows(table: Table) -> None:
    table.insert(range(1, 101))
    look = table.source(holdout=Holdout(newest=Decimal("0.5"), max_rows=7, min_rows=1)).look(None)
    assert look is not None
    assert (look.after.holdout_above, look.after.holdout_rows) == (93, 7)


def test_too_few_rows_for_a_holdout_leave_an_empty_one_above_all_rows(table: Table) -> None:
    table.insert([1, 2, 3])
    look = table.source().look(None)
    assert look is not None
    assert (look.after.holdout_above, look.after.holdout_rows) == (3, 0)


def test_rows_with_one_cursor_are_never_parted_and_the_holdout_is_counted_exactly(tmp_path: Path) -> None:
    table = Table(tmp_path / "batches.db", "id INTEGER, at TEXT, delay INTEGER")
    table.run("CREATE INDEX by_at ON flights (at)")
    for batch in range(1, 25):
        with closing(sqlite3.connect(table.path)) as connection, connection:
            connection.executemany("INSERT INTO flights (at) VALUES (?)", [(f"2013-01-{batch:02}",)] * 10)
    look = table.source("at").look(None)
    assert look is not None
    assert look.after == Cut(upto="2013-01-24", rows=240, holdout_above="2013-01-22", holdout_rows=20)
    with closing(sqlite3.connect(table.path)) as connection:
        held = connection.execute("SELECT count(*) FROM flights WHERE at > ?", (look.after.holdout_above,)).fetchone()
    assert held == (20,)


def test_text_times_stay_as_the_database_compares_them(table: Table) -> None:
    table.insert(range(1, 21))
    source = table.source("at")
    look = source.look(None)
    assert look is not None
    assert look.after.upto == "2013-01-01 00:00:20"
    table.insert([3601])
    again = source.look(look.after)
    assert again is not None
    assert (again.rows, again.after.upto) == (1, "2013-01-01 01:00:01")


def test_rows_without_a_cursor_do_not_exist(table: Table) -> None:
    table.run("INSERT INTO flights (id, at) VALUES (1, NULL)")
    source = table.source("at")
    assert source.look(None) is None
    table.insert([2])
    look = source.look(None)
    assert look is not None
    assert (look.rows, look.after.rows) == (1, 1)


def test_the_newest_time_is_the_greatest_seen_so_far(table: Table) -> None:
    source = table.source(time_column="at")
    table.insert([3600, 3601])
    first = source.look(None)
    assert first is not None
    assert first.after.newest_time == "2013-01-01 01:00:01"
    table.run("INSERT INTO flights (id, at) VALUES (4000, '2012-12-31 00:00:00'), (4001, NULL)")
    second = source.look(first.after)
    assert second is not None
    assert second.after.newest_time == "2013-01-01 01:00:01"
    table.run("INSERT INTO flights (id, at) VALUES (4002, '2013-01-02 00:00:00')")
    third = source.look(second.after)
    assert third is not None
    assert third.after.newest_time == "2013-01-02 00:00:00"


def test_a_row_that_commits_late_below_the_maximum_is_counted_within_the_lag(table: Table) -> None:
    clock = Hands()
    source = table.source(lag=timedelta(seconds=5), clock=clock)
    table.insert([1, 3])
    assert source.look(None) is None
    assert source.settles_in_s() == 5.0
    clock.at = 4.0
    table.insert([2])
    clock.at = 5.0
    look = source.look(None)
    assert look is not None
    assert (look.rows, look.after.upto) == (3, 3)


def test_a_restart_within_the_lag_loses_no_row(table: Table) -> None:
    clock = Hands()
    table.insert([1, 3])
    assert table.source(lag=timedelta(seconds=5), clock=clock).look(None) is None
    clock.at = 4.9
    restarted = table.source(lag=timedelta(seconds=5), clock=clock)
    assert restarted.look(None) is None
    table.insert([2])
    clock.at = 9.9
    look = restarted.look(None)
    assert look is not None
    assert look.rows == 3


def test_growth_is_seen_once_however_it_is_cut_into_commits(table: Table) -> None:
    source, cut, seen = table.source(), None, 0
    for start in range(1, 400, 13):
        table.insert(range(start, start + 13))
        look = source.look(cut)
        assert look is not None
        cut, seen = look.after, seen + look.rows
    assert cut is not None
    assert seen == cut.rows == cut.upto


@pytest.mark.parametrize("cursor", ["id", "at"])
def test_no_look_ever_scans_the_table(table: Table, cursor: str) -> None:
    table.run("CREATE INDEX by_at ON flights (at)")
    table.insert(range(1, 2001))
    source = table.source(cursor)
    plans: list[tuple[str, str]] = []

    def explain(connection, _cursor, statement, parameters, _context, _many):  # type: ignore[no-untyped-def]
        if statement.startswith("SELECT"):
            rows = connection.connection.driver_connection.execute(f"EXPLAIN QUERY PLAN {statement}", parameters)
            plans.extend((statement, row[3]) for row in rows)

    event.listen(source._engine, "before_cursor_execute", explain)
    first = source.look(None)
    assert first is not None
    table.insert([2100])
    assert source.look(first.after) is not None
    assert len(plans) == 8
    for statement, plan in plans:
        assert plan.startswith("SEARCH flights"), (statement, plan)
        assert (" > ?" in statement) == (">? AND" in plan), (statement, plan)  # no row below the last cut is touched
        assert cursor == "id" or "USING COVERING INDEX by_at" in plan, (statement, plan)


def test_names_are_quoted(tmp_path: Path) -> None:
    table = Table(tmp_path / "odd.db")
    table.run('CREATE TABLE "select; drop" ("Order by" INTEGER PRIMARY KEY)', 'INSERT INTO "select; drop" VALUES (5)')
    look = table.source("Order by", "select; drop").look(None)
    assert look is not None
    assert look.after.upto == 5


def test_a_file_that_is_not_there_is_said_and_not_made(tmp_path: Path) -> None:
    path = tmp_path / "later.db"
    source = SqlSource(f"sqlite:///{path}", "flights", "id")
    with pytest.raises(NotFound, match=r"there is no file .*later\.db; it is read as soon as it is there"):
        source.look(None)
    assert not source.stirred()
    assert list(tmp_path.iterdir()) == []
    Table(path).insert([1])
    assert source.stirred()
    assert list(follow(source)) == [1]


def test_a_missing_table_is_said_with_those_that_there_are(table: Table) -> None:
    source = table.source(table="trains")
    with pytest.raises(NotFound, match=r"no table 'trains' .*create it, or correct `table` \(tables: flights\)"):
        source.look(None)


def test_a_missing_column_is_said_with_those_that_there_are(table: Table) -> None:
    table.insert([1])
    with pytest.raises(NotFound, match="'flights' has no column 'ident'; it has id, at, delay"):
        table.source("ident").look(None)
    with pytest.raises(NotFound, match="no column 'when'"):
        table.source(time_column="when").look(None)


def test_a_cursor_that_is_no_number_and_no_time_is_refused(table: Table) -> None:
    table.run("INSERT INTO flights VALUES (1, 'soon', 3)")
    with pytest.raises(Refused, match="'at' holds 'soon'"):
        table.source("at").look(None)


def test_what_is_no_database_is_said(tmp_path: Path) -> None:
    path = tmp_path / "text.db"
    path.write_text("not a database at all, but long enough to look like something" * 20)
    source = SqlSource(f"sqlite:///{path}", "flights", "id")
    assert source.stirred()
    with pytest.raises(Unavailable, match=r"did not answer \(file is not a database\)"):
        source.look(None)


def test_a_server_that_is_away_is_said_without_its_password() -> None:
    with pytest.raises(ConfigurationError, match="no driver for oracle"):
        SqlSource("oracle+nothing://scott:tiger@127.0.0.1/x", "flights", "id")
    with pytest.raises(ConfigurationError, match="URL cannot be read") as caught:
        SqlSource("scott:tiger@127.0.0.1", "flights", "id")
    assert "tiger" not in caught.value.message


def test_a_table_that_was_emptied_or_began_anew_is_said(table: Table) -> None:
    table.insert(range(1, 11))
    source = table.source()
    look = source.look(None)
    assert look is not None
    table.run("DELETE FROM flights")
    with pytest.raises(Conflict, match="has no rows, but rows up to 10 were seen before"):
        source.look(look.after)
    table.insert([4])
    with pytest.raises(Conflict, match="ends at 4, but rows up to 10 were seen before"):
        source.look(look.after)
    table.insert([11])
    assert list(follow(source, look.after)) == [1]


def test_deleted_rows_do_not_hide_the_holdout(table: Table) -> None:
    table.insert(range(1, 1001))
    source = table.source()
    look = source.look(None)
    assert look is not None
    table.run("DELETE FROM flights WHERE id <= 950")
    table.insert([1001])
    again = source.look(look.after)
    assert again is not None
    assert again.after.holdout_above == 996
    assert again.after.holdout_rows == 5


def test_the_source_is_never_written_to(table: Table) -> None:
    table.insert(range(1, 11))
    before = table.path.read_bytes()
    source = table.source()
    source.stirred()
    source.look(None)
    with pytest.raises(Exception, match="readonly"), source._engine.connect() as connection:
        connection.exec_driver_sql("DELETE FROM flights")
    source.close()
    assert table.path.read_bytes() == before


def test_a_database_in_wal_mode_is_read_and_tells(table: Table) -> None:
    table.run("PRAGMA journal_mode=WAL")
    source = table.source()
    assert source.stirred()
    assert not source.stirred()
    table.insert([1])
    assert source.stirred()
    assert not source.stirred()
    assert list(follow(source)) == [1]


def test_a_commit_while_another_is_looked_at_is_told_next(table: Table) -> None:
    source = table.source()
    assert source.stirred()
    table.insert([1])
    assert list(follow(source)) == [1]
    assert source.stirred()


def test_a_file_put_in_the_place_of_the_old_one_is_noticed_and_read(table: Table, tmp_path: Path) -> None:
    table.insert([1])
    source = table.source()
    assert source.stirred()
    assert list(follow(source)) == [1]
    new = Table(tmp_path / "new.db")
    new.insert([1, 2])
    new.path.replace(table.path)
    assert source.stirred()
    assert list(follow(source, Cut(upto=1, rows=1))) == [1]


def test_a_writer_that_locks_the_file_hides_no_commit(table: Table) -> None:
    source = table.source()
    assert source.stirred()
    with closing(sqlite3.connect(table.path, isolation_level=None)) as writer:
        writer.execute("BEGIN EXCLUSIVE")
        writer.execute("INSERT INTO flights (id) VALUES (1)")
        assert not source.stirred()
        writer.execute("COMMIT")
    assert source.stirred()
