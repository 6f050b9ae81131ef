"""What the harness is told, and what its process is given: alike for the platform's trainer and for `headrace try`.

The job file is described in `harness.py`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

HARNESS = Path(__file__).with_name("harness.py")
LOADER = Path(__file__).with_name("loader.py")
LANGUAGE = "C.UTF-8"  # of every child: what it prints is UTF-8
ENTRIES = ("train", "command", "evaluate", "evaluate_command", "export", "predict", "load")
"""The keys of [tool.headrace] that the harness goes by."""


def describe(
    action: str,
    *,
    run: str,
    model: str,
    checkout: Path,
    scratch: Path,
    entries: Mapping[str, Any],
    parameters: Mapping[str, Any],
    datasets: Mapping[str, Any],
) -> dict[str, Any]:
    """A job; `entries` has all of `ENTRIES`, `datasets` are made by `sql` and `reported`."""
    return {
        "action": action,
        "run": run,
        "model": model,
        "checkout": str(checkout),
        "source_roots": [str(checkout / "src"), str(checkout)],
        "output": str(scratch / "output"),
        "scratch": str(scratch),
        **{key: entries[key] for key in ENTRIES},
        "loader": str(LOADER),
        "parameters": dict(parameters),
        "datasets": dict(datasets),
    }


def unjudged(told: Mapping[str, Any]) -> dict[str, Any]:
    """The same job where no rows are held out."""
    return {**told, "evaluate": None, "evaluate_command": None}


def sql(
    table: str,
    cursor: str,
    url: str | None,
    url_variable: str | None,
    *,
    train: Mapping[str, Any] | None,
    holdout: Mapping[str, Any] | None,
    time_column: str | None = None,
) -> dict[str, Any]:
    """Rows of a table in a database. A range has above, upto, rows, newest, since."""
    both = {"train": train, "holdout": holdout}
    return {
        "kind": "sql",
        "table": table,
        "cursor": cursor,
        "url_variable": url_variable,
        "url": url,
        **{part: which and _rows(table, cursor, time_column, which) for part, which in both.items()},
    }


def reported(kind: str, *, train: Mapping[str, Any] | None, holdout: Mapping[str, Any] | None) -> dict[str, Any]:
    """Data that is only told about: `kind` is rest or stream."""
    return {"kind": kind, "train": train and dict(train), "holdout": holdout and dict(holdout)}


def write(job: Mapping[str, Any], scratch: Path) -> Path:
    """The job file in its scratch directory, which only its owner may look into."""
    scratch.mkdir(parents=True, exist_ok=True)
    scratch.chmod(0o700)
    file = scratch / "job.json"
    file.write_text(json.dumps(job))
    return file


def command(python: Path, file: Path) -> list[str]:
    """What carries out a job file in a model's environment."""
    return [str(python), "-I", str(HARNESS), str(file)]


def variables(python: Path, run: str, scratch: Path) -> dict[str, str]:
    """All that the author's code sees of variables, before those that the operator passes: what a program needs to run at all."""
    home = scratch / "home"
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    return {
        "PATH": f"{python.parent}:/usr/local/bin:/usr/bin:/bin",
        "HOME": str(home),
        "TMPDIR": str(home),
        "LANG": LANGUAGE,
        "PYTHONUNBUFFERED": "1",
        "HEADRACE_RUN_ID": run,
    }


def _rows(table: str, cursor: str, time_column: str | None, which: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "table": table,
        "cursor": cursor,
        "cursor_type": "integer" if isinstance(which["upto"], int) else "timestamp",
        "above": which["above"],
        "upto": which["upto"],
        "newest": which["newest"],
        "time_column": time_column,
        "since": which["since"],
        "rows": which["rows"],
    }
