"""What is taken from a command that has ended: its model and its metrics, if they are its own. Loaded by the harness.

`place` is where it started, a copy of the repository, and `before` the `state` of that: what lay there already is of an older training.
`logged` is its run in the private MLflow store, or None.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

METRICS_ADVICE = "write an object of numbers by name to the file that HEADRACE_METRICS names"
# How a file of this name is read, unless the `load` entry says how. By joblib where it is installed, which reads plain pickles too.
_KNOWN = {
    "model.joblib": "joblib",
    "model.pkl": "pickled",
    "model.pickle": "pickled",
    "model.keras": "keras",
    "model.onnx": "onnx",
    "model.ubj": "xgboost",
}


class NothingLeft(Exception):
    """It ended well and left nothing that could be taken."""

    kind = "bad_output"
    tail = ""


def collect(place: Path, before: dict[str, Any], logged: Any, output: Path, load: str | None) -> dict[str, Any]:
    """The model's files into `output`; what headrace.json says of how they are read. `load` is the entry of that name."""
    if any(output.iterdir()):
        return _described(output, load)
    if logged is not None and logged.model is not None:
        shutil.copytree(logged.model, output / "mlflow", symlinks=True)
        return {"format": "mlflow", "file": "mlflow"}
    for path in (path for path in sorted(place.iterdir()) if path.name.partition(".")[0] == "model"):
        if path.name not in before or before[path.name] != _stamp(path):
            copy = shutil.copytree if path.is_dir() else shutil.copy2
            copy(path, output / path.name)
    if not any(output.iterdir()):
        raise NothingLeft(
            "the command left no model; write its files into the directory that HEADRACE_MODEL_DIR names, "
            "or one called model or model.* where it starts, or log it to MLflow"
        )
    return _described(output, load)


def metrics(place: Path, before: dict[str, Any], logged: Any) -> dict[str, Any] | None:
    """Those of a metrics.json that the command wrote (one that lies in the repository is an old one), else of MLflow."""
    file = place / "metrics.json"
    if file.is_file() and before.get(file.name) != _stamp(file):
        try:
            found: dict[str, Any] = json.loads(file.read_bytes())
        except (ValueError, RecursionError) as error:
            raise NothingLeft(f"metrics.json is no JSON ({error}); {METRICS_ADVICE}") from error
        return found
    return logged.metrics if logged is not None and logged.metrics else None


def _described(output: Path, load: str | None) -> dict[str, Any]:
    found = next((name for name in _KNOWN if (output / name).is_file()), None) if load is None else None
    if found is None:
        return {"format": "own"}
    return {
        "format": _KNOWN[found],
        "file": found,
        **({"library": "keras", "imports": []} if found == "model.keras" else {}),
    }


def state(place: Path) -> dict[str, Any]:
    return {path.name: _stamp(path) for path in place.iterdir()}


def _stamp(path: Path) -> Any:
    return None if path.is_dir() else (path.lstat().st_mtime_ns, path.lstat().st_size, path.lstat().st_ino)
