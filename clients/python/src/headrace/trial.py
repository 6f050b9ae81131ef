"""A training without a platform, on an author's own machine, by the platform's own means: its environments, its harness, its warden.

In: a repository's working tree, and rows. Out: what the platform would store and judge. Never: anything left behind but the environment.
"""

from __future__ import annotations

import json
import math
import os
import shlex
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

from headrace import bundle, declared, job, outcome, own_tests, trial_child, trial_data, working_tree
from headrace.connection import Problem
from headrace.declared import Declared
from headrace.environment import EnvironmentFailed, EnvironmentRefused, Environments, Recipe, find_uv
from headrace.indexes import split
from headrace.outcome import RunFailed
from headrace.trial_child import Say
from headrace.trial_data import Rows, Wanted
from headrace.trial_report import Report, judge

LOG_BYTES = 10_000_000
_MEND = "mend it and try again; the output above has the whole of it"
_ADVICE = {
    "author_error": _MEND,
    "bad_exit": _MEND,
    "test_failed": _MEND,
    "environment": "mend the requirements and try again",
    "time_limit": "raise time_limit in pyproject.toml (the operator's own holds too), or make the training shorter",
    "out_of_memory": "train on fewer rows (--sample) or in smaller batches; the platform may have machines with more memory",
    "killed": "look for what killed it",
}


@dataclass(frozen=True)
class Asked:
    """What to try. `python`: run in the environment of this one, and build none."""

    repository: Path
    data: Sequence[str] = ()
    wanted: Wanted = field(default_factory=Wanted)
    index_url: str | None = field(default=None, repr=False)
    python: Path | None = None


class Trial:
    """One repository on one machine. `say` gets a line about each step, `write` what the author's code prints, as it comes."""

    def __init__(self, asked: Asked, scratch: Path, say: Say, write: Say) -> None:
        self._asked, self._scratch, self._say, self._write = asked, scratch, say, write
        self._checkout = scratch / "checkout"

    def run(self) -> Report:
        """Train, save, load back, evaluate; then load and evaluate in a process of its own, as a champion is. Raises `RunFailed`, `Problem`."""
        taken = working_tree.copy(self._asked.repository, self._checkout)
        found = declared.read(self._checkout)
        self._say(_introduced(self._asked.repository, found, taken))
        rows = self._rows(found)
        python, requirements, seconds = self._prepare()
        if found.test is not None:
            seconds |= self._run_tests(found.test, python, found.time_limit)
        told = self._job("train", "train", found, rows)
        result = trial_child.carry_out(told, python, found.time_limit, self._write, self._say)
        output = self._scratch / "train" / "output"
        bundle.complete(output, self._checkout, requirements, self._log_of("train"))
        files = bundle.check(output)
        metrics = result.metrics if found.judged and _held_out(rows) else None
        remarks = self._again(found, rows, python, result.metrics) if found.can_score and _held_out(rows) else []
        if found.judged and not _held_out(rows):
            remarks = ["no rows were held out, so nothing was evaluated; the platform would give no verdict"]
        return Report(
            metrics,
            {**seconds, **result.seconds},
            _json(output / "model" / "headrace.json"),
            _json(output / "signature.json"),
            files,
            tuple(judge(metrics, found.gates)),
            tuple(remarks),
        )

    def _run_tests(self, words: list[str], python: Path, limit: timedelta | None) -> dict[str, float]:
        """How long the repository's own tests took."""
        scratch, began = self._scratch / "tests", time.monotonic()
        scratch.mkdir()
        self._say(f"running the tests: {shlex.join(words)}")
        start = own_tests.lay_out(words, self._checkout, scratch, job.variables(python, trial_child.RUN, scratch))
        ending = trial_child.run(start, scratch, limit, self._write, self._say)
        own_tests.check(words, ending, scratch / "output.log")
        return {"test": round(time.monotonic() - began, 4)}

    def _log_of(self, folder: str) -> bytes:
        return (self._scratch / folder / "output.log").read_bytes()[:LOG_BYTES]

    def _rows(self, found: Declared) -> list[tuple[str, Rows]]:
        told = trial_data.named(self._asked.data, found.datasets)
        rows = []
        for name, use in found.datasets.items():
            where = trial_data.find(name, told.get(name), self._asked.repository)
            rows.append((name, trial_data.read(name, where, use, self._asked.wanted, self._scratch)))
            self._say(rows[-1][1].sentence)
        return rows

    def _prepare(self) -> tuple[Path, str, dict[str, float]]:
        """The environment's Python, its locked requirements, and how long it took."""
        if self._asked.python is not None:
            self._say(
                f"in the environment of {self._asked.python}; whether your requirements hold all of it is not known"
            )
            return self._asked.python, "", {}
        began, uv = time.monotonic(), _uv()
        index_url = self._asked.index_url or os.environ.get("HEADRACE_INDEX_URL") or None
        try:
            place = _cache("headrace", "HEADRACE_CACHE") / "environments"
            environments = Environments(place, uv, _cache("uv", "UV_CACHE_DIR"))
            recipe = Recipe(self._checkout, index_url=index_url, constraints=_constraints(), extra_index_urls=_extra())
            locked = environments.lock(recipe)
            said: list[str] = []

            def progress(text: str) -> None:
                if said[-1:] != [text]:
                    said.append(text)
                    self._say(text)

            place = environments.build(locked, on_progress=progress)
            environments.check(place)
        except (EnvironmentRefused, EnvironmentFailed) as error:
            transient = isinstance(error, EnvironmentFailed) and error.transient
            raise RunFailed("environment", error.message, transient=transient) from error
        took = time.monotonic() - began
        self._say(f"environment {locked.digest[:12]}: {'built' if said else 'there already'}, {took:.1f} s")
        return place / "bin" / "python", locked.text, {"environment": round(took, 4)}

    def _job(self, action: str, folder: str, found: Declared, rows: list[tuple[str, Rows]]) -> dict[str, Any]:
        told = job.describe(
            action,
            run=trial_child.RUN,
            model=found.name or self._asked.repository.name,
            checkout=self._checkout,
            scratch=self._scratch / folder,
            entries=found.entries,
            parameters=found.parameters,
            datasets={name: each.described for name, each in rows},
        )
        (self._scratch / folder / "output").mkdir(parents=True)
        return told if _held_out(rows) else job.unjudged(told)

    def _again(
        self, found: Declared, rows: list[tuple[str, Rows]], python: Path, metrics: dict[str, float] | None
    ) -> list[str]:
        """The saved model scored once more, in a process that has not trained it, as a champion is beside the next candidate."""
        told = self._job("evaluate", "score", found, rows) | {
            "model_dir": str(self._scratch / "train" / "output" / "model")
        }
        try:
            result = trial_child.carry_out(told, python, found.time_limit, _unheard, _unheard)
        except RunFailed as error:
            why = "it was trained, but loaded and evaluated in another process, as a champion is, it failed"
            raise RunFailed(error.kind, f"{why}: {error.message}", error.advice, transient=error.transient) from error
        return [
            f"{name} was {value:.6g} and, evaluated again, {(result.metrics or {}).get(name, math.nan):.6g}: evaluate() is not deterministic"
            for name, value in (metrics or {}).items()
            if not math.isclose(value, (result.metrics or {}).get(name, math.nan), rel_tol=1e-6, abs_tol=1e-12)
        ]


