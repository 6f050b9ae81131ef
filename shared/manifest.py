"""A manifest: what a bundle or a version consists of, file by file, and its one digest."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, model_validator

from shared.errors import Refused

_PATH = re.compile(r"[A-Za-z0-9_@+=,. ()-]+(/[A-Za-z0-9_@+=,. ()-]+)*")
MAX_FILES = 2_000
MAX_BYTES = 4 * 1024**3


class File(BaseModel):
    """One plain file: a relative POSIX path, the SHA-256 of its bytes in hex, its length."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    path: str
    sha256: str
    size_bytes: int


class Manifest(BaseModel):
    """Files sorted by path, each path once (also without regard to case); bounded in number and size."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    files: tuple[File, ...]

    @model_validator(mode="after")
    def _plain_and_bounded(self) -> Self:
        for file in self.files:
            check_path(file.path)
        if len({file.path.casefold() for file in self.files}) != len(self.files):
            raise ValueError("two files have the same path (case does not tell them apart everywhere)")
        if len(self.files) > MAX_FILES:
            raise ValueError(f"{len(self.files)} files; at most {MAX_FILES} are taken")
        if self.size_bytes > MAX_BYTES:
            raise ValueError(f"{self.size_bytes} bytes; at most {MAX_BYTES} are taken")
        return self

    @property
    def size_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files)

    @property
    def digest(self) -> str:
        """`sha256:` and the hex digest of the canonical JSON: what a consumer checks."""
        return "sha256:" + hashlib.sha256(self.canonical()).hexdigest()

    def canonical(self) -> bytes:
        return json.dumps(self.model_dump(), sort_keys=True, separators=(",", ":")).encode()

    def find(self, path: str) -> File | None:
        return next((file for file in self.files if file.path == path), None)


def check_path(path: str) -> None:
    """Raise `ValueError` unless `path` is a plain relative path that means the same on every system."""
    parts = path.split("/")  # pathlib's parts would pass over a "." between
    if not _PATH.fullmatch(path) or ".." in parts or "." in parts or len(path) > 400 or path != path.strip():
        raise ValueError(f"the path {path!r} is not a plain relative one (letters, digits, _ @ + = , . - and single /)")


def read_tree(root: Path) -> Manifest:
    """The manifest of all that lies under `root`; raises `Refused` on a link, a device or a path that breaks the rule."""
    plain = []
    for path in sorted(root.rglob("*")):
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise Refused(
                f"invalid_bundle: {path.relative_to(root)} is a link or a device; a bundle holds plain files only"
            )
        if path.is_file():
            plain.append(path)
    if (size := sum(path.stat().st_size for path in plain)) > MAX_BYTES:  # before hours are spent on its digest
        raise Refused(f"invalid_bundle: {size} bytes; at most {MAX_BYTES} are taken")
    files = [
        File(path=path.relative_to(root).as_posix(), sha256=hash_file(path), size_bytes=path.stat().st_size)
        for path in plain
    ]
    try:
        return Manifest(files=tuple(sorted(files, key=lambda file: file.path)))
    except ValueError as error:
        raise Refused(f"invalid_bundle: {error}") from error


def hash_file(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
