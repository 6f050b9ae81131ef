"""The one door to S3, AWS's and compatible: one bucket below a prefix, and boto3's errors in our words.

Credentials, endpoint and region come from boto3's own chain (AWS_… variables, profiles, roles); there are no settings of ours for them.
Imported by whoever has an `s3://` URL only: boto3 costs a process a good part of a second.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any, BinaryIO
from urllib.parse import unquote, urlsplit

import boto3
import botocore.session
from boto3.s3.transfer import TransferConfig
from botocore import exceptions as boto
from botocore.config import Config
from botocore.parsers import ResponseParserError
from urllib3.exceptions import HTTPError

from shared.errors import ConfigurationError, HeadraceError, NotFound, Permanent, Unavailable

PART_BYTES = 8 * 1024**2  # S3 takes parts from 5 MiB on, and 10,000 of them
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_PREFIX = re.compile(r"[A-Za-z0-9!_.*'()-]+(/[A-Za-z0-9!_.*'()-]+)*")
_DELETED_AT_ONCE = 1000
_TRIES = 3
_SKEW = timedelta(minutes=5)  # of the store's clock

_CREDENTIALS = {"InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken", "AccessDenied", "403"}
_ELSEWHERE = {"PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException", "301"}
_PASSING = {"SlowDown", "RequestTimeout", "BadDigest", "OperationAborted", "NoSuchUpload", "Throttling", "RequestLimitExceeded"}  # fmt: skip
_UNHEARD = (
    boto.ConnectionError,
    boto.HTTPClientError,
    boto.IncompleteReadError,
    boto.MetadataRetrievalError,
    ResponseParserError,  # the answer broke off
    HTTPError,
)


@dataclass(frozen=True)
class Entry:
    """One object as a listing shows it; `key` is what follows the prefix."""

    key: str
    written_at: datetime
    size_bytes: int


class Bucket:
    """Objects of one bucket by their key below `prefix`; safe to use from several threads.

    Raises `Unavailable` when the store does not answer or is overloaded (after a bounded number of tries), `ConfigurationError` for a
    missing bucket or credentials that it does not take, `NotFound` for a missing key.
    """

    def __init__(self, url: str, setting: str, *, part_bytes: int = PART_BYTES) -> None:
        self.name, self._prefix = _parse(url, setting)
        self.setting = setting
        self.part_bytes = part_bytes
        try:
            with self._translated():
                self._client = _make_client()
        except ValueError as error:
            raise ConfigurationError(f"{setting}: {error}; AWS_ENDPOINT_URL_S3 is a URL like https://host") from error

    def verify(self) -> None:
        """Raise `ConfigurationError` when this bucket cannot be used as it is configured."""
        with self._translated():
            self._client.list_objects_v2(Bucket=self.name, Prefix=self._prefix, MaxKeys=1)

    def put(self, key: str, data: bytes, sha256: str | None = None) -> None:
        """In one step; a store that knows checksums refuses bytes that have another SHA-256 than said (hex)."""
        check = {"ChecksumSHA256": base64.b64encode(bytes.fromhex(sha256)).decode()} if sha256 is not None else {}
        with self._translated():
            self._client.put_object(Bucket=self.name, Key=self._prefix + key, Body=data, **check)

    def upload(self, key: str, stream: BinaryIO) -> None:
        """In parts, side by side; the object appears whole at the end. An error of the stream gives the upload up."""
        parts = TransferConfig(
            multipart_threshold=self.part_bytes, multipart_chunksize=self.part_bytes, max_concurrency=4
        )
        parts.max_in_memory_upload_chunks = 4  # parts that wait for their turn; a stream is read ahead by as much
        begun = datetime.now(UTC) - _SKEW
        with self._translated():
            try:
                self._client.upload_fileobj(stream, self.name, self._prefix + key, Config=parts)
            except boto.ClientError as error:
                # Its last answer got lost, and a store that takes the end of an upload once only knows none by now (AWS takes it twice).
                if _code(error) != "NoSuchUpload" or (found := self.find(key)) is None or found.written_at < begun:
                    raise

    def open(self, key: str) -> Opened:
        return Opened(self, key)

    def read(self, key: str, first: int, size: int) -> bytes:
        """`size` bytes (at least one) from `first` on; fewer where the object ends."""
        with self._translated():
            return bytes(self._get(key, f"bytes={first}-{first + size - 1}")["Body"].read())

    def find(self, key: str) -> Entry | None:
        """By a listing, for there alone does every store show the time that a sweep will see."""
        return next((entry for entry in self.list(key) if entry.key == key), None)

    def list(self, below: str = "", after: str = "") -> Iterator[Entry]:
        """All whose key begins with `below` and is greater than `after`, in order of their keys; a page at a time is held."""
        wanted = {"StartAfter": self._prefix + after} if after else {}
        with self._translated():
            paginator = self._client.get_paginator("list_objects_v2")
            for page in paginator.paginate(Bucket=self.name, Prefix=self._prefix + below, **wanted):
                for found in page.get("Contents", ()):
                    key = found["Key"].removeprefix(self._prefix)
                    yield Entry(key, found["LastModified"].astimezone(UTC), found["Size"])

    def touch(self, key: str) -> None:
        """Copy the object onto itself, for its time alone: AWS wants something to be replaced."""
        name = self._prefix + key
        with self._translated():
            self._client.copy_object(
                Bucket=self.name, Key=name, CopySource={"Bucket": self.name, "Key": name}, MetadataDirective="REPLACE"
            )

    def delete(self, keys: Sequence[str]) -> None:
        """Absent ones too."""
        for start in range(0, len(keys), _DELETED_AT_ONCE):
            names = [{"Key": self._prefix + key} for key in keys[start : start + _DELETED_AT_ONCE]]
            with self._translated():
                said = self._client.delete_objects(Bucket=self.name, Delete={"Objects": names, "Quiet": True})
            if errors := said.get("Errors"):
                first = errors[0]
                raise Unavailable(
                    f"{len(errors)} objects of the bucket {self.name} were not removed: {first.get('Code')}"
                )

    def abort_uploads(self, older_than: timedelta) -> int:
        """Give up the multipart uploads begun longer ago; they cost storage and no listing of objects shows them."""
        before = datetime.now(UTC) - older_than
        with self._translated():
            left = [upload for upload in self._uploads() if upload["Initiated"] < before]
            for upload in left:
                with _none_is_fine():
                    self._client.abort_multipart_upload(
                        Bucket=self.name, Key=upload["Key"], UploadId=upload["UploadId"]
                    )
        return len(left)

    def _uploads(self) -> Iterator[Any]:
        with _none_is_fine():  # rclone answers so where there is no upload at all
            pages = self._client.get_paginator("list_multipart_uploads")
            for page in pages.paginate(Bucket=self.name, Prefix=self._prefix):
                yield from page.get("Uploads", ())

    def _get(self, key: str, range_: str | None = None) -> Any:
        part = {"Range": range_} if range_ is not None else {}
        return self._client.get_object(Bucket=self.name, Key=self._prefix + key, **part)

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except boto.ClientError as error:
            raise self._answered(error) from error
        except _UNHEARD as error:
            raise Unavailable(f"{self.setting}: the S3 store did not answer: {error}") from error
        except boto.BotoCoreError as error:
            advice = "set AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and, off AWS, AWS_ENDPOINT_URL_S3"
            raise ConfigurationError(f"{self.setting}: S3 cannot be used: {error}; {advice}") from error

    def _answered(self, error: Any) -> HeadraceError:
        code = _code(error)
        status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        said = f"{self.setting}: {error.operation_name} on the bucket {self.name} was answered with {code or status}"
        if code == "NoSuchBucket":
            return ConfigurationError(f"{said}; make the bucket, or mend {self.setting}")
        if code in _CREDENTIALS:
            return ConfigurationError(f"{said}; give credentials (AWS_…) that may list, read, write and delete there")
        if code in _ELSEWHERE:
            return ConfigurationError(f"{said}; set AWS_REGION to the bucket's region")
        if code == "RequestTimeTooSkewed":
            return ConfigurationError(f"{said}; set this machine's clock")
        if code == "InvalidRange":
            return PastTheEnd(said)
        if code in ("NoSuchKey", "404"):
            return NotFound(said)
        if status >= 500 or status == 429 or code in _PASSING:
            return Unavailable(f"{said}; it will be tried again")
        return Permanent(said)


class PastTheEnd(Permanent):
    """The object has become shorter than it was."""


class Opened(io.RawIOBase):
    """An object from start to end. A connection that breaks off is taken up where it was, as long as that gets any further."""

    def __init__(self, bucket: Bucket, key: str) -> None:
        self._bucket, self._key = bucket, key
        self._done = self._failed = 0
        with bucket._translated():
            reply = bucket._get(key)
        self.size_bytes = int(reply["ContentLength"])
        self._body = reply["Body"]

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview, /) -> int:  # type: ignore[override]
        while self._done < self.size_bytes:
            try:
                with self._bucket._translated():
                    if self._body is None:
                        self._body = self._bucket._get(self._key, f"bytes={self._done}-")["Body"]
                    count = int(self._body.readinto(buffer))
                    self._done, self._failed = self._done + count, 0
                    return count
            except PastTheEnd:
                return 0
            except Unavailable:
                self._failed += 1
                self._drop()
                if self._failed >= _TRIES:
                    raise
        return 0

    def close(self) -> None:
        self._drop()
        super().close()

    def _drop(self) -> None:
        if self._body is not None:
            self._body.close()
        self._body = None


def _code(error: Any) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


@contextmanager
def _none_is_fine() -> Iterator[None]:
    try:
        yield
    except boto.ClientError as error:
        if _code(error) != "NoSuchUpload":
            raise


def _make_client() -> Any:
    """A session of its own, for boto3's default one is shared and not safe to make clients from in several threads; what it has parsed of
    AWS's service descriptions is shared (0.11 s of CPU for each further client)."""
    session = botocore.session.Session()
    session.register_component("data_loader", _loader())
    return boto3.session.Session(
        botocore_session=session
    ).client(
        "s3",
        config=Config(
            connect_timeout=3,  # the defaults of 60 s would hold a claim for minutes on a host that swallows packets
            read_timeout=30,  # between two packets
            retries={"mode": "standard", "total_max_attempts": _TRIES},  # legacy mode does not know all that passes
            max_pool_connections=32,  # the API answers from 40 threads; with 10, connections are thrown away and made again
            tcp_keepalive=True,  # a NAT entry that was dropped is noticed
            # We check every digest ourselves. A store that sends the whole object's checksum with a part of it (rclone)
            # would fail every read that is taken up. For requests boto3's default stands: AWS checks what it gets.
            response_checksum_validation="when_required",
            # Addressing needs nothing: boto3 takes the path style wherever an endpoint is set, the host style on AWS.
        ),
    )


@cache
def _loader() -> Any:
    return botocore.session.Session().get_component("data_loader")


def _parse(url: str, setting: str) -> tuple[str, str]:
    """The bucket, and the prefix with its `/` (or nothing)."""
    parts = urlsplit(url)
    prefix = unquote(parts.path).strip("/")
    right = parts.scheme == "s3" and _BUCKET.fullmatch(parts.netloc) and not (parts.query or parts.fragment)
    if not right or (prefix and not _PREFIX.fullmatch(prefix)):
        raise ConfigurationError(
            f"{setting} {url!r} is no S3 URL; write s3://bucket/prefix (a bucket's name has 3 to 63 of a-z, 0-9, . and -)"
        )
    return parts.netloc, f"{prefix}/" if prefix else ""
