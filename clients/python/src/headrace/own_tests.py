"""The tests of a model's repository, as they run before it is trained: alike for the platform's trainer and for `headrace try`."""

from __future__ import annotations

import os
import re
import shlex
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from headrace.outcome import RunFailed
from headrace.warded import Ending

_NAMED = re.compile(r"^(?:FAILED|ERROR|FAIL:|ERROR:|not ok) .*$", re.MULTILINE)
"""How pytest, unittest and TAP name a test that has failed."""
_TAIL_BYTES, _LAST_LINES, _MOST_NAMES = 200_000, 20, 10


@dataclass(frozen=True)
class Start:
    """A command to start in `cwd` with `env`."""

    argv: Sequence[str]
    env: Mapping[str, str]
    cwd: Path


def lay_out(words: Sequence[str], checkout: Path, scratch: Path, env: Mapping[str, str]) -> Start:
    """Copy the repository into `scratch`, so that tests that write change nothing of what is trained. Raises `RunFailed`."""
    program = shutil.which(words[0], path=env["PATH"])
    if program is None:
        what = (
            f"there is no {words[0]} in the environment to run the tests with; add it to the dependencies, or drop test"
        )
        raise RunFailed("test_failed", what)
    code = scratch / "code"
    shutil.copytree(checkout, code, symlinks=True)
    # The model's package is not installed: its tests find it as its training does.
    paths = os.pathsep.join([str(code / "src"), str(code)])
    return Start([program, *words[1:]], {**env, "PYTHONPATH": paths}, code)


def check(words: Sequence[str], ending: Ending, log: Path) -> None:
    """Raise `RunFailed` with the names of the tests that have failed, and the end of what was said."""
    if ending.ok:
        return
    if ending.code is None:
        raise RunFailed("killed", f"the tests ({shlex.join(words)}) were {ending}", transient=True)
    with open(log, "rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL_BYTES))
        said = file.read().decode(errors="replace")
    names = list(dict.fromkeys(line.strip() for line in _NAMED.findall(said)))
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    first = (
        "; ".join(names[:_MOST_NAMES]) + more if names else f"{shlex.join(words)} ended with exit code {ending.code}"
    )
    raise RunFailed("test_failed", "\n".join([first[:2000], *said.strip().splitlines()[-_LAST_LINES:]]))
