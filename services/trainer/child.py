"""One child process in a model's environment: told what to do by a file, watched, and stopped with all that it started."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import structlog
from headrace import job
from headrace.outcome import MAX_RESULT_BYTES, Result, oom_kills, understand
from headrace.warded import Confined, Ending, Warded

from services.trainer import sandbox
from services.trainer.checkout import Prepared
from services.trainer.events import Events
from services.trainer.failures import AttemptFailed, Lost, Stopped, explained
from services.trainer.heart import Heart
from services.trainer.limits import Silence, Watched
from services.trainer.sandbox import Sandbox
from services.trainer.shares import GPUS, Share
from services.trainer.usage import Meter
from services.trainer.users import Users
from services.trainer.warm import Kept, Parents
from shared import settings
from shared.blobs import open_plain
from shared.catalog import Limits
from shared.errors import ConfigurationError, Refused
from shared.logs import Logs, Pump
from shared.points import point

GRACE_S = 5.0
SLICE_S = 0.1
SPARE_TASKS = 50
_log = structlog.get_logger()
_START, _WATCH = point("child start", __name__), point("child end", __name__)


@dataclass(frozen=True)
class Work:
    """One job for a child: `job` as the harness reads it, files under `scratch`, the author's output into the log `log_name`."""

    job: Mapping[str, Any]
    scratch: Path
    log_name: str
    time_limit: timedelta
    env: Mapping[str, str]
    limits: Limits
    cpus: tuple[int, ...] = ()  # that it may run on; none: all
    grace_s: float = GRACE_S  # that code which listens has, when it is told to stop
    meter: Meter = field(default_factory=Meter)  # is told what it has used
    log_file: str = "output.log"  # in `scratch`: its output on the way to the log
    cwd: Path | None = None  # where it starts; `scratch` without it
    sandbox: Sandbox | None = None  # None: it sees the machine as the worker does


def run(work: Work, prepared: Prepared, users: Users, parents: Parents, logs: Logs, heart: Heart) -> Result:
    """Run the harness to its end, within its limits: a fork of one of `parents` where one serves, else executed, as a user that `users` lends.

    Raises `AttemptFailed` with the reason, or `Stopped` after the child's tree is gone.
    """
    file = job.write(work.job, work.scratch)
    model, roots, confined = work.job["model"], work.job["source_roots"], _confined(work, None)
    killed_before = oom_kills()
    one = parents.one(prepared.python, model, roots, work.env, confined, heart.check)
    with one if work.sandbox is None else nullcontext() as kept:
        ending = execute(job.command(prepared.python, file), work, prepared, users, logs, heart, kept)
    result = _read_result(work.scratch / "result.json", ending, killed_before)
    parents.saw(prepared.python, model, roots, result.imported)
    return result


def execute(
    argv: Sequence[str],
    work: Work,
    prepared: Prepared,
    users: Users,
    logs: Logs,
    heart: Heart,
    kept: Kept | None = None,
) -> Ending:
    """Run any program in the place of the harness; or the harness on the last of `argv`, as a fork of `kept`. How it ended. Raises as `run` does."""
    written = work.scratch / work.log_file
    written.touch(mode=0o600)
    pump = Pump(logs, work.log_name, written, max_bytes=work.limits.log)
    with users.one() as uid, pump, sandbox.entered(argv, work, prepared) as words:
        if uid is not None:
            users.hand_over(work.scratch, uid)
        with _START:
            child = _start(words, work, written, _confined(work, uid), kept)
        with _WATCH:
            ending = _watch(child, work, heart, prepared)
    return sandbox.ended(ending, written) if work.sandbox is not None else ending


