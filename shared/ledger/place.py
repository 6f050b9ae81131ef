"""Where a SQLite ledger may lie: its processes share memory through the file system, which those of a network do not (sqlite.org/wal.html)."""

from __future__ import annotations

import re
from pathlib import Path

from shared.errors import ConfigurationError

MOUNTS = Path("/proc/self/mountinfo")  # not there on macOS: nothing is refused then
_SHARED = re.compile(r"nfs\d?|cifs|smb\d?|smbfs|ncpfs|afs|ceph|lustre|gpfs|beegfs|gfs2?|ocfs2|fuse\..+")
_LOCAL = {"fuse.fuse-overlayfs"}  # the disk of a container without root
_ESCAPED = re.compile(r"\\([0-7]{3})")


def check(ledger: Path) -> None:
    """Raise `ConfigurationError` for a file on a network's file system."""
    if not MOUNTS.exists():
        return
    kind = file_system(ledger, MOUNTS.read_text(errors="replace"))
    if _SHARED.fullmatch(kind) and kind not in _LOCAL:
        raise ConfigurationError(
            f"the ledger {ledger} would lie on a network file system ({kind}), where SQLite loses what it was given: "
            "choose a directory on a disk of this machine, or a PostgreSQL URL as ledger_url"
        )


def file_system(path: Path, mounts: str) -> str:
    """The kind of file system that the path lies on, by the text of `mountinfo`; empty where that is not known."""
    real, deepest, kind = path.resolve(), 0, ""
    for line in mounts.splitlines():
        head, _, tail = line.partition(" - ")
        fields = head.split(" ")
        if len(fields) < 5 or not tail:
            continue
        point = Path(_ESCAPED.sub(lambda escaped: chr(int(escaped[1], 8)), fields[4]))
        if (
            real.is_relative_to(point) and len(point.parts) >= deepest
        ):  # of two at one place the later lies over the earlier
            deepest, kind = len(point.parts), tail.split(" ")[0]
    return kind
