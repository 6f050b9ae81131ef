"""Locks between threads and processes that their holder's death gives back."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def locked(path: Path) -> Iterator[int]:
    """Hold the file `path` alone, waiting for whoever has it; a child that gets the descriptor holds on until it ends too."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def using(path: Path) -> Iterator[None]:
    """Hold the file `path` together with whoever else uses the same thing; its time says when it was last used. Waits for `unused`."""
    descriptor = _standing(path, fcntl.LOCK_SH)
    try:
        os.utime(descriptor)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def unused(path: Path) -> Iterator[bool]:
    """Whether nobody uses the thing of the file `path`; if so, nobody can begin to until the block is left. It may remove the file."""
    try:
        descriptor = _standing(path, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        yield False
        return
    try:
        yield True
    finally:
        os.close(descriptor)


def _standing(path: Path, how: int) -> int:
    """The file, made where it is missing, locked; never one that was removed while we waited for it."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(descriptor, how)
            if os.stat(path).st_ino == os.fstat(descriptor).st_ino:
                return descriptor
        except FileNotFoundError:
            pass
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
