"""What a consumer does: find a version, fetch and check its files, load it, and hear of the next one.

In: a model's name and a version. Out: a directory whose every byte is what the ledger's digest says, and notices.
"""

from __future__ import annotations

import threading
from typing import Iterator, List, Optional, Sequence, Tuple

from headrace.connection import Connection, Unreachable, connect
from headrace.download import Progress, pull, pulled, receipt
from headrace.serving import load
from headrace.version import DigestMismatch, File, Version, resolve
from headrace.webhooks import Notice, parse

__all__ = [
    "DigestMismatch",
    "File",
    "Progress",
    "Version",
    "follow",
    "load",
    "notices",
    "pull",
    "pulled",
    "receipt",
    "resolve",
]


def notices(
    after: int = 0,
    types: Sequence[str] = (),
    models: Sequence[str] = (),
    *,
    wait_s: int = 0,
    connection: Optional[Connection] = None,
) -> Tuple[List[Notice], int]:
    """A page of notices after that sequence, and the sequence to go on from; waits up to `wait_s` for the first."""
    query = {"after": after, "wait": wait_s, "types": ",".join(types) or None, "models": ",".join(models) or None}
    page = (connection or connect()).get("/v1/notices", query, wait_s=wait_s)
    return [parse(event) for event in page["items"]], int(page["next"] or after)


def follow(
    after: int = 0,
    types: Sequence[str] = (),
    models: Sequence[str] = (),
    *,
    connection: Optional[Connection] = None,
    stop: Optional[threading.Event] = None,
    wait_s: int = 20,
) -> Iterator[Notice]:
    """Every notice after that sequence, in order, as they come: for ever, or until `stop` is set.

    Goes on where it was when the API comes back. Keep the `sequence` of the last one done, to start again from there.
    """
    stop = stop or threading.Event()
    pause_s = 0.5
    while not stop.is_set():
        try:
            found, after = notices(after, types, models, wait_s=wait_s, connection=connection)
        except Unreachable:
            stop.wait(pause_s)
            pause_s = min(30.0, pause_s * 2)
            continue
        pause_s = 0.5
        yield from found
