"""The log store: logs that are appended to and followed, and the pump that fills one from what a child writes."""

from __future__ import annotations

import ctypes
import os
import re
import stat
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self
from urllib.parse import unquote, urlsplit

from shared.errors import ConfigurationError, HeadraceError, Refused, Unavailable
from shared.points import point

MAX_BYTES = 50_000_000
_TAIL_SHARE = 10  # a tenth of a bounded log is kept for its end, where the traceback stands
_PIECE_BYTES = 1024**2
APPEND, REMOVE = point("log append", __name__), point("log remove", __name__)
NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,63}(?:/[a-z0-9][a-z0-9-]{0,63}){0,3}")


class Logs(Protocol):
    """Logs by name (`runs/17/2`: up to four parts of lower-case letters, digits and `-`), which only ever grow.

    `append` answers with the new size in bytes. `read` answers with at most `limit` bytes from `offset` on and the size of the whole;
    both are 0 where nothing was appended yet. Another name raises `Refused`. A log is written by one process at a time. `pace_s` is how
    long to wait between two appends or two looks.

    `names` goes through all logs in no order (name, time of the last append in UTC, size in bytes) with bounded memory; `remove` makes a
    log as if nothing had been appended.
    """

    @property
    def pace_s(self) -> float: ...

    def append(self, name: str, data: bytes) -> int: ...

    def read(self, name: str, offset: int, limit: int) -> tuple[bytes, int]: ...

    def names(self) -> Iterator[tuple[str, datetime, int]]: ...

    def remove(self, name: str) -> None: ...


def make_logs(url: str) -> Logs:
    """The store at `url`: `file:///DIRECTORY` or `s3://BUCKET/PREFIX`."""
    parts = urlsplit(url)
    if parts.scheme == "s3":
        from shared.logs_s3 import S3Logs  # boto3 costs a good part of a second, and most need none
        from shared.s3 import Bucket

        return S3Logs(Bucket(url, "logs_url"))
    if parts.scheme != "file" or parts.netloc or not parts.path.startswith("/"):
        raise ConfigurationError(f"logs_url {url!r} names no log store; write file:///directory or s3://bucket/prefix")
    return DiskLogs(Path(unquote(parts.path)))


def check_name(name: str) -> str:
    if not NAME.fullmatch(name):
        raise Refused(f"{name[:100]!r} is no name of a log; write up to four parts like runs/17/2")
    return name


class DiskLogs:
    """One file `NAME.log` per log under `root`."""

    pace_s = 0.1

    def __init__(self, root: Path) -> None:
        self._root = root

    def append(self, name: str, data: bytes) -> int:
        path = self._place(name)
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        with APPEND, open(descriptor, "ab", buffering=0) as stream:
            left = memoryview(data)
            while left:
                left = left[stream.write(left) :]
            return os.fstat(descriptor).st_size

    def read(self, name: str, offset: int, limit: int) -> tuple[bytes, int]:
        if offset < 0 or limit < 0:
            raise Refused("offset and limit of a log are not negative")
        try:
            with self._place(name).open("rb", buffering=0) as stream:
                size = os.fstat(stream.fileno()).st_size
                if offset >= size:  # nor is the kernel asked about offsets that it does not know
                    return b"", size
                data = os.pread(stream.fileno(), limit, offset)
                return data, max(size, offset + len(data))
        except FileNotFoundError:
            return b"", 0

    def names(self) -> Iterator[tuple[str, datetime, int]]:
        for path in self._root.rglob("*.log"):
            name = path.relative_to(self._root).with_suffix("").as_posix()
            with suppress(FileNotFoundError):  # removed meanwhile
                if NAME.fullmatch(name) and path.is_file():
                    status = path.stat()
                    yield name, datetime.fromtimestamp(status.st_mtime, UTC), status.st_size

    def remove(self, name: str) -> None:
        with REMOVE:
            self._place(name).unlink(missing_ok=True)

    def _place(self, name: str) -> Path:
        return self._root / f"{check_name(name)}.log"


class Pump:
    """Copies the file `path`, while others append to it, into the log `name`, at the store's pace and once more at the end.

    The log is whole up to `max_bytes`; of more, its first nine tenths and its last tenth are kept, with a line between that says how
    much is missing. The disk under what has been copied or cut is given back (Linux), so a chatty child fills no disk. A store that
    does not answer delays the copy and stops nothing; only `stop` says so, when the last try has failed too. Use it as a context.
    """

    def __init__(self, logs: Logs, name: str, path: Path, *, max_bytes: int = MAX_BYTES) -> None:
        self._logs = logs
        self._name = name
        self._path = path
        self._tail_bytes = max_bytes // _TAIL_SHARE
        self._head_bytes = max_bytes - self._tail_bytes
        self._descriptor: int | None = None
        self._copied = 0
        self._warned = False
        self._ended = threading.Event()
        self._failure: OSError | HeadraceError | None = None
        self._thread = threading.Thread(target=self._run, name=f"pump {name}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Copy what is there now, and end; call it when those who write have ended. Raises what kept it from being whole."""
        self._ended.set()
        self._thread.join()
        if isinstance(self._failure, HeadraceError):
            raise self._failure
        if self._failure is not None:
            raise Unavailable(
                f"the end of the log {self._name} could not be stored: {self._failure}"
            ) from self._failure

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _run(self) -> None:
        while not self._ended.wait(self._logs.pace_s):
            self._try(last=False)
        self._try(last=True)
        if self._descriptor is not None:
            os.close(self._descriptor)

    def _try(self, *, last: bool) -> None:
        try:
            self._failure = None
            size = self._size()
            self._copy(min(size, self._head_bytes))
            if size > self._head_bytes:
                self._cut(size, last=last)
        except (OSError, HeadraceError) as error:
            self._failure = error

    def _cut(self, size: int, *, last: bool) -> None:
        tail_from = max(self._head_bytes, size - self._tail_bytes)
        if tail_from > self._head_bytes and not self._warned and not last:
            self._say(
                f"a log keeps {self._head_bytes + self._tail_bytes:,} bytes; of what follows only the end will be kept"
            )
            self._warned = True
        if self._descriptor is not None and tail_from > self._head_bytes:
            _give_back(self._descriptor, tail_from)
        if last:
            if self._copied < tail_from:
                self._say(f"{tail_from - self._head_bytes:,} bytes were cut out here")
                self._copied = tail_from
            self._copy(size)

    def _say(self, sentence: str) -> None:
        self._logs.append(self._name, f"\n[headrace: {sentence}]\n".encode())

    def _copy(self, upto: int) -> None:
        while self._descriptor is not None and self._copied < upto:
            piece = os.pread(self._descriptor, min(_PIECE_BYTES, upto - self._copied), self._copied)
            if not piece:
                return
            self._logs.append(self._name, piece)
            self._copied += len(piece)

    def _size(self) -> int:
        """The size of the file, 0 before it is there; the child may put something else at its path, which is refused."""
        if self._descriptor is None:
            with suppress(FileNotFoundError):
                self._descriptor = os.open(self._path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
        if self._descriptor is None:
            return 0
        status = os.fstat(self._descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise Refused(f"{self._path.name} is no plain file; nothing is copied from it")
        return status.st_size


def _give_back(descriptor: int, upto: int) -> None:
    """Free the disk blocks before `upto`; sizes and offsets stay as they are. A file system that can't do it keeps them."""
    if sys.platform == "linux":
        keep_size, punch_hole = 1, 2  # linux/falloc.h
        fallocate = ctypes.CDLL(None).fallocate
        fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
        fallocate(descriptor, keep_size | punch_hole, 0, upto)
