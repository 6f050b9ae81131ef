"""Where `headrace try` takes rows from, and which of them judge."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from headrace.connection import Problem
from headrace.declared import Use
from headrace.harness_data import Dataset
from headrace.trial_data import Rows, Wanted, find, named, read

CSV = "id,when,load,code\n" + "".join(f"{n},2026-01-{n:02d},{n / 2},0{n}\n" for n in range(1, 21))


@pytest.fixture
def csv(tmp_path: Path) -> Path:
    (tmp_path / "readings.csv").write_text(CSV)
    return tmp_path / "readings.csv"


@pytest.fixture
def database(tmp_path: Path) -> Path:
    with closing(sqlite3.connect(tmp_path / "heat.db")) as connection, connection:
        connection.execute("CREATE TABLE readings (at TEXT, load REAL, number INTEGER PRIMARY KEY)")
        connection.executemany(
            "INSERT INTO readings VALUES (?, ?, ?)", [(f"2026-01-{n:02d}", n / 2, n * 10) for n in range(1, 21)]
        )
        connection.execute("CREATE TABLE other (x)")
    return tmp_path / "heat.db"


def rows_of(found: Rows, part: str) -> list[Any]:
    """What the author's code reads."""
    rows = getattr(Dataset("readings", found.described), part)
    with closing(rows.connect()) as connection:
        return connection.execute(rows.sql, rows.params).fetchall()


def test_a_csv_file_is_a_table_whose_columns_are_what_is_in_them(csv: Path, tmp_path: Path) -> None:
    found = read("readings", str(csv), Use(), Wanted(), tmp_path)
    assert rows_of(found, "train")[0] == (1, "2026-01-01", 0.5, "01")
    assert [row[0] for row in rows_of(found, "holdout")] == [19, 20]
    assert found.held_out == 2
    assert found.sentence == "readings: 20 rows of readings.csv, the newest 2 held out"


def test_an_empty_field_is_null_and_a_field_too_many_is_told(csv: Path, tmp_path: Path) -> None:
    csv.write_text("load\n1\n\n2.5\n")  # an empty line is no row of one empty field to csv
    with pytest.raises(Problem, match="row 2 has 0 fields, and the header 1"):
        read("readings", str(csv), Use(), Wanted(), tmp_path)
    csv.write_text("load,kind\n1,\n2.5,a\n")
    assert rows_of(read("readings", str(csv), Use(), Wanted(), tmp_path), "train") == [(1.0, None), (2.5, "a")]


@pytest.mark.parametrize(
    "where", ["{}", "{}:readings", "{}:readings:number", "sqlite:///{}:readings", "{}:readings:at"]
)
def test_a_table_of_a_database_is_cut_by_its_growing_column(database: Path, tmp_path: Path, where: str) -> None:
    found = read("readings", where.format(database), Use(), Wanted(holdout_percent=25), tmp_path)
    assert [row[2] for row in rows_of(found, "train")] == [n * 10 for n in range(1, 16)]
    assert [row[2] for row in rows_of(found, "holdout")] == [n * 10 for n in range(16, 21)]
    assert found.described["train"]["cursor"] == ("at" if where.endswith("at") else "number")


def test_a_sample_is_the_newest_rows_and_a_cut_ends_where_it_is_told(database: Path, tmp_path: Path) -> None:
    found = read("readings", str(database), Use(), Wanted(sample=10, upto="150"), tmp_path)
    assert [row[2] for row in rows_of(found, "train")] == [n * 10 for n in range(6, 15)]
    assert [row[2] for row in rows_of(found, "holdout")] == [150]
    assert (found.described["train"]["rows"], found.described["holdout"]["rows"]) == (9, 1)


def test_a_model_that_learns_from_the_newest_rows_does_so_here_too(database: Path, tmp_path: Path) -> None:
    found = read("readings", str(database), Use(rows=3), Wanted(), tmp_path)
    assert [row[2] for row in rows_of(found, "train")] == [160, 170, 180]
    assert "learns from the newest 3" in found.sentence


def test_too_few_rows_hold_none_out(database: Path, tmp_path: Path) -> None:
    found = read("readings", str(database), Use(), Wanted(sample=5), tmp_path)
    assert (len(rows_of(found, "train")), found.held_out) == (5, 0)


def test_data_that_is_only_reported_is_its_range(tmp_path: Path) -> None:
    found = read("clicks", "1000..2000", Use(), Wanted(), tmp_path)
    rows = Dataset("clicks", found.described).train
    assert (rows.above, rows.upto, rows.count, found.held_out) == (1000, 2000, None, None)


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("none.csv", "there is no file"),
        ("{}:nothing", "no such table: nothing"),
        ("{}:readings:nothing", "no such column"),
        ("{}:other", "has no rows"),
        ("{}/../empty.csv", "must name the columns"),
        ("{}/../text.db", "file is not a database"),
    ],
)
def test_what_can_not_be_read_is_told(database: Path, tmp_path: Path, where: str, said: str) -> None:
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "text.db").write_text("no database at all" * 100)
    with pytest.raises(Problem, match=said) as told:
        read("readings", where.format(database).replace("heat.db/../", ""), Use(), Wanted(), tmp_path)
    assert "headrace" not in told.value.message


def test_a_file_with_several_tables_asks_which(database: Path, tmp_path: Path) -> None:
    with pytest.raises(Problem, match="has the tables readings, other"):
        read("loads", str(database), Use(), Wanted(), tmp_path)


def test_a_dataset_without_rows_takes_the_repositorys_own_sample_or_asks(csv: Path, tmp_path: Path) -> None:
    (tmp_path / "sample").mkdir()
    csv.rename(tmp_path / "sample" / "readings.csv")
    assert find("readings", None, tmp_path) == str(tmp_path / "sample" / "readings.csv")
    assert find("readings", "other.csv", tmp_path) == "other.csv"
    with pytest.raises(Problem, match="where are rows of the dataset 'clicks'"):
        find("clicks", None, tmp_path)


def test_rows_for_a_dataset_that_is_not_declared_are_a_mistake() -> None:
    assert named(["a=x.csv", "b=f.db:t"], {"a": Use(), "b": Use()}) == {"a": "x.csv", "b": "f.db:t"}
    for told, said in (("c=x.csv", "declares no dataset 'c'"), ("a", "is no NAME=VALUE"), ("a=", "is no NAME=VALUE")):
        with pytest.raises(Problem, match=said):
            named([told], {"a": Use()})
