"""Blobs on S3."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import BinaryIO

from shared.blobs import DIGEST, FETCH, PUT, REMOVE, BlobDamaged, Verified, check_digest, open_plain, write_file
from shared.errors import NotFound, Refused, Unavailable
from shared.s3 import Bucket

FRESH = timedelta(hours=12)


class S3Blobs:
    """Blobs as objects `ab/cd/abcd…` below a prefix.

    What was put once is not looked for before it is put again: S3 replaces an object in one step, and so a damaged one is healed.
    `store_tree` asks with `keep`.
    """

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket
        with suppress(Unavailable):  # each use will say so itself
            bucket.verify()

    def put_file(self, path: Path) -> str:
        with open_plain(path) as source:
            sha256 = hashlib.file_digest(source, "sha256").hexdigest()
            source.seek(0)
            changed = Refused(f"invalid_bundle: {path.name} changed while it was stored")
            self._send(sha256, Verified(source, os.fstat(source.fileno()).st_size, sha256, changed))
        return sha256

    def put_bytes(self, data: bytes) -> str:
        sha256 = hashlib.sha256(data).hexdigest()
        with PUT:
            self._bucket.put(_key(sha256), data, sha256)
        return sha256

    def has(self, sha256: str) -> bool:
        return self._bucket.find(_key(sha256)) is not None

    def open(self, sha256: str) -> BinaryIO:
        return io.BufferedReader(self._open(sha256), 1024**2)

    def fetch(self, sha256: str, into: Path) -> None:
        with FETCH, self.open(sha256) as source:
            write_file(source, into)

    def keep(self, sha256: str) -> bool:
        """False too where the blob is damaged, so that it is put again."""
        if (found := self._bucket.find(key := _key(sha256))) is None:
            return False
        if _fresh(found.written_at):
            return True
        try:
            self._bucket.touch(key)
            if (touched := self._bucket.find(key)) and not _fresh(
                touched.written_at
            ):  # rclone keeps the file's old time
                self._send(sha256, self._open(sha256))
        except (NotFound, BlobDamaged):
            return False
        return touched is not None

    def stored(self) -> Iterator[tuple[str, datetime, int]]:
        for entry in self._bucket.list():
            sha256 = entry.key.rpartition("/")[2]
            if DIGEST.fullmatch(sha256) and entry.key == _key(sha256):
                yield sha256, entry.written_at, entry.size_bytes

    def remove(self, sha256: str, older_than: timedelta = timedelta(0)) -> None:
        """Looked at once more just before, since S3 cannot remove on a condition: between the two lie milliseconds."""
        key = _key(sha256)
        if older_than:
            found = self._bucket.find(key)
            if found is None or datetime.now(UTC) - found.written_at < older_than:
                return
        with REMOVE:
            self._bucket.delete([key])

    def leftovers(self, older_than: timedelta) -> int:
        return self._bucket.abort_uploads(older_than)

    def _open(self, sha256: str) -> Verified:
        try:
            raw = self._bucket.open(_key(sha256))
        except NotFound as error:
            raise NotFound(f"no blob {sha256} is stored") from error
        damaged = BlobDamaged(
            f"the blob {sha256} is damaged in the bucket {self._bucket.name}; remove the object {_key(sha256)} below "
            f"the prefix of {self._bucket.setting}, and put it again from a backup"
        )
        return Verified(raw, raw.size_bytes, sha256, damaged)

    def _send(self, sha256: str, source: Verified) -> None:
        """What has another digest by now raises the error of `source` and never gets the key."""
        small = source.size_bytes < self._bucket.part_bytes
        with PUT, io.BufferedReader(source, 1024**2) as stream:
            if small:
                self._bucket.put(_key(sha256), stream.read(), sha256)
            else:
                self._bucket.upload(_key(sha256), stream)


def _key(sha256: str) -> str:
    check_digest(sha256)
    return f"{sha256[:2]}/{sha256[2:4]}/{sha256}"


def _fresh(time: datetime) -> bool:
    return datetime.now(UTC) - time < FRESH
