"""Fetching a version: every byte checked, whole or not there at all, and what a broken pull has got is used again."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Callable, Iterator, Mapping, Optional
from urllib.parse import quote

from headrace.connection import Connection, Unreachable, api_path, connect
from headrace.lock import CHAMPION, Choice
from headrace.version import NOT_TAKEN, DigestMismatch, File, Version, plain_name, read, resolve

Progress = Callable[[int, int], None]
"""Called with the bytes that are there and the bytes of the whole version."""


def pull(
    model: str,
    version: Choice = CHAMPION,
    into: Path = Path("models"),
    *,
    digest: Optional[str] = None,
    connection: Optional[Connection] = None,
    progress: Optional[Progress] = None,
) -> Path:
    """The directory `into/model/version`, every file checked; it appears whole or not at all.

    A version that is there and intact is not fetched again, and a numbered one then needs no network. `digest` is what
    a notice told you to expect. Raises `DigestMismatch`, and then keeps nothing; `Unreachable` when trying again may
    help, and then goes on where it stopped.
    """
    there = pulled(model, version, into, digest=digest)
    if there:
        return there
    connection = connection or connect()
    wanted = resolve(model, version, connection=connection)
    if digest not in (None, wanted.digest):
        raise DigestMismatch(
            f"{model} {wanted.version} has the digest {wanted.digest}; {digest} was expected", NOT_TAKEN
        )
    home = Path(into) / wanted.model
    home.mkdir(parents=True, exist_ok=True)
    with _alone(home):
        there = pulled(wanted.model, wanted.version, into, digest=wanted.digest)
        return there or _fetch(wanted, home, connection, progress or _silent)


def pulled(model: str, version: Choice, into: Path = Path("models"), *, digest: Optional[str] = None) -> Optional[Path]:
    """Where a pull has put this numbered version, if every byte of it is still there; asks nobody."""
    place = Path(into) / model / str(version)
    if not isinstance(version, int) or not plain_name(model):
        return None
    try:
        known = read(json.loads(_receipt(place).read_text(encoding="utf-8")))
    except (OSError, ValueError, DigestMismatch):
        return None
    expected = {file.path for file in known.files}
    intact = digest in (None, known.digest) and _paths(place) == expected
    return place if intact and all(_intact(place, file) for file in known.files) else None


def receipt(place: Path) -> Mapping[str, Any]:
    """What the API said of a version that was pulled to `place`: metrics, lineage, whether it is a sample."""
    told: Mapping[str, Any] = json.loads(_receipt(place).read_text(encoding="utf-8"))
    return told


def _fetch(version: Version, home: Path, connection: Connection, progress: Progress) -> Path:
    partial, place = home / f".{version.version}.partial", home / str(version.version)
    try:
        _fill(partial, version, connection, progress)
    except DigestMismatch:
        shutil.rmtree(partial)
        raise
    receipt = json.dumps(dict(version.details), indent=1, sort_keys=True)
    _receipt(partial).write_text(receipt, encoding="utf-8")
    for path in [*partial.rglob("*"), partial, _receipt(partial)]:
        _sync(path)
    if place.exists():
        shutil.rmtree(place)  # not intact, or nobody would be here
    os.replace(_receipt(partial), _receipt(place))
    os.replace(partial, place)
    _sync(home)
    return place


def _fill(partial: Path, version: Version, connection: Connection, progress: Progress) -> None:
    for path in _paths(partial) - {file.path for file in version.files}:
        (partial / path).unlink()
    done = 0
    for file in version.files:
        if not _intact(partial, file):
            _download(version, file, partial / file.path, connection, done, progress)
        done += file.size_bytes
        progress(done, version.size_bytes)


def _download(version: Version, file: File, to: Path, connection: Connection, before: int, progress: Progress) -> None:
    hashed, size = hashlib.sha256(), 0
    to.parent.mkdir(parents=True, exist_ok=True)
    address = api_path("models", version.model, "versions", version.version, "files") + "/" + quote(file.path)
    with connection.open("GET", address) as answer, to.open("wb") as stream:
        for chunk in answer.chunks():
            size += len(chunk)
            if size > file.size_bytes:
                break
            hashed.update(chunk)
            stream.write(chunk)
            progress(before + size, version.size_bytes)
    if size < file.size_bytes:
        raise Unreachable(
            f"{file.path} broke off after {size} of {file.size_bytes} bytes", "pull again: it goes on from there"
        )
    if size > file.size_bytes or hashed.hexdigest() != file.sha256:
        raise DigestMismatch(f"{file.path} of {version.model} {version.version} is not what its digest says", NOT_TAKEN)


def _intact(place: Path, file: File) -> bool:
    path = place / file.path
    if path.is_symlink() or not path.is_file() or path.stat().st_size != file.size_bytes:
        return False
    hashed = hashlib.sha256()
    with path.open("rb") as stream:
        for chunk in iter(lambda: stream.read(1 << 20), b""):
            hashed.update(chunk)
    return hashed.hexdigest() == file.sha256


def _paths(place: Path) -> set[str]:
    """The files under a directory, but not the byte code that running a model leaves beside its code."""
    found = (path.relative_to(place) for path in place.rglob("*") if not path.is_dir() or path.is_symlink())
    return {path.as_posix() for path in found if "__pycache__" not in path.parts}


def _receipt(place: Path) -> Path:
    """Beside the directory, not in it: what the API said of the version, with the list that its digest covers."""
    return place.with_name(place.name + ".json")


@contextmanager
def _alone(home: Path) -> Iterator[None]:
    """One pull per model at a time; the kernel forgets the lock of a killed one."""
    with (home / ".lock").open("a") as stream:
        try:
            import fcntl
        except ImportError:  # not a POSIX system: two pulls at once are then the caller's affair
            yield
            return
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _silent(done: int, total: int) -> None:
    """No progress wanted."""
