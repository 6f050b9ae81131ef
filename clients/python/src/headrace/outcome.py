"""How a training, or a scoring, has ended: what its harness said, or what the end of its process tells.

Alike for the platform's trainer and for `headrace try`.
"""

from __future__ import annotations

import json
import math
import re
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headrace.warded import Ending

MAX_RESULT_BYTES = 10_000_000
MAX_METRICS = 1000
MAX_MODULES = 20_000
UNWRITTEN = 120  # Python's own exit code where what it printed could not be written
_MODULE = re.compile(r"[A-Za-z_]\w*(\.\w+)*")
_SAID = ("author_error", "invalid_metric", "bad_output", "disk_limit", "out_of_memory", "infrastructure")
_MEND = "mend the code and tag a new release; `headrace logs` has the whole output"
ADVICE = {
    "author_error": _MEND,
    "test_failed": "mend the code or its test, and tag a new release; `headrace logs` has the whole output",
    "invalid_metric": "return finite numbers under plain names from evaluate(), and log no others",
    "bad_output": "return the model from train(), or save plain files into job.output",
    "bad_exit": _MEND,
    "out_of_memory": "train on fewer rows or smaller batches, or choose a compute_class with more memory",
    "killed": "look into the log of the machine for what killed it",
    "time_limit": "raise time_limit in headrace.toml or make the training shorter",
    "no_output": "raise limits.silence of the model in headrace.toml, or print or call job.progress more often",
    "configuration": "set what is missing where the worker runs, and `headrace retry`",
    "repository": "see that the worker reaches the repository; `headrace why` has the watcher's last look at it",
    "environment": "mend the requirements and tag a new release",
    "infrastructure": "look at the worker's own log, its disk and its memory",
    "refused": _MEND,
}
"""What a person can do, by the kind of a failure, where whoever met it knew nothing better."""


class RunFailed(Exception):
    """Why there is no model, as the platform classifies it; `transient` if trying again may help."""

    def __init__(self, kind: str, message: str, advice: str = "", *, transient: bool = False) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.advice = advice or ADVICE.get(kind, "")
        self.transient = transient


@dataclass(frozen=True)
class Result:
    """What the harness says of a child that did its work: metrics of `evaluate`, seconds of each phase, and modules that it imported besides
    those that its parent had; None where these went by variables that were set before."""

    metrics: dict[str, float] | None
    seconds: dict[str, float]
    imported: tuple[str, ...] | None = ()


def understand(said: bytes | None, ending: Ending, starved: Callable[[], bool]) -> Result:
    """The result in `said`, what stands in result.json if that is a plain file. `starved`: whether the kernel has killed for want of memory meanwhile.

    Raises `RunFailed`.
    """
    try:
        result = json.loads(said or b"")
        if not isinstance(result, dict):
            raise ValueError("not an object")
    except (ValueError, RecursionError):
        raise without_result(ending, starved) from None
    if result.get("ok") is True and ending.ok:
        return _result(result)
    if result.get("ok") is True:
        raise without_result(ending, starved)
    if result.get("kind") == "stopped":  # by a SIGTERM that did not come from us
        raise RunFailed("killed", "the training was told to stop by a SIGTERM from outside", transient=True)
    kind = result.get("kind")
    trace = f"\n{text(result['traceback'])}" if result.get("traceback") else ""
    message = f"{text(result.get('message', 'no message'))}{trace}"[:8000]
    raise RunFailed(kind if kind in _SAID else "author_error", message, transient=kind == "infrastructure")


def without_result(ending: Ending, starved: Callable[[], bool]) -> RunFailed:
    """What a process died of that left no result."""
    if ending.signal == signal.SIGXFSZ:
        return RunFailed(
            "disk_limit", "it wrote a file larger than its limit", "raise limits.disk of the model in headrace.toml"
        )
    if ending.signal == signal.SIGKILL and starved():
        message = "the kernel killed it, for the memory of the machine, or of the container, had run out"
        return RunFailed("out_of_memory", message, transient=True)
    if ending.signal == signal.SIGSEGV:
        advice = "a compiled library crashed: try other versions of those that it imports"
        return RunFailed("killed", f"the training process was {ending}", advice, transient=True)
    if ending.code == UNWRITTEN:
        message = "the worker's disk was full: neither its output nor its result could be written"
        return RunFailed("infrastructure", message, transient=True)
    if ending.signal is not None or ending.code is None:
        return RunFailed("killed", f"the training process was {ending}", transient=True)
    return RunFailed("bad_exit", f"the training process ended with {ending} and left no result")


def oom_kills(counters: Path = Path("/proc/vmstat")) -> int:
    """How many processes the kernel has killed for want of memory, on this machine since its start; 0 where it does not say."""
    with suppress(OSError):
        for line in counters.read_text().splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    return 0


def check_metrics(value: object) -> dict[str, float]:
    """Finite numbers under short names, for anything else could pass a gate for good. Raises `ValueError` (`invalid_metric`)."""
    if not isinstance(value, dict) or len(value) > MAX_METRICS:
        raise ValueError(f"invalid_metric: evaluate() must return a dictionary of at most {MAX_METRICS:,} metrics")
    for name, number in value.items():
        if not isinstance(name, str) or not 0 < len(name) <= 250 or not name.isprintable():
            raise ValueError("invalid_metric: a metric has a name of 1 to 250 printable characters")
        if type(number) not in (int, float) or abs(number) > sys.float_info.max or math.isnan(number):
            raise ValueError(f"invalid_metric: {name} is no finite number")
    return {name: float(number) for name, number in value.items()}


def text(value: object) -> str:
    """Text that can be stored and sent: what the author's code says may hold halves of characters, as file names in another encoding do."""
    return str(value).encode(errors="replace").decode()


def _result(said: dict[str, Any]) -> Result:
    """The author's code shares the harness's process, so what it says is checked like any other input."""
    try:
        found = check_metrics(said["metrics"]) if said.get("metrics") is not None else None
        seconds = check_metrics(said.get("seconds", {}))
    except ValueError as error:
        raise RunFailed("bad_output", str(error), "mend the code and tag a new release") from error
    return Result(found, seconds, _modules(said.get("imported", [])))


def _modules(value: object) -> tuple[str, ...] | None:
    if value is None:
        return None
    named = value if isinstance(value, list) and len(value) <= MAX_MODULES else []
    return tuple(name for name in named if isinstance(name, str) and len(name) <= 200 and _MODULE.fullmatch(name))
