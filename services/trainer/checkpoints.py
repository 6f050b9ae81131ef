"""Checkpoints of a training: taken from its scratch directory as they come, stored, and named by the ledger; fetched for the next attempt.

What the ledger names is the newest: a worker whose claim is over cannot put an older one in its place. Each begins with a line that only this
worker can have written, so that no other file of the store has the same bytes, and the one that it replaces can be removed at once.
"""

from __future__ import annotations

import os
import secrets
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

import structlog

from shared.blobs import BlobDamaged, Blobs, open_plain
from shared.errors import Fenced, HeadraceError, NotFound, Refused
from shared.ledger.attempts import Checkpoint
from shared.values import format_size

EVERY_S = 1.0
_PIECE_BYTES = 1024**2
log = structlog.get_logger()


class Names(Protocol):
    """Has the ledger name a checkpoint; raises `Fenced` when another worker has the run, `Unavailable` when nobody knows."""

    def __call__(self, sha256: str, size_bytes: int) -> Checkpoint: ...


class Keeper:
    """Looks every second for a checkpoint that the child has left, in a thread of its own, and once more at the end. Use it as a context.

    `place` is a directory of the worker's own. A store or a ledger that does not answer costs checkpoints, and stops no training.
    """

    def __init__(
        self,
        scratch: Path,
        place: Path,
        blobs: Blobs,
        names: Names,
        say: Callable[[str], None],
        *,
        most_bytes: int,
        replaces: Checkpoint | None,
    ) -> None:
        self._left, self._taken, self._signed = scratch / "checkpoint", place / "taken", place / "signed"
        self._blobs, self._names, self._say = blobs, names, say
        self._most_bytes = most_bytes
        self._named = replaces
        self._told: set[str] = set()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="checkpoints", daemon=True)
        place.mkdir(parents=True, exist_ok=True, mode=0o700)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        pause = EVERY_S
        while not self._ended.wait(pause):
            began = time.monotonic()
            self._look()
            pause = max(EVERY_S, time.monotonic() - began)
        self._look()

    def _look(self) -> None:
        try:
            if self._take() or self._signed.exists():
                self._keep()
        except Refused as error:
            self._tell(f"a checkpoint was not kept: {error.message}")
        except (OSError, HeadraceError) as error:
            self._tell(f"a checkpoint could not be kept; the newest is tried again: {error}")
        except Exception:  # the edge of a thread: a training goes on without it
            log.exception("checkpoint_failed")

    def _take(self) -> bool:
        """Move the newest out of the child's reach, and sign a copy of it."""
        try:
            os.rename(self._left, self._taken)
        except FileNotFoundError:
            return False
        try:
            self._sign()
        except BaseException:
            self._signed.unlink(missing_ok=True)
            raise
        finally:
            self._taken.unlink(missing_ok=True)
        return True

    def _sign(self) -> None:
        with open_plain(self._taken) as source, self._signed.open("wb") as target:
            if os.fstat(source.fileno()).st_nlink > 1:
                raise Refused("it is a link to another file")
            target.write(f"headrace checkpoint {secrets.token_hex(16)}\n".encode())
            while piece := source.read(_PIECE_BYTES):
                target.write(piece)
                if target.tell() > self._most_bytes:
                    limit = format_size(self._most_bytes)
                    raise Refused(f"it is larger than {limit}; raise limits.checkpoint of the model in headrace.toml")

    def _keep(self) -> None:
        sha256, size_bytes = self._blobs.put_file(self._signed), self._signed.stat().st_size
        try:
            replaced, self._named = self._named, self._names(sha256, size_bytes)
        except Fenced:
            self._blobs.remove(sha256)
            self._signed.unlink()
            return
        self._signed.unlink()
        if replaced is not None and replaced.sha256 != sha256:
            self._blobs.remove(replaced.sha256)

    def _tell(self, sentence: str) -> None:
        if sentence not in self._told:
            self._told.add(sentence)
            self._say(sentence)


def fetch(blobs: Blobs, found: Checkpoint, into: Path, say: Callable[[str], None]) -> Path | None:
    """The checkpoint as a file, for the child to go on from; None where it is lost or damaged, which is said. Raises `Unavailable`."""
    size = format_size(found.size_bytes // 1000 * 1000) if found.size_bytes >= 1000 else f"{found.size_bytes}B"
    try:
        blobs.fetch(found.sha256, into)
    except (NotFound, BlobDamaged) as error:
        say(f"the checkpoint of attempt {found.attempt} is lost, and the training begins anew: {error.message}")
        return None
    say(f"goes on from the checkpoint that attempt {found.attempt} left at {found.at:%Y-%m-%d %H:%M:%S}Z ({size})")
    return into
