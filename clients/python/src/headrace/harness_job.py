"""The job that an author's function is given, and what it leaves in the output directory. Loaded by the harness."""

from __future__ import annotations

import json
import math
import numbers
import os
import re
import shutil
import sys
import time
from pathlib import Path
from typing import Any

_METRIC = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./ -]{0,249}")
_PLOT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}\.(png|svg|html|json|txt)")
_MOST_POINTS = 100_000
_MOST_METRICS = 1_000
_MOST_BYTES = 64 * 1024**2
_EXAMPLE_ROWS = 5
_PROGRESS_S = 0.1  # between two events: a progress() in an inner loop must not fill the disk


class InvalidMetric(ValueError):
    """A metric that is no finite number under a plain name."""


class TrainingJob:
    """See `headrace.training.TrainingJob`, which describes every member for authors."""

    def __init__(self, job: dict[str, Any], datasets: dict[str, Any], checkpoints: Any) -> None:
        """`checkpoints` is the module `harness_checkpoint`."""
        self.run: str = job["run"]
        self.model: str = job["model"]
        self.datasets = datasets
        self.parameters: dict[str, Any] = dict(job.get("parameters") or {})
        self.output = Path(job["output"]) / "model"
        self.scratch = Path(job["scratch"]) / "work"
        self.example: Any = None
        self._bundle = Path(job["output"])
        self._events = Path(job["scratch"]) / "events.jsonl"
        self._history: list[dict[str, Any]] = []
        self._next_step: dict[str, int] = {}
        self._logged: dict[str, Any] = dict(self.parameters)
        self._progress_at = -math.inf
        self.Stopped = checkpoints.Stopped
        self._checkpoints = checkpoints.Checkpoints(job, lambda: self.tell("listens"))
        for folder in (self.output, self.scratch):
            folder.mkdir(parents=True, exist_ok=True)

    def log_metric(self, key: str, value: float, step: int | None = None) -> None:
        number = check_metric(key, value)
        step = self._next_step.get(key, 0) if step is None else int(step)
        self._next_step[key] = step + 1
        if len(self._history) == _MOST_POINTS:
            print(f"headrace: more than {_MOST_POINTS} metric values; the rest is not kept", file=sys.stderr)
        if len(self._history) <= _MOST_POINTS:
            self._history.append({"key": key, "value": number, "step": step, "timestamp_ms": int(time.time() * 1000)})
            self.tell("metric", key=key, value=number, step=step)

    def log_parameter(self, key: str, value: object) -> None:
        self._logged[str(key)] = value

    def log_figure(self, name: str, figure: Any) -> None:
        path = self._plot(name)
        if hasattr(figure, "savefig"):
            figure.savefig(path)
        elif hasattr(figure, "write_html") and path.suffix == ".html":
            figure.write_html(str(path))
        elif hasattr(figure, "save"):
            figure.save(path)
        else:
            raise TypeError(f"a {type(figure).__name__} has no savefig or save; draw it to bytes and use log_artifact")

    def log_artifact(self, name: str, content: bytes | str | os.PathLike[str]) -> None:
        path = self._plot(name)
        if isinstance(content, os.PathLike):
            shutil.copyfile(content, path)
        else:
            path.write_bytes(content.encode() if isinstance(content, str) else bytes(content))
        if path.stat().st_size > _MOST_BYTES:
            path.unlink()
            raise ValueError(
                f"{name} has more than {_MOST_BYTES} bytes; what is so large belongs into the model, or elsewhere"
            )

    def log_example(self, frame: Any) -> None:
        if not hasattr(frame, "columns") or not hasattr(frame, "dtypes"):
            raise TypeError("log_example takes a pandas DataFrame as predict gets it")
        self.example = frame.head(_EXAMPLE_ROWS).copy()

    def progress(self, fraction: float, note: str = "") -> None:
        now = time.monotonic()
        if now - self._progress_at >= _PROGRESS_S or fraction >= 1:
            self._progress_at = now
            self.tell("progress", fraction=min(1.0, max(0.0, float(fraction))), note=str(note)[:200])

    def checkpoint(self, state: Any, progress: float | None = None, note: str = "") -> None:
        if progress is not None:
            self.progress(progress, note)
        self._checkpoints.keep(state)

    def resume(self) -> Any:
        return self._checkpoints.found()

    @property
    def stopping(self) -> bool:
        return self._checkpoints.stopping is not None

    def tell(self, event: str, **data: Any) -> None:
        with self._events.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({"event": event, **data}) + "\n")

    def take(self, history: list[dict[str, Any]], parameters: dict[str, str]) -> None:
        """What a command has logged by its own means."""
        self._history += history
        self._logged.update(parameters)

    def write_logged(self, metrics: dict[str, float]) -> None:
        """metrics.json and parameters.json of the bundle."""
        _write(self._bundle / "metrics.json", {"metrics": metrics, "history": self._history[:_MOST_POINTS]})
        _write(self._bundle / "parameters.json", {key: str(value) for key, value in self._logged.items()})

    def _plot(self, name: str) -> Path:
        if not _PLOT.fullmatch(name):
            raise ValueError(
                f"{name!r} is no name for a plot: letters, digits, _ . - and one of .png .svg .html .json .txt"
            )
        path = self._bundle / "plots" / name
        path.parent.mkdir(exist_ok=True)
        return path


def check_metric(key: object, value: object) -> float:
    """The value as a finite float. Raises `InvalidMetric`."""
    if not isinstance(key, str) or not _METRIC.fullmatch(key):
        raise InvalidMetric(f"{key!r} is no name for a metric: at most 250 letters, digits, spaces and _ . / -")
    if hasattr(value, "item"):  # numpy's and torch's numbers
        value = value.item()
    try:
        number = float(value) if isinstance(value, numbers.Real) and not isinstance(value, bool) else math.nan
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise InvalidMetric(f"the metric {key!r} is {str(value)[:100]!r}, which is no finite number")
    return number


def check_metrics(found: object) -> dict[str, float]:
    """What `evaluate` returned, as finite floats by name. Raises `InvalidMetric`."""
    if not isinstance(found, dict) or len(found) > _MOST_METRICS:
        raise InvalidMetric(
            f"metrics are an object of at most {_MOST_METRICS} numbers by name, not a {type(found).__name__}"
        )
    return {key: check_metric(key, value) for key, value in found.items()}


def _write(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n", encoding="utf-8")
