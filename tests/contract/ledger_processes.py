"""What other processes do to a ledger file at the same time; run by name in a pool of real processes."""

from __future__ import annotations

import os
import signal
import threading
import time
from datetime import timedelta
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import NoReturn

from shared.arrivals import Report
from shared.errors import Conflict, Fenced
from shared.ledger import Ledger, arrivals, attempts, datasets, runs
from shared.ledger.schema import migrate

TOGETHER_S = 60.0
_start: list[Barrier] = []


def join(start: Barrier) -> None:
    """Called once in each process of the pool."""
    _start.append(start)


def claim_all(url: str) -> tuple[list[int], float]:
    """Claim and finish what is due until nothing is; the runs, and the longest that a claim has taken in seconds."""
    ledger, claimed, longest = Ledger(url), [], 0.0
    _start[0].wait(TOGETHER_S)
    while True:
        with ledger.read() as tx:
            due = runs.claimable(tx, "standard")
        if due is None:
            ledger.close()
            return claimed, longest
        began = time.monotonic()
        with ledger.write() as tx:
            held = attempts.claim(tx, due, f"w{os.getpid()}", timedelta(hours=1))
        longest = max(longest, time.monotonic() - began)
        if held is not None:
            claimed.append(due)
            with ledger.write() as tx:
                attempts.finish(tx, due, held.token, "sha256:" + "b" * 64, {})


def report_all(url: str, ids: int) -> list[tuple[int | None, bool]]:
    """Send the same reports as everyone else; arrival and whether it was a repetition."""
    ledger = Ledger(url)
    _start[0].wait(TOGETHER_S)
    receipts = []
    for id in range(ids):
        with ledger.write() as tx:
            told = arrivals.receive(tx, Report(dataset="reported", source="/loader", event_id=str(id), rows=1))
        receipts.append((told.arrival, told.repeated))
    ledger.close()
    return receipts


def send_keys(url: str, keys: int) -> list[tuple[int | None, bool]]:
    """Send a report without an id under the same keys as everyone else."""
    ledger = Ledger(url)
    _start[0].wait(TOGETHER_S)
    receipts = []
    for key in range(keys):
        with ledger.write() as tx:
            told = arrivals.receive(tx, Report(dataset="reported", source="rest", rows=1), key=("alice", str(key)))
        receipts.append((told.arrival, told.repeated))
    ledger.close()
    return receipts


def claim_ids(url: str, ids: int) -> list[bool]:
    """Send ids that others send too, some about another dataset; whether each was taken or refused as used for the other."""
    ledger, taken = Ledger(url), []
    dataset = "reported" if os.getpid() % 2 else "flights"
    _start[0].wait(TOGETHER_S)
    for id in range(ids):
        try:
            with ledger.write() as tx:
                arrivals.receive(tx, Report(dataset=dataset, source="/contended", event_id=str(id), rows=1))
            taken.append(True)
        except Conflict:
            taken.append(False)
    ledger.close()
    return taken


def migrate_together(url: str) -> None:
    _start[0].wait(TOGETHER_S)
    migrate(url)


def note(url: str) -> None:
    """One small commit."""
    ledger = Ledger(url)
    with ledger.write() as tx:
        datasets.ensure(tx, "noted")
    ledger.close()


def look(url: str) -> None:
    ledger = Ledger(url)
    with ledger.read() as tx:
        datasets.find_all(tx)
    ledger.close()


def hold_run(url: str, run: int, ready: Path, going_on: Path, outcome: Path) -> None:
    """Claim a run as a worker does, stand still until a person lets it go on, and try to end it with every word that there is."""
    ledger = Ledger(url)
    with ledger.write() as tx:
        held = attempts.claim(tx, run, "frozen", timedelta(seconds=1))
    assert held is not None
    ready.write_text(str(os.getpid()))
    while not going_on.exists():
        time.sleep(0.01)
    said = []
    for write in (
        lambda tx: attempts.beat(tx, run, held.token, timedelta(minutes=1)),
        lambda tx: attempts.finish(tx, run, held.token, "sha256:" + "f" * 64, {}),
        lambda tx: attempts.hand_back(tx, run, held.token, "leaves", {}),
    ):
        try:
            with ledger.write() as tx:
                write(tx)
            said.append("written")
        except Fenced:
            said.append("fenced")
    ledger.close()
    outcome.write_text(" ".join(said))


def die_while_writing(url: str, ready: Path) -> NoReturn:
    """Write, say so, and wait in the open transaction to be killed."""
    with Ledger(url).write() as tx:
        datasets.ensure(tx, "half-written")
        ready.write_text(str(os.getpid()))
        threading.Event().wait(TOGETHER_S)
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError
