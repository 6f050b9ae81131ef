"""The blob store: files by the SHA-256 of their bytes, and whole trees of them by their manifest."""

from __future__ import annotations

import hashlib
import io
import os
import re
import shutil
import stat
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import mkstemp
from typing import BinaryIO, Protocol
from urllib.parse import unquote, urlsplit

from shared.errors import ConfigurationError, HeadraceError, NotFound, Permanent, Refused, Unavailable
from shared.locks import locked
from shared.manifest import File, Manifest, hash_file
from shared.points import point

DIGEST = re.compile(r"[0-9a-f]{64}")
_PIECE_BYTES = 1024**2
_AT_ONCE = 4
PUT, FETCH, REMOVE = (point(f"blob {what}", __name__) for what in ("put", "fetch", "remove"))
_LEFT_OVER = timedelta(hours=24)


class BlobDamaged(Permanent):
    """The stored bytes are not those that were put."""


class Blobs(Protocol):
    """Files by the SHA-256 of their bytes (64 hex digits, lower case): a blob is there whole, or it is not there.

    Putting answers with the digest once the bytes would outlive a loss of power; the same bytes may be put again, also at the same
    time. `open` gives a stream to read from start to end, and `fetch` makes or replaces the file `into` in one step: what either
    hands out has the digest asked for, else it raises `BlobDamaged`; `NotFound` where there is no such blob.

    A blob has a time: when it was last put or kept. `keep` answers whether the blob is there, and if so its time is fresh (less than
    12 h old) from then on: who is about to name a blob keeps it first, and whoever tidies up removes only what nobody names and what
    is older than 24 h. `remove` takes a blob whose time is older than `older_than` by now, else leaves it; an absent one is fine.
    `stored` goes through all blobs in no order (digest, time in UTC, size in bytes) with bounded memory; a blob that comes or goes
    meanwhile may be missed or named. `leftovers` removes what writers that were killed have left longer than `older_than` ago, and
    answers how many that were.
    """

    def put_file(self, path: Path) -> str: ...

    def put_bytes(self, data: bytes) -> str: ...

    def has(self, sha256: str) -> bool: ...

    def open(self, sha256: str) -> BinaryIO: ...

    def fetch(self, sha256: str, into: Path) -> None: ...

    def keep(self, sha256: str) -> bool: ...

    def stored(self) -> Iterator[tuple[str, datetime, int]]: ...

    def remove(self, sha256: str, older_than: timedelta = timedelta(0)) -> None: ...

    def leftovers(self, older_than: timedelta) -> int: ...


def make_blobs(url: str, *, reads_only: bool = False) -> Blobs:
    """The store at `url`: `file:///DIRECTORY` or `s3://BUCKET/PREFIX`.

    `reads_only` is for whoever puts nothing: no directory is made, and a missing one is `Unavailable`.
    """
    parts = urlsplit(url)
    if parts.scheme == "s3":
        from shared.blobs_s3 import S3Blobs  # boto3 costs a good part of a second, and most need none
        from shared.s3 import Bucket

        return S3Blobs(Bucket(url, "blobs_url"))
    if parts.scheme != "file" or parts.netloc or not parts.path.startswith("/"):
        raise ConfigurationError(
            f"blobs_url {url!r} names no blob store; write file:///directory or s3://bucket/prefix"
        )
    root = Path(unquote(parts.path))
    if reads_only and not root.is_dir():
        raise Unavailable(f"there is no directory {root} for the blob store")
    return DiskBlobs(root, reads_only=reads_only)


def store_tree(blobs: Blobs, root: Path, manifest: Manifest) -> None:
    """Put every file that the manifest names; raises `Refused` when one has changed since the manifest was made."""

    def store(file: File) -> None:
        if not blobs.keep(file.sha256) and blobs.put_file(root / file.path) != file.sha256:
            raise Refused(f"invalid_bundle: {file.path} changed while it was stored")

    _side_by_side(store, manifest)


def materialise(blobs: Blobs, manifest: Manifest, into: Path) -> None:
    """Make the directory `into` with the files of the manifest; where it exists already, put right what differs.

    May be called any number of times, at the same time too; what else lies in the directory stays.
    """
    partial = into.with_name(f".{into.name}.partial")
    with locked(into.with_name(f".{into.name}.lock")):
        shutil.rmtree(partial, ignore_errors=True)
        target = into if into.exists() else partial
        target.mkdir(exist_ok=True, mode=0o700)

        def fetch(file: File) -> None:
            path = target / file.path
            if path.is_symlink() or not path.is_file() or hash_file(path) != file.sha256:
                path.parent.mkdir(parents=True, exist_ok=True)
                blobs.fetch(file.sha256, path)

        _side_by_side(fetch, manifest)
        if target is partial:
            partial.rename(into)


def _side_by_side(do: Callable[[File], None], manifest: Manifest) -> None:
    """A store far away answers each file late; a few at once, for each may hold some tens of megabytes. Raises the first error."""
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for _ in pool.map(do, manifest.files):
            pass