def _start(argv: Sequence[str], work: Work, log: Path, confined: Confined, kept: Kept | None) -> Warded:
    cwd = work.cwd or work.scratch
    if kept is not None:
        try:
            return kept.parent.fork(Path(argv[-1]), log=log, env=work.env, cwd=cwd, cpus=work.cpus)
        except OSError as error:  # it was killed meanwhile; or not, and others may have forks of it
            kept.spend()
            _log.warning("warm_parent_lost", reason=str(error))
    return Warded.start(argv, log=log, env=work.env, cwd=cwd, confined=confined)


def _confined(work: Work, uid: int | None) -> Confined:
    """The kernel counts processes by user, so its own limit of them is for a user who has nothing else; it lies above ours, which has a name."""
    tasks = work.limits.processes + SPARE_TASKS if uid is not None else None
    capability = sandbox.SETFCAP if work.sandbox is not None else None
    return Confined(work.limits.open_files, work.limits.disk, tasks, uid, work.cpus, capability)


def environment(
    names: tuple[str, ...], run: int, prepared: Prepared, scratch: Path, share: Share = Share()
) -> dict[str, str]:
    """All that the author's code sees of our environment: what the operator listed, its share of the machine, and what a program needs to run at all."""
    passed = {}
    for name in names:
        if (value := settings.variable(name)) is None:
            raise AttemptFailed(
                "configuration",
                f"the variable {name} is in pass_env but not set where the worker runs",
                "start the worker with it",
            )
        passed[name] = value
    return {
        **job.variables(prepared.python, str(run), scratch),
        **{name: value for name, value in share.variables().items() if name in GPUS or name not in passed},
        **{name: value for name, value in passed.items() if name not in GPUS},
    }


def source_url(reference: str, pass_env: tuple[str, ...]) -> tuple[str | None, str | None]:
    """The variable that holds a source's URL and the URL itself, as far as the author's code may know them."""
    if not reference.startswith("env:"):
        return None, reference
    name = reference.removeprefix("env:")
    try:
        return name, settings.resolve(reference) if name in pass_env else None
    except ConfigurationError as error:
        raise AttemptFailed("configuration", error.message) from error


def _watch(child: Warded, work: Work, heart: Heart, prepared: Prepared) -> Ending:
    """Wait for the end; on a stop or past a limit the whole tree goes first."""
    deadline = time.monotonic() + work.time_limit.total_seconds()
    events, watched = Events(work.scratch / "events.jsonl"), Watched(child.warden, work.limits, work.scratch)
    silence = Silence((child.log, work.scratch / "events.jsonl"), work.limits.silence)
    try:
        prepared.check()  # beside the child's own start, which takes longer
        while (ending := child.wait(SLICE_S)) is None:
            heart.told = events.read() or heart.told
            heart.check()
            watched.check()
            silence.check()
            if time.monotonic() > deadline:
                limit = work.time_limit.total_seconds()
                raise AttemptFailed("time_limit", f"it ran for longer than {limit:g} s")
    except Stopped as why:
        _stop(child, work, events, why)
        raise
    except BaseException:
        child.terminate(GRACE_S)
        raise
    finally:
        heart.told = events.read() or heart.told
        work.meter.add(child.spent, watched.peak_bytes)
    return ending


def _stop(child: Warded, work: Work, events: Events, why: Stopped) -> None:
    """Code that listens is told, and has the grace to leave a checkpoint; of a lost claim none would count."""
    if events.listens and not isinstance(why, Lost):
        with suppress(OSError):  # a child that has put something else there knows already
            descriptor = os.open(work.scratch / "stop", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644)
            with open(descriptor, "w") as stream:
                stream.write(why.message)
        if child.wait(work.grace_s) is not None:
            return
        child.kill()
    child.terminate(GRACE_S if isinstance(why, Lost) else work.grace_s)


def _read_result(path: Path, ending: Ending, killed_before: int) -> Result:
    try:
        with open_plain(path) as stream:
            said: bytes | None = stream.read(MAX_RESULT_BYTES)
    except (OSError, Refused):
        said = None
    with explained():
        return understand(said, ending, lambda: oom_kills() > killed_before)
