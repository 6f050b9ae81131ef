"""A version: a number, a digest, and the list of files that has this digest."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, field
from typing import Any, Mapping, Optional, Sequence, Tuple

from headrace.connection import Connection, Problem, api_path, connect
from headrace.lock import CHAMPION, Choice
from headrace.paths import plain_path

NOT_TAKEN = "nothing of it was kept; do not use it, and tell the operator: the files may have been changed"

_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]*\Z")


class DigestMismatch(Problem):
    """The files, or their list, are not what the digest says."""


@dataclass(frozen=True)
class File:
    path: str
    sha256: str
    size_bytes: int


@dataclass(frozen=True)
class Version:
    """`details` is all that the API says of it: metrics, verdict, lineage."""

    model: str
    version: int
    digest: str
    files: Tuple[File, ...] = field(repr=False)
    details: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def size_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files)

    @property
    def sample(self) -> Optional[str]:
        """`"1%"` or a number of rows, if it was trained on so much only: to build against, not to serve."""
        told: Optional[str] = self.details.get("sample")
        return told


def resolve(model: str, version: Choice = CHAMPION, *, connection: Optional[Connection] = None) -> Version:
    """The version that a number, or "champion", means now; its list of files has been checked against its digest."""
    return read((connection or connect()).get(api_path("models", model, "versions", version)))


def read(told: Mapping[str, Any]) -> Version:
    """A version from the API's JSON. Raises `DigestMismatch` if its files are not those of its digest."""
    try:
        files = tuple(File(str(each["path"]), str(each["sha256"]), int(each["size_bytes"])) for each in told["files"])
        found = Version(str(told["model"]), int(told["version"]), str(told["digest"]), files, told)
    except (KeyError, TypeError, ValueError) as error:
        raise Problem(
            f"this is no description of a version: {error!r}", "is the client as new as the server?"
        ) from error
    if not plain_name(found.model) or not all(plain_path(file.path) for file in files):
        raise DigestMismatch(f"{found.model} {found.version} lists a path that is not plain and relative", NOT_TAKEN)
    if told.get("tidied_at"):
        advice = f"`headrace versions {found.model}` lists the others; `headrace pin` keeps one that you rely on"
        raise Problem(f"the files of {found.model} {found.version} were tidied away on {told['tidied_at']}", advice)
    if manifest_digest(files) != found.digest:
        raise DigestMismatch(f"the list of files of {found.model} {found.version} does not have its digest", NOT_TAKEN)
    return found


def manifest_digest(files: Sequence[File]) -> str:
    """SHA-256 of the manifest's canonical JSON, as the server makes it (docs/reference says how)."""
    listed = [vars(file) for file in sorted(files, key=lambda file: file.path)]
    canonical = json.dumps({"files": listed}, sort_keys=True, separators=(",", ":"))
    return "sha256:" + hashlib.sha256(canonical.encode()).hexdigest()


def plain_name(model: str) -> bool:
    """Whether a model's name can be a directory's."""
    return bool(_NAME.match(model))
