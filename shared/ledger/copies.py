"""Consistent copies of a SQLite ledger, beside it: made before its tables are changed, and put back in its place."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

from shared.errors import Refused

KEPT = 5
FOLDER = "copies"
_PAGES = 1000  # at a time: 4 MB


def make(ledger: Path, revision: str, wanted: Path | None = None) -> Path:
    """Copy what is committed into `copies/`, named by its schema and the time; the newest few are kept, and the `wanted` one.

    Others may read and write meanwhile.
    """
    folder = ledger.parent / FOLDER
    folder.mkdir(mode=0o700, exist_ok=True)
    copy = folder / f"{ledger.stem}-{revision}-{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}.db"
    draft = copy.with_suffix(".part")
    os.close(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))  # it holds hashes of tokens
    try:
        _copy(ledger, draft)
        with closing(sqlite3.connect(draft)) as plain:
            plain.execute("PRAGMA journal_mode=DELETE")  # one file, wherever it is carried
        draft.rename(copy)
    finally:
        draft.unlink(missing_ok=True)
    for old in sorted(folder.glob(f"{ledger.stem}-*.db"), key=lambda path: path.stat().st_mtime_ns)[:-KEPT]:
        if wanted is None or not old.samefile(wanted):
            old.unlink()
    return copy


def set_aside(ledger: Path, wanted: Path | None = None) -> Path:
    """Free the ledger's place: a copy of it where it can be read, else the damaged file itself, with what SQLite keeps beside it."""
    try:
        return make(ledger, "replaced", wanted)
    except sqlite3.Error:
        damaged = ledger.parent / FOLDER / f"{ledger.stem}-damaged-{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}.db"
        for ending in ("-wal", "-shm", ""):
            if (part := Path(f"{ledger}{ending}")).exists():
                part.rename(f"{damaged}{ending}")
        return damaged


def put_back(copy: Path, ledger: Path) -> None:
    """Make the ledger what the copy is, in one transaction. Raises `Refused` for a file that is no whole database of ours."""
    check(copy)
    _copy(copy, ledger)


def check(copy: Path) -> str:
    """The schema of a copy; raises `Refused` when it is none."""
    try:
        with closing(sqlite3.connect(f"{copy.absolute().as_uri()}?mode=ro", uri=True)) as opened:
            (said,) = opened.execute("PRAGMA integrity_check(1)").fetchone()
            (revision,) = opened.execute("SELECT version_num FROM alembic_version").fetchone()
    except (sqlite3.Error, TypeError) as error:
        raise Refused(f"{copy} is no copy of a ledger ({error}); they lie in `{FOLDER}/` beside it") from error
    if said != "ok":
        raise Refused(f"{copy} is damaged ({said}); take another one")
    return str(revision)


def _copy(source: Path, target: Path) -> None:
    with closing(sqlite3.connect(f"{source.absolute().as_uri()}?mode=ro", uri=True)) as one:
        with closing(sqlite3.connect(target)) as other:
            one.backup(other, pages=_PAGES)
        with open(target, "rb") as written:
            os.fsync(written.fileno())
