"""What a repository says of itself in `[project]` and `[tool.headrace]`, read without the platform.

The platform's own rules need packages that the client does not have; a test holds what is taken and refused here against them.
"""

from __future__ import annotations

import shlex
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

from headrace import declaration_rules
from headrace.declaration_rules import DURATION, UNIT_MS
from headrace.job import ENTRIES
from headrace.outcome import RunFailed

_MAX_BYTES = 1024**2


@dataclass(frozen=True)
class Use:
    """How much of a dataset is trained on."""

    rows: int | None = None
    history: timedelta | None = None


@dataclass(frozen=True)
class Declared:
    """A release before it is one. `entries` has all of `job.ENTRIES`; `gates` has the limits of each metric as they are written."""

    name: str | None
    version: str | None
    entries: Mapping[str, Any]
    datasets: Mapping[str, Use]
    gates: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    parameters: Mapping[str, Any] = field(default_factory=dict)
    time_limit: timedelta | None = None
    test: list[str] | None = None

    @property
    def judged(self) -> bool:
        """Whether there are metrics where rows are held out: of an evaluation, or those that a command may have written."""
        return any(self.entries[key] for key in ("evaluate", "evaluate_command", "command"))

    @property
    def can_score(self) -> bool:
        """Whether a saved model can be scored again."""
        return bool(self.entries["evaluate"] or self.entries["evaluate_command"])


def read(checkout: Path) -> Declared:
    """Of the pyproject.toml there. Raises `RunFailed` of the kind `refused`, with a line for each thing that is wrong."""
    document = _toml(checkout / "pyproject.toml")
    found, tool = document.get("project"), document.get("tool")
    project: dict[str, Any] = found if isinstance(found, dict) else {}
    own = tool.get("headrace") if isinstance(tool, dict) else None
    if not isinstance(own, dict):
        raise _refused(['[tool.headrace] is missing; add it with train = "module:function", or see `headrace init`'])
    if problems := [*declaration_rules.project(project), *declaration_rules.tool(own)]:
        raise _refused(problems)
    return Declared(
        project.get("name"),
        project.get("version"),
        {key: _entry(key, own.get(key)) for key in ENTRIES},
        {name: Use(use.get("rows"), _span(use.get("history"))) for name, use in own["datasets"].items()},
        own.get("gates", {}),
        own.get("parameters", {}),
        _span(own.get("time_limit")),
        _entry("test", own.get("test")),
    )


def _entry(key: str, value: Any) -> Any:
    if key == "export":
        return True if value is None else value
    return shlex.split(value) if key in ("command", "evaluate_command", "test") and isinstance(value, str) else value


def _span(text: str | None) -> timedelta | None:
    found = DURATION.fullmatch(text) if text is not None else None
    return timedelta(milliseconds=int(found[1]) * UNIT_MS[found[2]]) if found else None


def _toml(path: Path) -> dict[str, Any]:
    try:
        raw = path.read_bytes()
        if len(raw) > _MAX_BYTES:
            raise _refused(["the file is larger than 1 MiB; this is not a configuration"])
        return tomllib.loads(raw.decode())
    except FileNotFoundError:
        raise _refused(["there is none; `headrace init` makes one"]) from None
    except RecursionError:
        raise _refused(["nested too deep; nothing here needs that"]) from None
    except ValueError as error:
        raise _refused([f"not TOML in UTF-8: {error}"]) from error


def _refused(problems: list[str]) -> RunFailed:
    lines = "\n".join(f"pyproject.toml: {problem}" for problem in problems)
    return RunFailed("refused", lines, "the platform would refuse this release: mend pyproject.toml")