def attempt(asked: Asked, say: Say, write: Say) -> Report:
    """Try it, in a directory that goes away. Raises `RunFailed` with an advice for an author, and `Problem`."""
    with tempfile.TemporaryDirectory(prefix="headrace-try-") as scratch:
        try:
            return Trial(asked, Path(scratch).resolve(), say, write).run()
        except RunFailed as error:
            if error.advice == outcome.ADVICE.get(error.kind):  # which speaks of the platform's own places
                error.advice = _ADVICE.get(error.kind, error.advice)
            raise
        except OSError as error:
            what = f"{error.strerror or error}: {error.filename or ''}".rstrip(": ")
            raise RunFailed("infrastructure", what, "look at this machine's disk and memory", transient=True) from error


def _introduced(repository: Path, found: Declared, taken: working_tree.Taken) -> str:
    name = " ".join(filter(None, (found.name or repository.name, found.version)))
    if taken.commit is None:
        return f"{name}: the files as they are; there is no commit yet, and the platform takes only what is committed"
    if not taken.changed:
        return f"{name}: commit {taken.commit[:12]}"
    shown = ", ".join(taken.changed[:5]) + (f" and {len(taken.changed) - 5} more" if len(taken.changed) > 5 else "")
    return f"{name}: commit {taken.commit[:12]} and what is not committed: {shown}"


def _held_out(rows: Sequence[tuple[str, Rows]]) -> bool:
    """Whether there are rows to judge on: the scarcest dataset decides, as on the platform."""
    known = [each.held_out for _, each in rows]
    return None in known or 0 not in known


def _unheard(text: str) -> None:
    return


def _json(path: Path) -> dict[str, Any]:
    found = json.loads(path.read_bytes()) if path.is_file() else {}
    return found if isinstance(found, dict) else {}


def _uv() -> Path:
    try:
        return find_uv()
    except EnvironmentFailed as error:
        raise Problem(
            error.message, "or run in an environment that is there already: --python .venv/bin/python"
        ) from error


def _extra() -> tuple[str, ...]:
    try:
        return split(os.environ.get("HEADRACE_EXTRA_INDEX_URLS") or "")
    except ValueError as error:
        raise Problem(f"HEADRACE_EXTRA_INDEX_URLS: {error}") from error


def _constraints() -> str | None:
    """The operator's, if the author has been given a copy."""
    path = os.environ.get("HEADRACE_CONSTRAINTS")
    try:
        return Path(path).read_text() if path else None
    except (OSError, ValueError) as error:
        raise Problem(
            f"HEADRACE_CONSTRAINTS: {path} cannot be read ({error})", "name a file of this machine"
        ) from error


def _cache(name: str, variable: str) -> Path:
    """The user's own, as the XDG rules have it; uv's is shared with the author's other environments."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(os.environ.get(variable) or os.path.join(home, name))
