"""An author's code in a child of its own, as a worker runs it: under a warden, within its limits, watched."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

from headrace.job import LOADER

from services.trainer import child
from services.trainer.checkout import Prepared
from services.trainer.disk import Disk
from services.trainer.heart import Beat, Heart
from services.trainer.limits import descendants
from services.trainer.sandbox import Sandbox
from services.trainer.usage import Meter
from services.trainer.users import Users
from services.trainer.warm import Parents
from shared.catalog import Limits
from shared.logs import DiskLogs
from tests import ways

PATIENCE_S = 20.0
T = TypeVar("T")


def within(work: Callable[[], T]) -> T:
    """What the work returns or raises, in a thread of its own: one that hangs fails the test and not the whole run."""
    answers: list[T] = []
    errors: list[Exception] = []

    def run() -> None:
        try:
            answers.append(work())
        except Exception as error:  # noqa: BLE001 - raised again below
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(PATIENCE_S)
    assert not thread.is_alive(), "it hangs"
    if errors:
        raise errors[0]
    return answers[0]


def train(
    place: Path,
    body: str,
    *,
    limits: Limits | None = None,
    users: Users | None = None,
    python: str = sys.executable,
    env: Mapping[str, str] | None = None,
    resume: Path | None = None,
    leaving: threading.Event | None = None,
    meter: Meter | None = None,
    grace_s: float = child.GRACE_S,
    keeper: Callable[[Path], AbstractContextManager[object]] = lambda _: nullcontext(),
    sandbox: Sandbox | None = None,
    datasets: Mapping[str, Mapping[str, object]] | None = None,
) -> child.Result:
    """The author's `train`, whose body this is, by itself on no data. `keeper` is around it, told its scratch directory."""
    (place / "src").mkdir()
    lines = "\n".join(f"    {line}" for line in body.splitlines())
    (place / "src" / "hostile.py").write_text(f"import json, os, sys\ndef train(job):\n{lines}\n")
    scratch = place / "scratch"
    (scratch / "output").mkdir(parents=True)
    job = {
        "action": "train", "run": "1", "model": "m", "source_roots": [str(place / "src")], "train": "hostile:train", "evaluate": None,
        "predict": "builtins:id", "load": None, "loader": str(LOADER), "output": str(scratch / "output"), "scratch": str(scratch),
        "datasets": datasets or {}, "parameters": {}, "resume": str(resume) if resume else None,
    }  # fmt: skip
    prepared = Prepared(place / "src", Path(python), "")
    variables = {**child.environment((), 1, prepared, scratch), **(env or {})}
    work = child.Work(
        job,
        scratch,
        "runs/1/1",
        timedelta(seconds=PATIENCE_S),
        variables,
        limits or Limits(),
        grace_s=grace_s,
        meter=meter or Meter(),
        sandbox=sandbox,
    )
    lent, parents = users or Users(None, place / "users"), Parents(int(ways.forked()), Disk(place / "trainer"))
    parents.saw(prepared.python, "m", [], ("json",))
    beat: Beat = lambda _: None  # noqa: E731
    try:
        with Heart(beat, 60.0, leaving or threading.Event()) as heart, keeper(scratch):
            return within(lambda: child.run(work, prepared, lent, parents, DiskLogs(place / "logs"), heart))
    finally:
        forks = [left for pid in parents.pids for left in descendants(pid)[0] if not is_zombie(left)]
        there = bool(parents.pids)
        parents.close()
        assert there == ways.forked(), "no parent was there to fork it"
        assert forks == []


def is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] == b"Z"
    except OSError:
        return True
