"""Logs on S3, which has no append: a log is a row of segments, of which the last is written anew until it is full."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime
from itertools import groupby
from zlib import crc32

from shared.errors import Refused, Unavailable
from shared.logs import APPEND, NAME, REMOVE, check_name
from shared.s3 import Bucket, Entry

SEGMENT_BYTES = 256 * 1024
PIECE_BYTES = 1024**2
_STRIPES = 16


class S3Logs:
    """Segments `NAME.log/OFFSET` (15 digits): to read is one listing and few reads, and the number of objects stays bounded.

    The ends of the logs that are being written are remembered: one log's for each of a few locks, so memory stays bounded too. Two that
    share a lock cost each other a listing. An append that failed, or whose answer was lost, is put right by the next.
    """

    pace_s = 1.0  # a request each, and each costs

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket
        self._stripes = [_Stripe() for _ in range(_STRIPES)]
        with suppress(Unavailable):  # each use will say so itself
            bucket.verify()

    def append(self, name: str, data: bytes) -> int:
        stripe = self._stripe(name)
        with stripe.lock:
            if stripe.name != name:
                stripe.start, stripe.data = self._find_end(name)
                stripe.name = name
            for first in range(0, len(data), PIECE_BYTES):
                self._write(name, stripe, data[first : first + PIECE_BYTES])
            return stripe.start + len(stripe.data)

    def read(self, name: str, offset: int, limit: int) -> tuple[bytes, int]:
        if offset < 0 or limit < 0:
            raise Refused("offset and limit of a log are not negative")
        segments = self._segments(name, offset - SEGMENT_BYTES - PIECE_BYTES)  # none is longer than both together
        if not segments and offset:
            segments = self._segments(name)
        if not segments:
            return b"", 0
        size = _start(segments[-1]) + segments[-1].size_bytes
        upto, data = min(offset + limit, size), bytearray()
        for segment in segments:
            here = offset + len(data)
            if _start(segment) <= here < min(_start(segment) + segment.size_bytes, upto):
                count = min(upto, _start(segment) + segment.size_bytes) - here
                data += self._bucket.read(segment.key, here - _start(segment), count)
        return bytes(data), size

    def names(self) -> Iterator[tuple[str, datetime, int]]:
        for below, segments in groupby(self._bucket.list(), lambda entry: entry.key.rpartition("/")[0]):
            name, found = below.removesuffix(".log"), list(segments)
            if name != below and NAME.fullmatch(name):
                yield name, max(one.written_at for one in found), sum(one.size_bytes for one in found)

    def remove(self, name: str) -> None:
        stripe = self._stripe(name)
        with stripe.lock:
            if stripe.name == name:
                stripe.name = None
            with REMOVE:
                self._bucket.delete([segment.key for segment in self._segments(name)])

    def _write(self, name: str, stripe: _Stripe, piece: bytes) -> None:
        start, data = stripe.start, stripe.data
        if len(data) >= SEGMENT_BYTES:
            start, data = start + len(data), b""
        data += piece
        with APPEND:
            self._bucket.put(f"{name}.log/{start:015}", data)
        stripe.start, stripe.data = start, data

    def _find_end(self, name: str) -> tuple[int, bytes]:
        segments = self._segments(name)
        if not segments:
            return 0, b""
        last = segments[-1]
        if last.size_bytes >= SEGMENT_BYTES:
            return _start(last) + last.size_bytes, b""
        return _start(last), self._bucket.read(last.key, 0, SEGMENT_BYTES)

    def _segments(self, name: str, first: int = 0) -> list[Entry]:
        """Those that begin at `first` or later."""
        below = f"{check_name(name)}.log/"
        return list(self._bucket.list(below, f"{below}{first - 1:015}" if first > 0 else ""))

    def _stripe(self, name: str) -> _Stripe:
        return self._stripes[crc32(check_name(name).encode()) % _STRIPES]


class _Stripe:
    """One lock, and the last segment of the log that was last written under it."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.name: str | None = None
        self.start = 0
        self.data = b""


def _start(segment: Entry) -> int:
    return int(segment.key.rpartition("/")[2])
