"""Follows the operator's file: what changes there is put in force; what is wrong there changes nothing and is told."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from pathlib import Path

from shared.errors import HeadraceError, Transient

LOOK_S = 1.0


class Follower:
    """`apply` is called with no arguments after each change; its errors are told and the next change is awaited.

    The stat tells cheaply that nothing happened; the digest, that what was saved is what was there.
    """

    def __init__(
        self,
        path: Path,
        apply: Callable[[], None],
        tell: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._path = path
        self._apply = apply
        self._tell = tell
        self._clock = clock
        self._looked_at = clock()
        self._stat: tuple[int, ...] | None
        self._digest: str | None
        self._stat, self._digest = self._read()

    def look(self) -> None:
        """Look, if the last look is a second ago."""
        if self._clock() - self._looked_at < LOOK_S:
            return
        self._looked_at = self._clock()
        if _stat(self._path) == self._stat:
            return
        stat, digest = self._read()
        self._stat, before, self._digest = stat, self._digest, digest or self._digest
        if digest is None:
            self._tell(f"{self._path} is gone; what was in it stays in force")
        elif digest != before:
            self._apply_or_tell()

    def _apply_or_tell(self) -> None:
        try:
            self._apply()
        except Transient as error:
            self._stat = self._digest = None  # so that the next look takes it for changed
            self._tell(f"{error}; tried again in a second")
        except HeadraceError as error:
            self._tell(f"{error}\nthe configuration before this change stays in force")

    def _read(self) -> tuple[tuple[int, ...] | None, str | None]:
        stat = _stat(self._path)
        try:
            return stat, hashlib.sha256(self._path.read_bytes()).hexdigest()
        except OSError:
            return stat, None


def _stat(path: Path) -> tuple[int, ...] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
