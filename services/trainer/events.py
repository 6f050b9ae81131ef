"""What the harness tells while it works, a line each; reads only what is new, and never more than a bounded piece."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from headrace.outcome import text

from services.trainer.told import Metrics, Told
from shared.blobs import open_plain
from shared.errors import Refused

_PIECE_BYTES = 1_000_000


class Events:
    """`listens`: the code comes to an end when it is told to stop."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self._progress: float | None = None
        self._note: str | None = None
        self._metrics = Metrics()
        self._news = False
        self.listens = False

    def read(self) -> Told | None:
        """All that is to be told, if something has been written since the last call."""
        self._news = False
        self._take_new()
        return Told(self._progress, self._note, self._metrics.shown()) if self._news else None

    def _take_new(self) -> None:
        try:
            with open_plain(self._path) as stream:
                stream.seek(self._offset)
                lines = stream.read(_PIECE_BYTES).split(b"\n")
        except Refused:
            return
        self._offset += sum(len(line) + 1 for line in lines[:-1])
        for line in lines[:-1]:
            try:
                self._take(json.loads(line))
            except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
                continue  # the author's code can write here too; only what is shown is at stake

    def _take(self, event: dict[str, Any]) -> None:
        match event["event"]:
            case "progress":
                fraction = min(1.0, max(0.0, float(event["fraction"])))
                self._progress, self._note, self._news = fraction, text(event.get("note", ""))[:200], True
            case "metric":
                self._metrics.add(event["key"], event.get("step"), event["value"])
                self._news = True
            case "listens":
                self.listens = True
