"""The rows of a job's datasets as CSV files, for commands in any language. Loaded by the harness.

UTF-8, a header, lines that end with a newline; NULL is an empty field, true and false are words, times are ISO 8601, bytes are hexadecimal.
"""

from __future__ import annotations

import csv
import importlib
import importlib.util
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

_DRIVERS = ("psycopg", "psycopg2")
_FETCHED = 10_000


def export(rows: Any, into: Path) -> bool:
    """Write the rows; False if no driver for their database is installed here. Raises `LookupError` if its address is not passed on."""
    if rows.url.startswith("sqlite"):
        with closing(rows.connect()) as connection, closing(connection.execute(*rows.query("qmark"))) as cursor:
            _write(cursor, into)
        return True
    driver = next((name for name in _DRIVERS if importlib.util.find_spec(name) is not None), None)
    if driver is None or not rows.url.startswith("postgresql:"):
        print(
            f"headrace: {into.parent.name}/{into.name} is not written: for that database {' or '.join(_DRIVERS)} would have to be among the "
            "dependencies (PostgreSQL only); or read it yourself, with the address and the query in the file that HEADRACE_JOB names",
            file=sys.stderr,
        )
        return False
    with _streaming(importlib.import_module(driver), rows) as cursor:
        _write(cursor, into)
    return True


@contextmanager
def _streaming(driver: Any, rows: Any) -> Iterator[Any]:
    """A cursor of the server's, so that the rows are never in memory all at once."""
    with closing(driver.connect(rows.url)) as connection, connection.cursor(name="headrace") as cursor:
        cursor.itersize = _FETCHED
        cursor.execute(*rows.query("pyformat"))
        yield cursor


def _write(cursor: Any, into: Path) -> None:
    into.parent.mkdir(parents=True, exist_ok=True)
    first = cursor.fetchmany(_FETCHED)  # psycopg2's named cursor knows its columns only then
    with into.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow([column[0] for column in cursor.description])
        while first:
            writer.writerows(map(_plain, first))
            first = cursor.fetchmany(_FETCHED)


def _plain(row: Sequence[Any]) -> list[Any]:
    return [_text(value) if isinstance(value, _ODD) or hasattr(value, "isoformat") else value for value in row]


_ODD = (bool, bytes, bytearray, memoryview)


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value.isoformat()) if hasattr(value, "isoformat") else bytes(value).hex()
