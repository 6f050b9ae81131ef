"""`headrace logs`: what the author's code has printed, and with -f what it prints."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from typing import Any, Dict, Iterator, Optional

from headrace.connection import Connection, api_path, connect

_WAIT_S = 20


def logs(arguments: Namespace) -> None:
    for chunk in _chunks(connect(), arguments.run, arguments.attempt, arguments.follow):
        sys.stdout.write(json.dumps(chunk) + "\n" if arguments.json else chunk["text"])
        sys.stdout.flush()


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
