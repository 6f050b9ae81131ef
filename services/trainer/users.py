"""Who a model's code runs as: the worker's own user, or, where the operator sets user ids aside for it, one that nobody else has."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from headrace.warded import Confined, Warded

from shared.errors import ConfigurationError, Unavailable
from shared.locks import unused

_PROBE_S = 20.0


class Users:
    """The user ids that `child_uids` sets aside, each lent to one child at a time on this machine; none: children are the worker itself."""

    def __init__(self, uids: str | None, locks: Path) -> None:
        first, _, last = (uids or "").partition("-")
        self._uids = range(int(first), int(last or first) + 1) if first else range(0)
        self._locks = locks
        if self._uids and os.geteuid() != 0:
            raise ConfigurationError(
                "child_uids: only root can start a process of another user; start the trainer as root"
            )
        if uids and not self._uids:
            raise ConfigurationError(
                f"child_uids: {uids} names no user id; write the lower one first, as in 200000-200031"
            )

    @property
    def others(self) -> bool:
        """Whether children are other users than the worker."""
        return bool(self._uids)

    @contextmanager
    def one(self) -> Iterator[int | None]:
        """A user id that no other child has while the block lasts; None: the worker's own."""
        for uid in self._uids:
            with unused(self._locks / str(uid)) as free:
                if free:
                    yield uid
                    return
        if self._uids:
            raise Unavailable(f"all {len(self._uids)} user ids of child_uids are in use; give two for each slot")
        yield None

    def open_way(self, *folders: Path) -> None:
        """Let children go through these directories, without seeing what is in them."""
        for folder in folders if self.others else ():
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            folder.chmod(stat.S_IMODE(folder.stat().st_mode) | 0o011)

    def open_tree(self, tree: Path) -> None:
        """Let children read all of a tree of the worker's."""
        for folder, _, files in os.walk(tree) if self.others else ():
            os.chmod(folder, stat.S_IMODE(os.stat(folder).st_mode) | 0o055)
            for path in (os.path.join(folder, name) for name in files):
                if not os.path.islink(path):
                    mode = stat.S_IMODE(os.stat(path).st_mode)
                    os.chmod(path, mode | 0o044 | (0o011 if mode & 0o100 else 0))

    @staticmethod
    def hand_over(tree: Path, uid: int) -> None:
        """Make a tree that the worker has just made the child's own."""
        for folder, _, files in os.walk(tree):
            for path in (folder, *(os.path.join(folder, name) for name in files)):
                os.chown(path, uid, uid, follow_symlinks=False)

    def verify(self, harness: Path, scratch: Path) -> None:
        """Try it once: a child of another user must reach the harness, a Python, and its scratch directory. Raises `ConfigurationError`."""
        if not self.others:
            return
        scratch.mkdir(mode=0o700, exist_ok=True)
        log = scratch / "log"
        with self.one() as uid:
            assert uid is not None
            self.hand_over(scratch, uid)
            argv = [
                os.path.realpath(sys.executable),
                "-I",
                "-S",
                "-c",
                f"open({str(harness)!r}).close(); open('made', 'w').close()",
            ]
            confined = Confined(64, 10**6, None, uid)
            ending = Warded.start(argv, log=log, env={}, cwd=scratch, confined=confined).wait(_PROBE_S)
        if ending is None or not ending.ok:
            said = (log.read_text(errors="replace").strip().splitlines() or [str(ending)])[-1]
            raise ConfigurationError(
                f"child_uids: a process of the user {uid} cannot run here ({said}); it must be able to go through the directories of "
                f"{harness}, {argv[0]} and {scratch}: none of them may lie below a private directory such as /root"
            )
