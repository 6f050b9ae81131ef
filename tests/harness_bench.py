"""The harness as the trainer starts it: a script, a job file, files that it leaves. Nothing of it is imported here."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
import tempfile
import textwrap
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import headrace
from headrace.warded import Confined
from headrace.warm_parent import WarmParent

from tests import ways

HOME = Path(headrace.__file__).parent
STANDARD = """
    class Model:
        def __init__(self, mean): self.mean = mean
        def predict(self, frame): return [self.mean for _ in frame]
    def read(rows):
        return rows.connect().execute(rows.sql, rows.params).fetchall()
    def train(job):
        values = [value for _, value, _ in read(job.datasets["sales"].train)]
        return Model(sum(values) / len(values))
    def evaluate(job, model):
        return {"mean": model.mean, "rows": len(read(job.datasets["sales"].holdout))}
"""


@dataclass
class Bench:
    """A checkout with one module `shop`, a table of ten rows, and a job for both; `run` starts the harness on it."""

    place: Path
    job: dict[str, Any] = field(default_factory=dict)
    output: str = ""
    code: int | None = None

    def write(self, source: str, name: str = "shop.py") -> None:
        path = self.place / "checkout" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(source))

    def run(self, **changes: Any) -> dict[str, Any]:
        job = self.place / "job.json"
        job.write_text(json.dumps({**self.job, **changes}))
        start = self._fork if ways.forked() else self._execute
        self.code, self.output = start(job, {"SALES_URL": f"sqlite:///{self.place / 'sales.db'}"})
        found: dict[str, Any] = json.loads((self.place / "scratch" / "result.json").read_text())
        return found

    def _execute(self, job: Path, env: dict[str, str]) -> tuple[int | None, str]:
        argv = [sys.executable, "-I", str(HOME / "harness.py"), str(job)]
        process = subprocess.run(argv, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
        return process.returncode, process.stdout + process.stderr

    def _fork(self, job: Path, env: dict[str, str]) -> tuple[int | None, str]:
        """Of a parent that has imported what the harness itself needs."""
        place = Path(tempfile.mkdtemp(dir=self.place, prefix="parent-"))
        confined = Confined(1024, 10**9)
        parent = WarmParent.start(Path(sys.executable), ("json", "sqlite3"), {}, place, confined, ["OMP_NUM_THREADS"])
        try:
            while not parent.ready(60):
                raise AssertionError("the parent does not come up")
            ending = parent.fork(job, log=place / "log", env=env, cwd=self.place).wait(60)
        finally:
            parent.close()
        assert ending is not None
        return ending.code, (place / "log").read_text()

    def left(self, name: str) -> Any:
        return json.loads((self.place / "output" / name).read_text())

    def events(self, kind: str) -> list[dict[str, Any]]:
        lines = (self.place / "scratch" / "events.jsonl").read_text().splitlines()
        return [event for event in map(json.loads, lines) if event["event"] == kind]


def make_bench(tmp_path: Path) -> Bench:
    """Under an empty directory."""
    with sqlite3.connect(tmp_path / "sales.db") as connection:
        connection.execute("CREATE TABLE sales (id INTEGER PRIMARY KEY, value REAL, day TEXT)")
        rows = [(number, float(number), f"2026-01-{number:02d}") for number in range(1, 11)]
        connection.executemany("INSERT INTO sales VALUES (?, ?, ?)", rows)
    connection.close()
    for name in ("output", "scratch", "checkout"):
        (tmp_path / name).mkdir()
    rows_of = {
        "table": "sales",
        "cursor": "id",
        "cursor_type": "integer",
        "newest": None,
        "time_column": "day",
        "since": None,
    }
    made = Bench(tmp_path)
    made.job = {
        "action": "train",
        "run": "17",
        "model": "shop",
        "checkout": str(tmp_path / "checkout"),
        "source_roots": [str(tmp_path / "checkout" / "src"), str(tmp_path / "checkout")],
        "output": str(tmp_path / "output"),
        "scratch": str(tmp_path / "scratch"),
        "train": "shop:train",
        "evaluate": "shop:evaluate",
        "predict": None,
        "load": None,
        "command": None,
        "evaluate_command": None,
        "export": True,
        "loader": str(HOME / "loader.py"),
        "parameters": {"depth": 3},
        "datasets": {
            "sales": {
                "kind": "sql",
                "table": "sales",
                "cursor": "id",
                "url_variable": "SALES_URL",
                "url": None,
                "train": {**rows_of, "above": None, "upto": 8, "rows": 8},
                "holdout": {**rows_of, "above": 8, "upto": 10, "rows": 2},
            }
        },
    }
    made.write(STANDARD)
    return made
