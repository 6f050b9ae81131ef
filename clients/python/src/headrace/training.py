"""What an author's `train(job)` and `evaluate(job, model)` are given, for editors and type checkers; nothing needs to be imported at run time."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol


class Rows(Protocol):
    """Some rows of one table; they do not change while newer ones arrive.

    `above` (not included; None: from the first) and `upto` (included) bound the cursor column; `count` is their number where it is known.
    """

    table: str
    cursor: str
    above: Any
    upto: Any
    count: int | None

    @property
    def sql(self) -> str:
        """A SELECT in the order of the cursor with named parameters: `pandas.read_sql(rows.sql, rows.connect(), params=rows.params)`."""
        ...

    @property
    def params(self) -> dict[str, Any]: ...

    def query(self, paramstyle: str = "named") -> tuple[str, Any]:
        """The SELECT and its parameters for another driver: `named`, `pyformat` (a dict), `qmark`, `format` (a tuple)."""
        ...

    @property
    def url(self) -> str:
        """The database's address; a `LookupError` that names the line to add where the operator does not pass it on."""
        ...

    def connect(self) -> sqlite3.Connection:
        """A connection to a SQLite database, for reading only."""
        ...


class Dataset(Protocol):
    """A part that a job has not (the rows to train on, when it only evaluates) is a `LookupError`."""

    @property
    def train(self) -> Rows:
        """What the model may learn from."""
        ...

    @property
    def holdout(self) -> Rows:
        """What candidate and champion are judged on; nobody trains on it."""
        ...


class TrainingJob(Protocol):
    """One training, or one evaluation of what was trained."""

    run: str
    model: str
    datasets: Mapping[str, Dataset]
    parameters: dict[str, Any]
    """`[tool.headrace.parameters]`."""
    output: Path
    """An empty directory to save the model into, by a `train` that returns None; `predict` is required then, `load` optional."""
    scratch: Path
    """An empty directory that goes away afterwards."""

    def log_metric(self, key: str, value: float, step: int | None = None) -> None:
        """A finite number; without `step`, the next one of `key`."""
        ...

    def log_parameter(self, key: str, value: object) -> None: ...

    def log_figure(self, name: str, figure: Any) -> None:
        """A matplotlib or plotly figure or a Pillow image, under a name that ends with .png, .svg or .html."""
        ...

    def log_artifact(self, name: str, content: bytes | str | os.PathLike[str]) -> None:
        """Content (bytes or text), or the path of a file to copy; .png, .svg, .html, .json or .txt, at most 64 MiB."""
        ...

    def log_example(self, frame: Any) -> None:
        """A DataFrame as `predict` gets it: its first rows become the input example, its types and the answer's the signature.

        Without it they are taken from what `evaluate` gives to `predict`.
        """
        ...

    def progress(self, fraction: float, note: str = "") -> None:
        """How far the training is, from 0 to 1."""
        ...

    Stopped: type[BaseException]
    """What `checkpoint` raises. No `Exception`: catch `job.Stopped` to put things in order, and raise it again."""

    def checkpoint(self, state: Any, progress: float | None = None, note: str = "") -> None:
        """Keep what the training can go on from: a file or a directory (by its `Path`), bytes, or anything that can be pickled.

        The newest one outlives this process and this machine, and goes away when the run has ended. Raises `job.Stopped`, once the state
        is kept, when a person has cancelled the run or the machine is wanted back; within 5 s of that the process is killed.
        """
        ...

    def resume(self) -> Any:
        """What the newest checkpoint of this run holds, as it was given (a path: a copy); None where the training begins anew."""
        ...

    @property
    def stopping(self) -> bool:
        """Whether the training shall stop: time to come to a `checkpoint`."""
        ...
