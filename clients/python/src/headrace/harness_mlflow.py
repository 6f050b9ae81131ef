"""What a script has logged to MLflow, read from the private file store that it was given. Loaded by the harness; needs no MLflow.

The store is laid out by the MLflow of the model's environment, 2 or 3: EXPERIMENT/RUN/{meta.yaml, params, metrics, tags, artifacts}; a
model lies in EXPERIMENT/models/m-…/artifacts (3) or in a directory with an MLmodel among the run's artifacts (2).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

_LINE = re.compile(r"^(\w+): *'?([^'\n]*?)'? *$", re.MULTILINE)
_MOST_CHARS = 10_000_000


def variables(store: Path) -> dict[str, str]:
    """What makes every MLflow log into `store`, whatever else its configuration says."""
    uri = f"file://{quote(str(store))}"
    return {
        "MLFLOW_TRACKING_URI": uri,
        "MLFLOW_REGISTRY_URI": uri,
        "MLFLOW_ALLOW_FILE_STORE": "true",  # from 3.17 on it is refused without
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }


class LoggedRun:
    """What one run of a script has logged; `models` are directories with an MLmodel, the last one last."""

    def __init__(self, place: Path, models: list[tuple[int, Path]]) -> None:
        self._place = place
        self.parameters = {name: _text(path) for name, path in _files(place / "params")}
        self.history = [point for name, path in _files(place / "metrics") for point in _points(name, path)]
        self._models = sorted([*models, *_models_2(place / "artifacts")])

    @property
    def metrics(self) -> dict[str, float]:
        """The last value of each, as MLflow shows it."""
        ordered = sorted(self.history, key=lambda point: (point["step"], point["timestamp_ms"]))
        return {point["key"]: point["value"] for point in ordered}

    @property
    def model(self) -> Path | None:
        return self._models[-1][1] if self._models else None

    def artifacts(self) -> Iterator[tuple[str, Path]]:
        """Files that belong to no model, by their names with / for directories."""
        for name, path in _files(self._place / "artifacts"):
            if not any(model in path.parents for _, model in self._models):
                yield name, path


def last_run(store: Path) -> LoggedRun | None:
    """The last run that the script began by itself (not within another), one with a model before one without; None if nothing was logged.

    From MLflow 3 on a model may be logged outside of any run; it counts as the run's.
    """
    models = list(_models_3(store))
    found: list[tuple[bool, int, LoggedRun]] = []
    for meta in store.glob("[!.]*/*/meta.yaml"):
        told = _told(meta)
        within = (meta.parent / "tags" / "mlflow.parentRunId").exists()
        if "run_id" in told and told.get("lifecycle_stage") == "active" and not within:
            mine = [(created, path) for created, run, path in models if run in (told["run_id"], None)]
            run = LoggedRun(meta.parent, mine)
            found.append((run.model is not None, int(told.get("start_time") or 0), run))
    if found:
        return max(found, key=lambda one: one[:2])[2]
    outside = [(created, path) for created, run, path in models if run is None]
    return LoggedRun(store / "no run", outside) if outside else None


def _models_3(store: Path) -> Iterator[tuple[int, str | None, Path]]:
    """When it was logged, by which run, and where it lies."""
    for meta in store.glob("[!.]*/models/m-*/meta.yaml"):
        told = _told(meta)
        if (meta.parent / "artifacts" / "MLmodel").is_file():
            run = told.get("source_run_id")
            yield (
                int(told.get("creation_timestamp") or 0),
                None if run in ("", "null") else run,
                meta.parent / "artifacts",
            )


def _models_2(artifacts: Path) -> Iterator[tuple[int, Path]]:
    for path in artifacts.rglob("MLmodel"):
        digits = re.sub(r"\D", "", _told(path).get("utc_time_created", ""))
        yield int(digits or 0), path.parent


def _told(path: Path) -> dict[str, str]:
    """The plain values at the top of a YAML file."""
    return dict(_LINE.findall(_text(path)))


def _points(name: str, path: Path) -> Iterator[dict[str, Any]]:
    """Lines of `timestamp value step`, and more in later versions; what is no finite number is left out."""
    for line in dict.fromkeys(_text(path).splitlines()):  # autologging writes some twice
        try:
            stamp, value, step = (*line.split(), "0")[:3]
            point = {"key": name, "value": float(value), "step": int(step), "timestamp_ms": int(stamp)}
        except ValueError:
            continue
        if math.isfinite(float(value)):
            yield point


def _files(root: Path) -> Iterator[tuple[str, Path]]:
    for path in sorted(root.rglob("*")):
        if path.is_file() and not path.is_symlink():
            yield path.relative_to(root).as_posix(), path


def _text(path: Path) -> str:
    with path.open(encoding="utf-8", errors="replace") as stream:
        return stream.read(_MOST_CHARS)
