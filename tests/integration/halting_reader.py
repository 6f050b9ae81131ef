"""A reader of the stream that stops at a point and waits to be killed: `python -m tests.integration.halting_reader LEDGER REDIS POINT READY`."""

from __future__ import annotations

import sys
import threading
from datetime import timedelta
from pathlib import Path
from typing import Any

from services.ingest_watcher.sources.stream import StreamReader
from shared.ledger import Ledger


def main(ledger_url: str, redis_url: str, point: str, ready: str) -> None:
    def halt(*_: Any) -> None:
        Path(ready).touch()
        threading.Event().wait()

    reader = StreamReader(Ledger(ledger_url), redis_url, "the-dead", timedelta(seconds=30))
    setattr(reader, point, halt)
    while True:
        reader.step()


if __name__ == "__main__":
    main(*sys.argv[1:])
