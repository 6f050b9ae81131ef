"""The two others: a script started for each arrival, and a loop that has everything imported. Both run `by_hand.py` in one environment."""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from headrace.environment import Environments, Recipe, find_uv
from packaging.requirements import Requirement

from bench.hook import Hook
from bench.measured import Measured
from bench.rows import Table
from stack.demo.flights import Row

SCRIPT = Path(__file__).with_name("by_hand.py")
TIMEOUT_S = 120.0
PATH = "/usr/local/bin:/usr/bin:/bin"


class NotDone(Exception):
    """The script did not do its work; the message has its last words."""


def build_environment(place: Path, model: Path, cache: Path) -> Path:
    """The model's own environment plus mlflow-skinny, all as the locks of the two have it, built as the platform builds; its Python."""
    place.mkdir()
    environments = Environments(place, find_uv(), cache)
    own = environments.lock(Recipe(model)).text
    pinned = [line.split(" \\")[0].strip() for line in own.splitlines() if "==" in line]
    ours = {Requirement(line).name for line in pinned}
    skinny = [f"{name}=={at}" for name, at in sorted(_closure("mlflow-skinny").items()) if name not in ours]
    project = place / "project"
    project.mkdir()
    (project / "requirements.txt").write_text("\n".join(pinned + skinny) + "\n")
    return environments.build(environments.lock(Recipe(project))) / "bin" / "python"


def _closure(package: str) -> dict[str, str]:
    """The package and all that it needs, in the versions that are installed here."""
    found: dict[str, str] = {}
    wanted = [package]
    while wanted:
        name = wanted.pop().lower().replace("_", "-")
        if name in found:
            continue
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
        needed = [Requirement(line) for line in requires(name) or []]
        wanted += [one.name for one in needed if one.marker is None or one.marker.evaluate({"extra": ""})]
    return found


class Script:
    """A process for each arrival, started as soon as the rows are committed."""

    name = "bare script"

    def __init__(self, python: Path, place: Path, job: dict[str, Any], table: Table, hook: Hook) -> None:
        self._table, self._hook, self._place = table, hook, place
        self._subject = job["name"]
        file = place / f"{self._subject}.json"
        file.write_text(json.dumps(job))
        self._argv = [str(python), "-I", str(SCRIPT), str(file)]
        self._options: dict[str, Any] = {
            "env": {"PATH": PATH, "HOME": str(place), "LANG": "C.UTF-8", "MLFLOW_DISABLE_TELEMETRY": "true"},
            "stderr": (place / "by_hand.log").open("ab"),
            "stdin": subprocess.PIPE,  # at its end the script ends, so that it does not outlive us
            "stdout": subprocess.PIPE,
            "text": True,
        }

    def prepare(self) -> None:
        self._table.make_room()

    def once(self, rows: Sequence[Row]) -> Measured:
        began = self._table.arrive(rows)
        return self._measure(began, self._work())

    def _work(self) -> str:
        with subprocess.Popen([*self._argv, "once"], **self._options) as process:
            return self._read(process)

    def _read(self, process: subprocess.Popen[str]) -> str:
        """The next line that it says; it is killed if that takes too long, or we are stopped."""
        assert process.stdout is not None
        watch = threading.Timer(TIMEOUT_S, process.kill)
        watch.start()
        try:
            if told := process.stdout.readline():
                return told
        except BaseException:
            process.kill()
            raise
        finally:
            watch.cancel()
        log = (self._place / "by_hand.log").read_text(errors="replace")
        raise NotDone(f"the {self.name} ended, or took more than {TIMEOUT_S:g} s; its last words:\n{log[-2000:]}")

    def _measure(self, began: float, told: str) -> Measured:
        receipt = self._hook.wait_promoted(self._subject, began)
        *marks, _ = json.loads(told)  # how long the answer to the webhook took is not looked at
        marks.append(["delivered", receipt.at])
        befores = [began, *(at for _, at in marks)]
        steps = {name: at - before for (name, at), before in zip(marks, befores, strict=False)}
        return Measured(receipt.at - began, steps, {})

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._options["stderr"].close()


class Loop(Script):
    """One process that has everything imported and is poked for each arrival."""

    name = "warm loop"
    _process: subprocess.Popen[str]

    def __enter__(self) -> Self:
        self._process = subprocess.Popen([*self._argv, "warm"], **self._options)
        self._read(self._process)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._process.kill()
        self._process.__exit__(kind, error, trace)  # closes its stdin, which ends it, and waits
        super().__exit__(kind, error, trace)

    def _work(self) -> str:
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return self._read(self._process)