class DiskBlobs:
    """Blobs as files `ab/cd/abcd…` under `root`; what is not whole yet lies in `root/tmp` and counts for nothing."""

    def __init__(self, root: Path, *, reads_only: bool = False) -> None:
        self._root = root
        self._tmp = root / "tmp"
        if reads_only:
            return
        self._tmp.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.leftovers(_LEFT_OVER)

    def put_file(self, path: Path) -> str:
        with open_plain(path) as source, PUT:
            return self._put(source)

    def put_bytes(self, data: bytes) -> str:
        with PUT:
            return self._put(io.BytesIO(data))

    def has(self, sha256: str) -> bool:
        return self._place(sha256).is_file()

    def open(self, sha256: str) -> BinaryIO:
        try:
            raw = io.FileIO(self._place(sha256))
        except FileNotFoundError as error:
            raise NotFound(f"no blob {sha256} is stored") from error
        damaged = BlobDamaged(f"the blob {sha256} is damaged on disk; remove the file, and put it again from a backup")
        return io.BufferedReader(Verified(raw, os.fstat(raw.fileno()).st_size, sha256, damaged), _PIECE_BYTES)

    def fetch(self, sha256: str, into: Path) -> None:
        with FETCH, self.open(sha256) as source:
            write_file(source, into)

    def keep(self, sha256: str) -> bool:
        try:
            os.utime(self._place(sha256))
        except FileNotFoundError:
            return False
        return True

    def stored(self) -> Iterator[tuple[str, datetime, int]]:
        for first in _plain_directories(self._root):
            for second in _plain_directories(first):
                for path in second.iterdir():
                    with suppress(FileNotFoundError):  # removed meanwhile
                        if DIGEST.fullmatch(path.name) and self._place(path.name) == path:
                            status = path.stat(follow_symlinks=False)
                            yield path.name, datetime.fromtimestamp(status.st_mtime, UTC), status.st_size

    def remove(self, sha256: str, older_than: timedelta = timedelta(0)) -> None:
        """Taken aside first: who keeps the blob before sees it come back, who keeps it after finds none and puts it again."""
        place, aside = self._place(sha256), self._tmp / f".removed-{sha256}"
        with REMOVE, suppress(FileNotFoundError):
            place.rename(aside)
            if older_than and _age(aside) < older_than and not place.exists():
                aside.rename(place)
            aside.unlink(missing_ok=True)

    def leftovers(self, older_than: timedelta) -> int:
        found = 0
        for left in self._tmp.iterdir():
            with suppress(FileNotFoundError):  # its writer has just ended
                if _age(left) > older_than:
                    left.unlink()
                    found += 1
        return found

    def _put(self, source: BinaryIO) -> str:
        digest = hashlib.sha256()
        with _new_file(self._tmp) as (target, written):
            while piece := source.read(_PIECE_BYTES):
                digest.update(piece)
                target.write(piece)
            target.flush()
            os.fsync(target.fileno())
            place = self._place(digest.hexdigest())
            place.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            written.rename(place)
        for directory in (place.parent, place.parent.parent, self._root):
            _sync_directory(directory)
        return digest.hexdigest()

    def _place(self, sha256: str) -> Path:
        check_digest(sha256)
        return self._root / sha256[:2] / sha256[2:4] / sha256


def check_digest(sha256: str) -> None:
    if not DIGEST.fullmatch(sha256):
        raise Refused(f"{sha256[:100]!r} is no digest; give the 64 hex digits of a SHA-256")


def _plain_directories(root: Path) -> Iterator[Path]:
    return (path for path in root.iterdir() if len(path.name) == 2 and path.is_dir())


def _age(path: Path) -> timedelta:
    return datetime.now(UTC) - datetime.fromtimestamp(path.stat().st_mtime, UTC)


class Verified(io.RawIOBase):
    """Reads `raw` of `size_bytes` and hands out the last piece only when all bytes together have the digest; else raises `error`."""

    def __init__(
        self, raw: io.RawIOBase | io.BufferedReader, size_bytes: int, sha256: str, error: HeadraceError
    ) -> None:
        self.size_bytes = size_bytes
        self._raw = raw
        self._sha256 = sha256
        self._error = error
        self._digest = hashlib.sha256()
        self._left = size_bytes

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview, /) -> int:  # type: ignore[override]
        count = self._raw.readinto(buffer) or 0
        self._digest.update(memoryview(buffer)[:count])
        self._left -= count
        if (self._left <= 0 or not count) and self._digest.hexdigest() != self._sha256:
            raise self._error
        return count

    def close(self) -> None:
        self._raw.close()
        super().close()


def write_file(source: BinaryIO, into: Path) -> None:
    """Make or replace the file `into` in one step."""
    with _new_file(into.parent) as (target, written):
        shutil.copyfileobj(source, target, _PIECE_BYTES)
        target.flush()
        written.rename(into)


@contextmanager
def _new_file(directory: Path) -> Iterator[tuple[BinaryIO, Path]]:
    """A file that is removed at the end unless it has been renamed."""
    descriptor, name = mkstemp(prefix=".new-", dir=directory)  # mode 0600
    try:
        with open(descriptor, "wb") as stream:
            yield stream, Path(name)
    finally:
        Path(name).unlink(missing_ok=True)


def open_plain(path: Path) -> io.BufferedReader:
    """Neither a link is followed nor a FIFO waited for: the file may be the work of a hostile child."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise Refused(f"invalid_bundle: {path.name} cannot be opened as a plain file: {error.strerror}") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise Refused(f"invalid_bundle: {path.name} is a device or a pipe; a bundle holds plain files only")
    return io.BufferedReader(io.FileIO(descriptor))


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
