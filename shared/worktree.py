"""The files of a commit on disk: what is refused, and how the rest is written from git's own words without trusting any of it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from shared.errors import Refused, Transient

MAX_FILES = 20_000
MAX_BYTES = 1024**3
_MAX_LINK_BYTES = 1024
_MAX_POINTER_BYTES = 1024  # by the specification of Git LFS
_LINK = "120000"
_LFS_POINTER = b"version https://git-lfs.github.com/spec/v1"


@dataclass(frozen=True)
class Entry:
    """One file of a commit; mode 100644, 100755 (executable), 120000 (symbolic link) or 160000 (a submodule: no size)."""

    path: str
    mode: str
    blob: str
    size_bytes: int


def read_listing(listing: bytes) -> tuple[Entry, ...]:
    """What `git ls-tree -l -z` has printed."""
    entries = []
    for line in listing.split(b"\0")[:-1]:
        facts, _, path = line.partition(b"\t")
        mode, _, blob, size = facts.decode().split()
        try:
            entries.append(Entry(path.decode(), mode, blob, 0 if size == "-" else int(size)))
        except UnicodeDecodeError as error:
            raise Refused(f"the file name {path[:100]!r} is not UTF-8; rename the file") from error
    return tuple(entries)


def check_tree(entries: Sequence[Entry]) -> list[Entry]:
    """The entries in the order for `write_tree`; raises `Refused` on what is no plain file or link, or too much."""
    names = {entry.path.casefold() for entry in entries}
    for entry in entries:
        _check_name(entry.path)
        # A link that is a directory too would have what is below it written where it leads to.
        if any(parent.as_posix() in names for parent in PurePosixPath(entry.path.casefold()).parents):
            raise _twice(entry.path)
        if entry.mode == "160000":
            raise Refused(
                f"{entry.path} is a submodule, and those are not fetched; put its files into the repository, or depend on a package"
            )
        if entry.mode == _LINK and entry.size_bytes > _MAX_LINK_BYTES:
            raise Refused(
                f"the link {entry.path} has a target of {entry.size_bytes} bytes; replace it by the file itself"
            )
    size_bytes = sum(entry.size_bytes for entry in entries)
    if size_bytes > MAX_BYTES:
        raise Refused(
            f"the repository has {size_bytes:,} bytes of files; at most {MAX_BYTES:,} are taken: keep data out of it"
        )
    return sorted(entries, key=lambda entry: entry.mode == _LINK)  # links last: no file can be written through one


def check_pointers(entries: Sequence[Entry], contents: IO[bytes]) -> None:
    """Raise `Refused` for a Git LFS pointer; `contents` is what `git cat-file --batch` prints for the blobs of `entries`, in order."""
    for entry in entries:
        _check_pointer(entry, b"".join(_blob(contents, entry)))


def could_be_pointer(entry: Entry) -> bool:
    return entry.mode.startswith("100") and 0 < entry.size_bytes <= _MAX_POINTER_BYTES


def write_tree(entries: Sequence[Entry], contents: IO[bytes], root: Path) -> None:
    """Make the directory `root` and fill it; `contents` is what `git cat-file --batch` prints for the blobs of `entries`, in order."""
    root.mkdir(mode=0o700)
    links = [entry for entry in entries if entry.mode == _LINK]
    for entry in entries:
        path = root / entry.path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if entry.mode == _LINK:
                _write_link(path, entry, b"".join(_blob(contents, entry)))
            else:
                _write_file(path, entry, _blob(contents, entry))
        except FileExistsError as error:
            raise _twice(entry.path) from error
    for link in links:
        if not Path(os.path.realpath(root / link.path)).is_relative_to(os.path.realpath(root)):
            raise Refused(f"the link {link.path} leads out of the repository; replace it by the file itself")


def _check_name(path: str) -> None:
    parts = path.split("/")
    odd = any(part in ("", ".", "..") or part.casefold() == ".git" or len(part.encode()) > 255 for part in parts)
    if odd or len(path) > 1000 or re.search(r"[\x00-\x1f\x7f\\]", path):
        raise Refused(
            f"the file name {path[:200]!r} is not taken: no control character, no \\, no part called . or .. or .git, "
            "no part longer than 255 bytes; rename the file"
        )


def _blob(contents: IO[bytes], entry: Entry) -> Iterator[bytes]:
    """The next blob in pieces; to be read to its end."""
    header = contents.readline().split()
    if header != [entry.blob.encode(), b"blob", str(entry.size_bytes).encode()]:
        raise Transient(f"the mirror has lost {entry.path} ({entry.blob}); remove the mirror, it will be fetched again")
    left = entry.size_bytes
    while left:
        piece = contents.read(min(left, 1024**2))
        if not piece:
            raise Transient(f"git ended in the middle of {entry.path}; trying again may help")
        left -= len(piece)
        yield piece
    contents.read(1)


def _write_file(path: Path, entry: Entry, pieces: Iterator[bytes]) -> None:
    mode = 0o755 if entry.mode == "100755" else 0o644
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode), "wb") as stream:
        for piece in pieces:
            if could_be_pointer(entry):
                _check_pointer(entry, piece)
            stream.write(piece)


def _check_pointer(entry: Entry, content: bytes) -> None:
    if content.startswith(_LFS_POINTER):
        raise Refused(
            f"lfs_pointer_found: {entry.path} is a Git LFS pointer and not the file, and Git LFS is not fetched; "
            "put the file itself into git, or read it from a dataset"
        )


def _write_link(path: Path, entry: Entry, target: bytes) -> None:
    if not target or b"\0" in target:
        raise Refused(f"the link {entry.path} leads nowhere; replace it by the file itself")
    os.symlink(target, os.fsencode(path))


def _twice(path: str) -> Refused:
    return Refused(f"{path} stands there twice (case does not tell files apart everywhere); rename one of them")
