"""Checkpoints: what a training leaves to go on from, and how it is told to stop. Loaded by the harness.

SCRATCH/checkpoint   the newest one, whole or not at all; the platform takes it away and keeps it
SCRATCH/stop         is there as soon as the training shall stop, and says why; SIGTERM says the same
JOB["resume"]        a checkpoint to go on from, behind a line of the platform's own

A checkpoint is a line of JSON, {"kind": "pickle" | "bytes" | "file" | "folder", "name"}, and then a pickle, the bytes, or a tar of the folder.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import sys
import threading
from pathlib import Path
from typing import IO, Any, Callable


class Stopped(BaseException):
    """The training shall stop, and its checkpoint is kept. No `Exception`, so that an author's `except Exception` lets it pass."""


class Checkpoints:
    """Those of one training. `listens` is called once, when the author's code first asks for any of it."""

    def __init__(self, job: dict[str, Any], listens: Callable[[], object]) -> None:
        scratch = Path(job["scratch"])
        self._place, self._stop, self._resumed = scratch / "checkpoint", scratch / "stop", scratch / "resumed"
        self._resume = Path(job["resume"]) if job.get("resume") else None
        self._listens = listens
        self._listening = False
        self._told = False
        self._writing = threading.Lock()

    @property
    def stopping(self) -> str | None:
        """Why the training shall stop, if it shall."""
        self._listen()
        try:
            return self._stop.read_text(encoding="utf-8", errors="replace") or "it was told to"
        except FileNotFoundError:
            return "it was told to" if self._told else None

    def keep(self, state: Any) -> None:
        """Raises what pickling raises, and `Stopped` once it is kept if the training shall stop."""
        self._listen()
        with self._writing:
            draft = self._place.with_suffix(".draft")
            with draft.open("wb") as stream:
                _write(state, stream)
            draft.replace(self._place)
        if (why := self.stopping) is not None:
            raise Stopped(why)

    def found(self) -> Any:
        """What the checkpoint to go on from holds, as it was given; None where there is none, or none that can be read."""
        self._listen()
        if self._resume is None:
            return None
        try:
            with self._resume.open("rb") as stream:
                stream.readline()
                return _read(stream, self._resumed)
        except Exception as error:  # noqa: BLE001 - whatever a pickle of the author's raises: better anew than never
            print(
                f"headrace: the checkpoint cannot be read ({type(error).__name__}: {error}); the training begins anew",
                file=sys.stderr,
            )
            return None

    def _listen(self) -> None:
        """From now on SIGTERM is a word and not the end: the code that asks for checkpoints will come to one."""
        if self._listening:
            return
        self._listening = True
        self._listens()
        ours = os.getpid()

        def told(number: int, _: object) -> None:
            if os.getpid() == ours:
                self._told = True
                return
            signal.signal(number, signal.SIG_DFL)  # a fork of ours has other ends
            os.kill(os.getpid(), number)

        in_main = threading.current_thread() is threading.main_thread()
        if in_main and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
            signal.signal(signal.SIGTERM, told)


def _write(state: Any, stream: IO[bytes]) -> None:
    path = Path(state) if isinstance(state, os.PathLike) else None
    kind = "bytes" if isinstance(state, (bytes, bytearray)) else "pickle"
    if path is not None:
        kind = "folder" if path.is_dir() else "file"
    stream.write(json.dumps({"kind": kind, "name": path.name if path is not None else None}).encode() + b"\n")
    if path is None:
        stream.write(state) if kind == "bytes" else pickle.dump(state, stream, protocol=4)
    elif kind == "file":
        with path.open("rb") as source:
            shutil.copyfileobj(source, stream, 1024**2)
    else:
        import tarfile  # 8 ms, which a run without a folder need not pay

        with tarfile.open(fileobj=stream, mode="w|") as archive:
            archive.add(path, arcname=".")


def _read(stream: IO[bytes], into: Path) -> Any:
    told = json.loads(stream.readline())
    if told["kind"] == "bytes":
        return stream.read()
    if told["kind"] == "pickle":
        return pickle.load(stream)
    path = into / (told["name"] or "checkpoint")
    shutil.rmtree(into, ignore_errors=True)
    into.mkdir()
    if told["kind"] == "file":
        with path.open("wb") as target:
            shutil.copyfileobj(stream, target, 1024**2)
        return path
    import tarfile

    trusted = {"filter": "fully_trusted"} if hasattr(tarfile, "fully_trusted_filter") else {}  # the author's own
    with tarfile.open(fileobj=stream, mode="r|") as archive:
        archive.extractall(path, **trusted)  # type: ignore[arg-type, unused-ignore]
    return path
