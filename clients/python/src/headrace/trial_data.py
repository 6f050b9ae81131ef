"""Rows for a training without a platform: a table of a SQLite file, a CSV file, or a range that is only told."""

from __future__ import annotations

import csv
import re
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from headrace import job
from headrace.connection import Problem
from headrace.declared import Use

MAX_HOLDOUT_ROWS = 100_000
_WHOLE = re.compile(r"-?(0|[1-9][0-9]{0,17})")
_NUMBER = re.compile(r"-?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")
_SQLITE = re.compile(r"sqlite(\+\w+)?:///")
_RANGE = re.compile(r"(?P<above>[^/]*?)\.\.(?P<upto>[^/]+)")
_FORMS = "NAME=file.csv, NAME=file.db:TABLE, NAME=file.db:TABLE:CURSOR, or NAME=FROM..TO for data that is only reported"


@dataclass(frozen=True)
class Wanted:
    """Which rows: the newest `sample` of them, up to a value of the cursor, and the share that is held out to judge on."""

    sample: int | None = None
    upto: str | None = None
    holdout_percent: float = 10.0


@dataclass(frozen=True)
class Rows:
    """A dataset as the job file has it, how many rows of it judge (None: unknown), and a sentence about both."""

    described: dict[str, Any]
    held_out: int | None
    sentence: str


def find(name: str, told: str | None, repository: Path) -> str:
    """Where the rows of a dataset are: as told, else in the repository's own sample. Raises `Problem`."""
    own = repository / "sample" / f"{name}.csv"
    if told is not None:
        return told
    if own.is_file():
        return str(own)
    raise Problem(
        f"where are rows of the dataset {name!r}?",
        f"name them with --data ({_FORMS}), or put some into sample/{name}.csv",
    )


def read(name: str, where: str, use: Use, wanted: Wanted, scratch: Path) -> Rows:
    """The rows at `where`; a CSV file becomes a table in `scratch`. Raises `Problem`."""
    told = _RANGE.fullmatch(where)
    if told and not Path(where).exists():
        above, upto = (_point(told[part]) for part in ("above", "upto"))
        both = {"above": above, "upto": upto, "rows": None}
        described = job.reported("rest", train=both, holdout=both)
        return Rows(described, None, f"{name}: what is reported as {where}")
    file, table, cursor = _place(where)
    if not file.is_file():
        raise Problem(f"there is no file {file} for the dataset {name!r}", f"--data takes {_FORMS}")
    shown = file.name
    try:
        if file.suffix == ".csv":
            file, table, cursor = _import(file, scratch / f"{name}.db", name), name, table
        with closing(sqlite3.connect(f"file:{quote(str(file))}?mode=ro", uri=True)) as connection:
            table = table or _only_table(connection, name, shown)
            cursor = cursor or _cursor(connection, table)
            train, holdout = _cut(connection, table, cursor, wanted)
    except sqlite3.Error as error:
        raise Problem(f"{shown} cannot be read for the dataset {name!r}: {error}", f"--data takes {_FORMS}") from error
    described = job.sql(table, cursor, f"sqlite:///{file}", None, train={**train, "newest": use.rows}, holdout=holdout)
    learnt = f", of which it learns from the newest {use.rows:,}" if use.rows and use.rows < train["rows"] else ""
    sentence = (
        f"{name}: {train['rows'] + holdout['rows']:,} rows of {shown}, the newest {holdout['rows']:,} held out{learnt}"
    )
    if use.history is not None:
        sentence += "; history is not applied here: which column holds the time is known to the operator"
    return Rows(described, holdout["rows"], sentence)


def _place(where: str) -> tuple[Path, str | None, str | None]:
    path, _, rest = _SQLITE.sub("", where).partition(":")
    table, _, cursor = rest.partition(":")
    return Path(path).expanduser().resolve(), table or None, cursor or None


