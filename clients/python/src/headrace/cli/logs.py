"""`headrace logs`: what the author's code has printed, and with -f what it prints."""

from __future__ import annotations

import json
import re
import sys
from argparse import Namespace
from typing import Any, Dict, Iterator, Optional

from headrace.connection import Connection, api_path, connect

_WAIT_S = 20
_MOVES = re.compile(r"\x1b\[[0-9;]*[A-K]")  # of the cursor: bars below each other go up and down by them


def logs(arguments: Namespace) -> None:
    lines = Lines(live=arguments.follow and sys.stdout.isatty())
    attempt = None
    for chunk in _chunks(connect(), arguments.run, arguments.attempt, arguments.follow):
        if arguments.json:
            sys.stdout.write(json.dumps(chunk) + "\n")
        else:
            ended = lines.end() if attempt not in (None, chunk["attempt"]) else ""
            attempt = chunk["attempt"]
            sys.stdout.write(ended + lines.feed(chunk["text"]))
        sys.stdout.flush()
    sys.stdout.write(lines.end())


class Lines:
    """A log as a terminal leaves it: of a line that was written over (a bar of progress), its last state. `live` shows the last line before its end too."""

    def __init__(self, *, live: bool) -> None:
        self._live = live
        self._open = ""

    def feed(self, text: str) -> str:
        """What is to be written for this piece of the log."""
        shown = "\r\x1b[K" if self._live and self._open else ""
        whole, newline, self._open = (self._open + text).rpartition("\n")
        shown += "".join(f"{last_state(line)}\n" for line in whole.split("\n")) if newline else ""
        if "\r" in self._open:  # what was written over is done with, however long the bar goes on
            before, _, now = self._open.rpartition("\r")
            self._open = now if now.strip() else f"{last_state(before)}\r{now}"
        return shown + (last_state(self._open) if self._live else "")

    def end(self) -> str:
        """What is left of a line without an end."""
        left, self._open = last_state(self._open), ""
        return "" if self._live else left


def last_state(line: str) -> str:
    """What a line shows after all its carriage returns."""
    if "\r" not in line and "\x1b" not in line:
        return line
    states = [state for state in _MOVES.sub("", line).split("\r") if state.strip()]
    return states[-1].rstrip() if states else ""


def _chunks(connection: Connection, run: int, attempt: Optional[int], follow: bool) -> Iterator[Dict[str, Any]]:
    """The log from its beginning, piece by piece; when a new attempt begins, from that one's beginning."""
    offset, reading = 0, attempt
    while True:
        query = {"offset": offset, "attempt": attempt, "wait": _WAIT_S if follow else None}
        chunk = connection.get(api_path("runs", run, "log"), query, wait_s=_WAIT_S)
        if reading is not None and chunk["attempt"] != reading:
            reading, offset = chunk["attempt"], 0
            print(f"headrace: attempt {reading} begins", file=sys.stderr)
            continue
        reading, moved, offset = chunk["attempt"], chunk["offset"] > offset, chunk["offset"]
        if moved:
            yield chunk
        elif chunk["done"] or not follow:
            return
