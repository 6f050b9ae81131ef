"""A model that is trained by a command: the files that it finds, and those that are taken from it. Loaded by the harness.

The command runs in a copy of the repository of its own, and finds there (or by the variables named):

data/DATASET/train.csv, holdout.csv   the rows (HEADRACE_DATA: data/); the holdout only where nothing else judges, or to evaluate
HEADRACE_JOB                          a JSON file: action, run, model, parameters, datasets with ranges, queries and files
HEADRACE_PARAMETER_NAME               each parameter, its name in capitals
HEADRACE_MODEL_DIR                    an empty directory for the model's files; to evaluate: those files
HEADRACE_METRICS                      where metrics.json goes, {name: number}: the top of the copy
HEADRACE_PLOTS, HEADRACE_EVENTS       a directory for plots; a file to append {"event": "metric" | "progress", …} lines to
HEADRACE_CHECKPOINT                   to train: a file to move a checkpoint to, whole; HEADRACE_RESUME: the newest of this run, if there is one
MLFLOW_TRACKING_URI                   a store of its own

Taken are: what lies in HEADRACE_MODEL_DIR; else the model that was logged to MLflow last; else what was written as model or model.* at the
top of the copy. Metrics: metrics.json, else the last values that were logged to MLflow.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

_LINES = 20
_TAIL_BYTES = 4_000
_PATIENCE_S = 2.0
# what a shell makes of a program that was killed below it
_KILLED = {128 + number: number for number in (signal.SIGKILL, signal.SIGTERM)}


class CommandFailed(Exception):
    """It ended with an error; `tail` is the end of what it has printed."""

    kind = "author_error"

    def __init__(self, message: str, tail: str = "") -> None:
        super().__init__(message)
        self.tail = tail


class Commands:
    """The commands of one job. `author` is the TrainingJob that keeps what they log; the others are modules of the harness."""

    def __init__(
        self, job: dict[str, Any], author: Any, check_metric: Any, export: Any, mlflow: Any, collect: Any
    ) -> None:
        self._job = job
        self._author = author
        self._check_metric = check_metric
        self._export = export
        self._mlflow = mlflow
        self._collect = collect
        self.errors = (CommandFailed, collect.NothingLeft)

    def train(self) -> tuple[dict[str, Any], dict[str, Any] | None]:
        """Run `command`; what headrace.json says of the files that it left in job.output, and its metrics, unchecked, if it wrote any."""
        judges = not self._job["evaluate"] and not self._job["evaluate_command"]
        parts = ("train", "holdout") if judges else ("train",)
        place, before, logged = self._run("command", self._author.output, parts)
        metrics = self._collect.metrics(place, before, logged)
        if logged is not None:
            self._author.take(logged.history, logged.parameters)
        return self._collect.collect(place, before, logged, Path(self._author.output), self._job["load"]), metrics

    def evaluate(self, model_dir: Path) -> dict[str, Any]:
        """Run `evaluate_command`; the metrics that it wrote, unchecked."""
        place, before, logged = self._run("evaluate_command", model_dir, ("holdout",))
        found: dict[str, Any] | None = self._collect.metrics(place, before, logged)
        if found is None:
            raise self._collect.NothingLeft(
                f"the command `{self._line('evaluate_command')}` wrote no metrics.json; {self._collect.METRICS_ADVICE}"
            )
        return found

    def _run(self, key: str, model_dir: Path, parts: tuple[str, ...]) -> tuple[Path, dict[str, Any], Any]:
        place = Path(self._author.scratch) / key
        shutil.copytree(self._job["checkout"], place, symlinks=True, ignore=shutil.ignore_patterns(".git"))
        before = self._collect.state(place)
        store, plots = place.with_name(f"{key}-mlflow"), place.with_name(f"{key}-plots")
        plots.mkdir()  # the store not: MLflow makes a default experiment only in one that is not there yet
        os.environ.update(self._mlflow.variables(store))  # ours too: MLflow asks its store when it loads a model
        environment = {**os.environ, **self._variables(key, place, model_dir, parts), "HEADRACE_PLOTS": str(plots)}
        seen = self._events.stat().st_size if self._events.exists() else 0
        self._start(key, place, environment)
        self._keep_events(seen)
        logged = self._mlflow.last_run(store)
        found = [(path.name, path) for path in sorted(plots.iterdir()) if path.is_file()]
        self._keep_plots([*found, *(logged.artifacts() if logged is not None else ())])
        return place, before, logged

    def _start(self, key: str, place: Path, environment: dict[str, str]) -> None:
        """Run to its end; what it prints is the run's log. A signal that ends it ends us too, so that it is told as that of any training."""
        argv = list(self._job[key])
        signal.signal(signal.SIGTERM, lambda *_: None)  # it is the command's, which has time to leave a checkpoint
        try:
            process = subprocess.Popen(
                argv,
                cwd=place,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )
        except OSError as error:
            raise CommandFailed(
                f"the command `{self._line(key)}` cannot be started: {_refusal(argv[0], error)}"
            ) from error
        tail = bytearray()
        reader = threading.Thread(target=_copy, args=(process.stdout, tail), daemon=True)
        reader.start()
        code = process.wait()
        reader.join(_PATIENCE_S)  # what it has left running may hold the pipe
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if code < 0 or code in _KILLED:
            number = -code if code < 0 else _KILLED[code]
            if number != signal.SIGKILL:
                signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        if code:
            said = bytes(tail).decode(errors="replace").replace("\r", "\n").splitlines()[-_LINES:]
            raise CommandFailed(f"the command `{self._line(key)}` ended with exit code {code}", "\n".join(said))

    def _variables(self, key: str, place: Path, model_dir: Path, parts: tuple[str, ...]) -> dict[str, str]:
        job = place.with_name(f"{key}.json")
        told = {
            "action": "train" if key == "command" else "evaluate", "run": self._job["run"], "model": self._job["model"],
            "parameters": self._author.parameters, "model_dir": str(model_dir),
            "datasets": {name: self._dataset(name, place, parts) for name in self._job["datasets"]},
        }  # fmt: skip
        job.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
        checkout = Path(self._job["checkout"])
        roots = [place / Path(root).relative_to(checkout) for root in self._job["source_roots"]]
        named = {
            f"HEADRACE_PARAMETER_{_capitals(name)}": _text(value) for name, value in self._author.parameters.items()
        }
        return {
            **named,
            **(self._checkpoints() if key == "command" else {}),
            "HEADRACE_JOB": str(job),
            "HEADRACE_DATA": str(place / "data"),
            "HEADRACE_MODEL_DIR": str(model_dir),
            "HEADRACE_METRICS": str(place / "metrics.json"),
            "HEADRACE_EVENTS": str(self._events),
            "PYTHONPATH": os.pathsep.join(str(root) for root in roots if root.is_dir()),
        }

    def _checkpoints(self) -> dict[str, str]:
        scratch = Path(self._job["scratch"])
        told = {"HEADRACE_CHECKPOINT": str(scratch / "checkpoint")}
        if not self._job.get("resume"):
            return told
        resumed = scratch / "resumed"
        with open(self._job["resume"], "rb") as source, resumed.open("wb") as target:
            source.readline()  # the platform's own
            shutil.copyfileobj(source, target, 1024**2)
        return {**told, "HEADRACE_RESUME": str(resumed)}

    def _dataset(self, name: str, place: Path, parts: tuple[str, ...]) -> dict[str, Any]:
        described = self._job["datasets"][name]
        told = {key: described[key] for key in ("kind", "table", "cursor", "url_variable", "url") if described.get(key)}
        for part in ("train", "holdout"):
            told[part] = self._part(name, part, place) if part in parts and described.get(part) else None
        return told

    def _part(self, name: str, part: str, place: Path) -> dict[str, Any]:
        rows = getattr(self._author.datasets[name], part)
        told: dict[str, Any] = {"above": rows.above, "upto": rows.upto, "rows": rows.count, "file": None}
        if self._job["datasets"][name]["kind"] != "sql":
            return told
        file = place / "data" / name / f"{part}.csv"
        if self._job["export"] and self._export.export(rows, file):
            told["file"] = str(file)
        return {**told, "sql": rows.sql, "params": rows.params}

    def _keep_events(self, seen: int) -> None:
        """The metrics among the lines that the command appended; the trainer reads the progress by itself."""
        if not self._events.exists():
            return
        with self._events.open("rb") as stream:
            stream.seek(seen)
            lines = stream.read().splitlines()
        points = []
        for line in lines:
            try:
                event = json.loads(line)
                if event["event"] == "metric":
                    points.append(self._point(event))
            except (ValueError, KeyError, TypeError):
                print(f"headrace: a line of HEADRACE_EVENTS is no event: {line[:200]!r}", file=sys.stderr)
        self._author.take(points, {})

    def _point(self, event: dict[str, Any]) -> dict[str, Any]:
        value = self._check_metric(event["key"], event["value"])
        at = int(event.get("timestamp_ms") or time.time() * 1000)
        return {"key": event["key"], "value": value, "step": int(event.get("step") or 0), "timestamp_ms": at}

    def _keep_plots(self, files: list[tuple[str, Path]]) -> None:
        for name, path in files:
            try:
                self._author.log_artifact(name.replace("/", "-"), path)
            except ValueError as error:
                print(f"headrace: {name} is not kept: {error}", file=sys.stderr)

    @property
    def _events(self) -> Path:
        return Path(self._job["scratch"]) / "events.jsonl"

    def _line(self, key: str) -> str:
        return shlex.join(self._job[key])


def _copy(source: Any, tail: bytearray) -> None:
    """All of it to our own output, at once, and its end to `tail`."""
    while True:
        piece = os.read(source.fileno(), 65_536)
        if not piece:
            return
        sys.stdout.buffer.write(piece)
        sys.stdout.buffer.flush()
        tail += piece
        del tail[:-_TAIL_BYTES]


def _refusal(program: str, error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return f"there is no program {program!r}, neither in the model's environment nor on PATH where the worker runs"
    if isinstance(error, PermissionError):
        return f"{program!r} is not executable; `git update-index --chmod=+x` it, or name its interpreter first"
    return str(error)


def _capitals(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9]", "_", name).upper()


def _text(value: object) -> str:
    return json.dumps(value) if isinstance(value, bool) else str(value)