def _only_table(connection: sqlite3.Connection, name: str, file: str) -> str:
    found = [row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type IN ('table', 'view')")]
    found = [table for table in found if not table.startswith("sqlite_")]
    if name in found or len(found) == 1:
        return name if name in found else str(found[0])
    raise Problem(f"{file} has the tables {', '.join(found) or '(none)'}", f"name one: --data {name}={file}:TABLE")


def _cursor(connection: sqlite3.Connection, table: str) -> str:
    """The column that grows with each row: the whole-numbered key, or `id`, or else SQLite's own number of the row."""
    columns = connection.execute(f"PRAGMA table_info({_quoted(table)})").fetchall()
    keys = [name for _, name, kind, _, _, key in columns if key and kind.upper() == "INTEGER"]
    named = [name for _, name, *_ in columns if name.lower() == "id"]
    return str((keys[:1] or named or ["rowid"])[0])


def _cut(
    connection: sqlite3.Connection, table: str, cursor: str, wanted: Wanted
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The rows to learn from and those to judge on; rows with the same cursor are never parted."""
    place, column = _quoted(table), f"{_quoted(table)}.{_quoted(cursor)}"

    def one(what: str, rest: str, *values: Any) -> Any:
        row = connection.execute(f"SELECT {what} FROM {place} WHERE {column} {rest}", values).fetchone()
        return row[0] if row else None

    last = one(f"max({column})", "IS NOT NULL" if wanted.upto is None else "<= ?", *_points(wanted.upto))
    if last is None:
        raise Problem(f"the table {table} has no rows, judged by its column {cursor}", f"--data takes {_FORMS}")
    newest_first = f"<= ? ORDER BY {column} DESC LIMIT 1 OFFSET ?"
    first = None if wanted.sample is None else one(column, newest_first, last, wanted.sample)

    def count(above: Any, upto: Any) -> int:
        less = 0 if above is None else one("count(*)", "<= ?", above)
        return int(one("count(*)", "<= ?", upto) - less)

    total = count(first, last)
    boundary = one(column, newest_first, last, min(int(total * wanted.holdout_percent / 100), MAX_HOLDOUT_ROWS))
    ranges = [
        {"above": above, "upto": upto, "rows": count(above, upto), "newest": None, "since": None}
        for above, upto in ((first, boundary), (boundary, last))
    ]
    return ranges[0], ranges[1]


def _import(file: Path, into: Path, table: str) -> Path:
    """A CSV file as a table of a new database: whole numbers, numbers and text by what is in a column, empty as NULL."""
    into.unlink(missing_ok=True)
    with file.open(newline="", encoding="utf-8-sig") as stream:
        names = _header(stream, file)
        kinds = ["INTEGER"] * len(names)
        for number, row in enumerate(csv.reader(stream), start=1):
            if len(row) != len(names):
                raise Problem(f"{file.name}: row {number} has {len(row)} fields, and the header {len(names)}")
            kinds = [_kind(kind, text) for kind, text in zip(kinds, row)]  # noqa: B905 (3.9 has no strict)
        stream.seek(0)
        _header(stream, file)
        with closing(sqlite3.connect(into)) as connection, connection:
            columns = ", ".join(f"{_quoted(name)} {kind}" for name, kind in zip(names, kinds))  # noqa: B905
            connection.execute(f"CREATE TABLE {_quoted(table)} ({columns})")
            marks = ", ".join("?" * len(names))
            connection.executemany(f"INSERT INTO {_quoted(table)} VALUES ({marks})", _filled(csv.reader(stream)))
    return into


def _header(stream: Iterable[str], file: Path) -> Sequence[str]:
    names = next(iter(csv.reader(stream)), [])
    if not all(names) or not names:
        raise Problem(f"{file.name}: the first line must name the columns")
    return names


def _filled(rows: Iterable[Sequence[str]]) -> Iterator[list[str | None]]:
    return ([text or None for text in row] for row in rows)


def _kind(before: str, text: str) -> str:
    if not text or before == "TEXT" or (before == "INTEGER" and _WHOLE.fullmatch(text)):
        return before
    return "REAL" if _NUMBER.fullmatch(text) and not re.match(r"-?0\d", text) else "TEXT"


def _points(text: str | None) -> tuple[Any, ...]:
    return () if text is None else (_point(text),)


def _point(text: str) -> Any:
    return int(text) if _WHOLE.fullmatch(text) else text or None


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def named(told: Sequence[str], datasets: Mapping[str, Use]) -> dict[str, str]:
    """NAME=VALUE each, for datasets that the repository declares. Raises `Problem`."""
    found = {}
    for text in told:
        name, equals, value = text.partition("=")
        if not equals or not value:
            raise Problem(f"{text!r} is no NAME=VALUE", f"--data takes {_FORMS}")
        if name not in datasets:
            raise Problem(f"the repository declares no dataset {name!r}", f"there is {', '.join(datasets)}")
        found[name] = value
    return found
