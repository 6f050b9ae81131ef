"""The model that serves: taken from disk at the start, replaced while requests go on when a notice names another."""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headrace import consumer, lock
from headrace.connection import Unreachable
from headrace.webhooks import Newest, Notice

TYPES = ("version.promoted", "version.rolled_back")
LONGEST_PAUSE_S = 30.0


@dataclass(frozen=True)
class Serving:
    """A loaded version. A request takes hold of one and finishes on it, whatever is swapped meanwhile."""

    version: int
    model: Any

    def predict(self, rows: list[dict[str, Any]]) -> list[float]:
        """One probability per row; raises `ValueError` if the model answers with anything else."""
        import pandas

        answer = self.model.predict(pandas.DataFrame(rows))
        found = [float(each[-1] if hasattr(each, "__len__") else each) for each in getattr(answer, "values", answer)]
        if len(found) != len(rows) or not all(math.isfinite(each) for each in found):
            raise ValueError(
                f"version {self.version} gave {len(found)} answers for {len(rows)} rows, or one that is no number"
            )
        return found


class Keeper:
    """One model, its line in models.toml, and a thread that alone changes either."""

    def __init__(self, model: str, lock_file: Path, into: Path, say: Callable[[str], None]) -> None:
        self.model = model
        self.serving: Serving | None = None  # replaced by one assignment, never changed
        self._lock_file, self._into, self._say = lock_file, into, say
        self._sequences = into / "sequences.json"
        self._newest = Newest(_read(self._sequences))
        self._wanted: Notice | None = None
        self._told = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="keeper", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def hear(self, notice: Notice) -> bool:
        """Note what a notice wants; False for one that is not for us, was here before, or is older than one that was."""
        if notice.type not in TYPES or notice.subject != self.model or not self._newest.accept(notice):
            return False
        with self._told:
            self._wanted = notice
            self._told.notify()
        return True

    def _work(self) -> None:
        self._resume()
        while True:
            with self._told:
                self._told.wait_for(lambda: self._wanted is not None)
                notice, self._wanted = self._wanted, None
            self._follow(notice)

    def _resume(self) -> None:
        """Serve what models.toml says, then hear what was told while we were away."""
        choice = lock.read_versions(self._lock_file)[self.model]
        self._until_settled(f"version {choice}", lambda: self._take(choice))
        if self.model in self._newest.sequences:
            self._until_settled("what was missed", self._catch_up)

    def _catch_up(self) -> None:
        after = self._newest.sequences[self.model]
        missed, after = consumer.notices(after, TYPES, (self.model,))
        while missed:
            for notice in missed:
                self.hear(notice)
            missed, after = consumer.notices(after, TYPES, (self.model,))

    def _follow(self, notice: Notice) -> None:
        def take_and_write_down() -> None:
            if self.serving is None or self.serving.version != notice.version:
                self._take(notice.version, notice.digest)
            self._write_down(notice.version)

        if self._until_settled(f"version {notice.version}", take_and_write_down):
            self._sequences.write_text(json.dumps({self.model: notice.sequence}))

    def _until_settled(self, what: str, work: Callable[[], None]) -> bool:
        """Do it, again while the network is away; False if a notice wants something newer before it is done or refused."""
        pause_s = 0.5
        while True:
            try:
                work()
                return True
            except Unreachable as error:
                self._say(f"{what} can't be fetched yet, trying again: {error}")
            except Exception as error:  # noqa: BLE001 - a version's code may raise anything; what serves goes on
                self._say(f"{what} not taken, {self._staying()}: {error}")
                return True
            with self._told:
                if self._told.wait_for(lambda: self._wanted is not None, pause_s):
                    return False
            pause_s = min(LONGEST_PAUSE_S, pause_s * 2)

    def _take(self, version: lock.Choice, digest: str | None = None) -> None:
        """Fetch, check, load beside what serves, try, and only then swap."""
        began = time.monotonic()
        place = consumer.pull(self.model, version, self._into, digest=digest)
        candidate = Serving(int(place.name), consumer.load(place))
        tried = _try(candidate, place)
        before, self.serving = self.serving, candidate
        was = f", was {before.version}" if before else ""
        self._say(f"serving version {candidate.version}{was} ({tried}; {time.monotonic() - began:.2f} s)")

    def _write_down(self, version: int) -> None:
        old, new = lock.set_version(self._lock_file, self.model, version)
        if old != new:
            self._say(f"{self._lock_file.name}:\n- {old}\n+ {new}")

    def _staying(self) -> str:
        return f"staying on {self.serving.version}" if self.serving else "nothing serves"


def _try(candidate: Serving, place: Path) -> str:
    """Predict the example that the author gave; raises what the model raises."""
    found = next(
        (file for file in (place / "input_example.json", place / "data" / "input_example.json") if file.is_file()), None
    )
    if found is None:
        return "digest checked, no example to try"
    example = json.loads(found.read_text())
    candidate.predict([dict(zip(example["columns"], row, strict=True)) for row in example["data"]])
    return "digest checked, example predicted"


def _read(sequences: Path) -> dict[str, int]:
    return json.loads(sequences.read_text()) if sequences.is_file() else {}
