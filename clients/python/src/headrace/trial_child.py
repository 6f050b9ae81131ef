"""A child of a try: the harness, or the tests, under a warden, within the limits that hold where the operator says nothing."""

from __future__ import annotations

import codecs
import json
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

from headrace import job, outcome
from headrace.outcome import Result, RunFailed, oom_kills
from headrace.own_tests import Start
from headrace.warded import Confined, Ending, Warded

OPEN_FILES, DISK_BYTES = 4096, 50 * 1000**3
RUN = "0"
_SLICE_S = 0.1
_GRACE_S = 5.0

Say = Callable[[str], None]


def carry_out(told: Mapping[str, Any], python: Path, limit: timedelta | None, write: Say, say: Say) -> Result:
    """Carry out a job of the harness. Raises `RunFailed`."""
    scratch, killed = Path(told["scratch"]), oom_kills()
    argv = job.command(python, job.write(told, scratch))
    ending = run(Start(argv, job.variables(python, RUN, scratch), scratch), scratch, limit, write, say)
    result = scratch / "result.json"
    said = result.read_bytes() if result.is_file() else None
    return outcome.understand(said, ending, lambda: oom_kills() > killed)


def run(start: Start, scratch: Path, limit: timedelta | None, write: Say, say: Say) -> Ending:
    """Run a program to its end; `write` gets what it prints, `say` its progress. Raises `RunFailed` past the limit of time.

    However it ends, nothing that it started is left.
    """
    log, events = scratch / "output.log", Tail(scratch / "events.jsonl", whole_lines=True)
    log.touch(mode=0o600)
    output, confined = Tail(log), Confined(OPEN_FILES, DISK_BYTES)
    child = Warded.start(start.argv, log=log, env=start.env, cwd=start.cwd, confined=confined)
    began = time.monotonic()
    try:
        ending = None
        while ending is None:
            ending = child.wait(_SLICE_S)
            write(output.read())
            for line in events.read().splitlines():
                _tell(line, say)
            if ending is None and limit is not None and time.monotonic() - began > limit.total_seconds():
                child.terminate(_GRACE_S)
                raise RunFailed("time_limit", f"it ran for longer than {limit.total_seconds():g} s")
    finally:
        child.kill()
    return ending


def _tell(line: str, say: Say) -> None:
    try:
        event = json.loads(line)
        if event["event"] == "progress":
            say(f"{event['fraction']:.0%} {event['note']}".strip())
    except (ValueError, KeyError, TypeError):
        return  # the author's code can write there too


class Tail:
    """What is new in a file since the last look; of an unfinished line nothing where `whole_lines` are wanted."""

    def __init__(self, path: Path, *, whole_lines: bool = False) -> None:
        self._path, self._whole_lines = path, whole_lines
        self._offset = 0
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode

    def read(self) -> str:
        try:
            with self._path.open("rb") as stream:
                stream.seek(self._offset)
                found = stream.read()
        except FileNotFoundError:
            return ""
        if self._whole_lines:
            found = found[: found.rfind(b"\n") + 1]
        self._offset += len(found)
        return self._decode(found)
