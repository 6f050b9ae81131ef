"""Commits to a SQLite file by anybody, noticed at once and without reading it."""

from __future__ import annotations

import os
import sqlite3
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote


class Commits:
    """Reads `PRAGMA data_version` (4 µs) on a connection that it keeps, and sees when another file has taken the place of the first."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._connection: sqlite3.Connection | None = None
        self._file: tuple[int, int] | None = None
        self._version: int | None = None

    def stirred(self) -> bool:
        """Whether anything was committed, or the file came, went or was replaced, since the last call; the first one says True if there is a file."""
        before = self._file, self._version
        try:
            found = os.stat(self._path)
        except OSError:
            self.close()
            return before != (self._file, self._version)
        if self._file != (found.st_dev, found.st_ino):
            self.close()
            self._file = found.st_dev, found.st_ino
        with suppress(sqlite3.Error):  # locked for a moment, or no database: whoever looks will say so
            self._version = self._ask()
        return before != (self._file, self._version)

    def _ask(self) -> int:
        if self._connection is None:
            self._connection = open_read_only(self._path, timeout_s=0.0)
        return int(self._connection.execute("PRAGMA data_version").fetchone()[0])

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._connection, self._file, self._version = None, None, None


def open_read_only(path: Path, timeout_s: float) -> sqlite3.Connection:
    """A connection that neither writes to the file nor makes one where there is none."""
    name = f"file:{quote(str(path))}?mode=ro"
    return sqlite3.connect(name, uri=True, timeout=timeout_s, check_same_thread=False, isolation_level=None)
