"""The rows of a job's datasets, as the author sees them: a query for any driver, an address, a connection for SQLite. Loaded by the harness."""

from __future__ import annotations

import os
import re
import sqlite3
from typing import Any
from urllib.parse import quote

_STYLES = {"named": ":{}", "pyformat": "%({})s", "qmark": "?", "format": "%s"}
_POSTGRESQL = re.compile(r"^postgres(?:ql)?(?:\+\w+)?://")
_SQLITE = re.compile(r"sqlite(?:\+\w+)?:///(?P<path>[^?]+)")


class Rows:
    """Some rows of one table: those above one value of its cursor, up to another. They do not change while newer ones arrive."""

    def __init__(self, described: dict[str, Any], source: dict[str, Any]) -> None:
        self.table: str = described["table"]
        self.cursor: str = described["cursor"]
        self.above: Any = described.get("above")
        self.upto: Any = described.get("upto")
        self.count: int | None = described.get("rows")  # where the platform knows it
        self._newest: int | None = described.get("newest")
        self._time_column: str | None = described.get("time_column")
        self._since: str | None = described.get("since")
        self._source = source

    @property
    def sql(self) -> str:
        """A SELECT in the order of the cursor, with named parameters (`:upto`)."""
        return self.query()[0]

    @property
    def params(self) -> dict[str, Any]:
        return dict(self._conditions()[1])

    def query(self, paramstyle: str = "named") -> tuple[str, Any]:
        """The SELECT and its parameters in a style of PEP 249: named, pyformat (a dict), qmark, format (a tuple)."""
        if paramstyle not in _STYLES:
            raise ValueError(f"paramstyle {paramstyle!r} is not one of {', '.join(_STYLES)}")
        conditions, params = self._conditions()
        table, cursor = _quoted(self.table), f"{_quoted(self.table)}.{_quoted(self.cursor)}"
        where = f" WHERE {' AND '.join(conditions)}" if conditions else ""
        text = f"SELECT * FROM {table}{where} ORDER BY {cursor}"
        if self._newest is not None:
            newest = f"SELECT * FROM {table}{where} ORDER BY {cursor} DESC LIMIT {int(self._newest)}"
            text = f"SELECT * FROM ({newest}) AS newest ORDER BY newest.{_quoted(self.cursor)}"
        if "%" in _STYLES[paramstyle]:
            text = text.replace("%", "%%")
        marked = {name: _STYLES[paramstyle].format(name) for name, _ in params}
        text = re.sub(r"(?<!\{)\{(\w+)\}", lambda found: marked[found[1]], text).replace("{{", "{").replace("}}", "}")
        return text, dict(params) if paramstyle in ("named", "pyformat") else tuple(value for _, value in params)

    @property
    def url(self) -> str:
        """The database's address, of a PostgreSQL as psycopg.connect() and SQLAlchemy both take it.

        Raises `LookupError` with the line to add if the operator does not pass it on.
        """
        variable = self._source.get("url_variable")
        found: str | None = os.environ.get(variable) if variable else self._source.get("url")
        if found is None:
            raise LookupError(
                f"the address of the data is in {variable}, which this model is not given; the operator allows it with the line\n"
                f'    pass_env = ["{variable}"]\nunder the model in headrace.toml'
            )
        return _POSTGRESQL.sub("postgresql://", found)

    def connect(self) -> sqlite3.Connection:
        """A connection to a SQLite database, for reading only."""
        found = _SQLITE.match(self.url)
        if found is None:
            scheme = self.url.partition(":")[0]
            raise LookupError(
                f"connect() opens SQLite only, and this is {scheme}; use .url and .query(paramstyle) with its driver"
            )
        return sqlite3.connect(f"file:{quote(found['path'])}?mode=ro", uri=True)

    def _conditions(self) -> tuple[list[str], list[tuple[str, Any]]]:
        # with the table's name: SQLite takes an unknown "name" alone for a text, and the condition would quietly be false
        cursor = f"{_quoted(self.table)}.{_quoted(self.cursor)}"
        wanted = [(f"{cursor} > {{above}}", "above", self.above), (f"{cursor} <= {{upto}}", "upto", self.upto)]
        if self._time_column is not None:
            wanted.append((f"{_quoted(self.table)}.{_quoted(self._time_column)} >= {{since}}", "since", self._since))
        given = [(text, name, value) for text, name, value in wanted if value is not None]
        return [text for text, _, _ in given], [(name, value) for _, name, value in given]


class Reported:
    """Data that is only told about (a `rest` or `stream` dataset): the range that was reported; where it lies is the author's knowledge."""

    def __init__(self, described: dict[str, Any]) -> None:
        self.above: Any = described.get("above")
        self.upto: Any = described.get("upto")
        self.count: int | None = described.get("rows")


class Dataset:
    """`train` is what the model may learn from; `holdout` what it is judged on. One that this job has not is a `LookupError`."""

    def __init__(self, name: str, described: dict[str, Any]) -> None:
        self._name = name
        self._described = described

    @property
    def train(self) -> Any:
        return self._part("train")

    @property
    def holdout(self) -> Any:
        return self._part("holdout")

    def _part(self, part: str) -> Any:
        found = self._described.get(part)
        if found is None:
            raise LookupError(f"the dataset {self._name!r} has no {part} rows in this job")
        return Rows(found, self._described) if self._described["kind"] == "sql" else Reported(found)


def _quoted(name: str) -> str:
    """An identifier in double quotes, braces doubled: they mark the parameters until the style is known."""
    return '"' + name.replace('"', '""').replace("{", "{{").replace("}", "}}") + '"'
