"""The tests of a model's repository, run before it is trained: in its environment, on a copy of its files, within the limits of a training."""

from __future__ import annotations

import os
import re
import shlex
import shutil
from collections.abc import Iterable
from dataclasses import replace

from services.trainer import child
from services.trainer.checkout import Prepared
from services.trainer.failures import AttemptFailed
from services.trainer.heart import Heart
from services.trainer.users import Users
from shared.logs import Logs

_NAMED = re.compile(r"^(?:FAILED|ERROR|FAIL:|ERROR:|not ok) .*$", re.MULTILINE)
"""How pytest, unittest and TAP name a test that has failed."""
_TAIL_BYTES, _LAST_LINES, _MOST_NAMES = 200_000, 20, 10


def run(command: Iterable[str], work: child.Work, prepared: Prepared, users: Users, logs: Logs, heart: Heart) -> None:
    """Run them in `work.scratch`, which is theirs alone. Raises `AttemptFailed` that names the tests, or `Stopped`."""
    words = list(command)
    program = shutil.which(words[0], path=work.env["PATH"])
    if program is None:
        raise AttemptFailed(
            "test_failed",
            f"there is no {words[0]} in the environment to run the tests with; add it to the dependencies, or drop test",
        )
    code = work.scratch / "code"
    shutil.copytree(prepared.checkout, code, symlinks=True)
    # The model's package is not installed: its tests find it as its training does.
    env = {**work.env, "PYTHONPATH": os.pathsep.join([str(code / "src"), str(code)])}
    work = replace(work, env=env, log_file="tests.log", cwd=code)
    ending = child.execute([program, *words[1:]], work, prepared, users, logs, heart)
    if ending.ok:
        return
    if ending.code is None:
        raise AttemptFailed("killed", f"the tests ({shlex.join(words)}) were {ending}", transient=True)
    with open(work.scratch / "tests.log", "rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL_BYTES))
        said = file.read().decode(errors="replace")
    raise AttemptFailed("test_failed", _failure(words, ending.code, said))


def _failure(words: list[str], code: int, said: str) -> str:
    names = list(dict.fromkeys(line.strip() for line in _NAMED.findall(said)))
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    first = "; ".join(names[:_MOST_NAMES]) + more if names else f"{shlex.join(words)} ended with exit code {code}"
    return "\n".join([first[:2000], *said.strip().splitlines()[-_LAST_LINES:]])
