"""What a training has used, with all that it started: counted, kept with the attempt, summed for the model."""

from __future__ import annotations

import sys
import threading
from datetime import timedelta
from pathlib import Path

import pytest
from headrace.warded import Ending, Spent, Warded

from services.trainer.failures import AttemptFailed
from services.trainer.usage import Meter
from shared.catalog import Limits
from shared.ledger import Ledger, attempts, runs, usage
from shared.ledger.attempts import Failure, Used
from shared.values import Bytes
from tests.children import train
from tests.ledgers import HandClock, adopt, claim, finish, grow, waiting

MB = 1000**2
BURNS = """
import os, sys, time
def burn(seconds):
    began = time.process_time()
    while time.process_time() - began < seconds:
        pass
kept = bytearray(b"x" * 60_000_000)
if os.fork() == 0:
    os.setsid()
    burn(0.3)
    os._exit(0)
burn(0.3)
with open(sys.argv[1], "wb") as stream:
    stream.write(bytes(20_000_000))
    stream.flush()
    os.fsync(stream.fileno())
os.wait()
"""
USED = Used(cpu_s=2.5, gpu_s=0.0, memory_bytes=300, read_bytes=10, written_bytes=20)


def test_a_warden_counts_what_a_child_and_all_that_it_started_have_used(tmp_path: Path) -> None:
    argv = [sys.executable, "-I", "-S", "-c", BURNS, str(tmp_path / "written")]
    child = Warded.start(argv, log=tmp_path / "log", env={})
    assert child.wait(20) == Ending(0, None), (tmp_path / "log").read_text()
    assert child.spent is not None
    assert 0.6 <= child.spent.cpu_s < 5
    assert 60 * MB < child.spent.memory_bytes < 300 * MB


def test_what_was_killed_is_counted_too(tmp_path: Path) -> None:
    argv = [sys.executable, "-I", "-S", "-c", "while True: pass"]
    child = Warded.start(argv, log=tmp_path / "log", env={})
    assert child.wait(0.5) is None
    child.kill()
    assert child.spent is not None
    assert child.spent.cpu_s > 0


def test_an_attempt_that_fails_has_used_something_and_its_memory_is_that_of_its_tree(tmp_path: Path) -> None:
    meter = Meter(gpus=2)
    body = """
import time
for _ in range(2):
    if os.fork() == 0:
        taken = bytearray(b"x" * 50_000_000)
        time.sleep(2.5)
        os._exit(0)
time.sleep(2.5)
raise KeyError("x")
"""
    with pytest.raises(AttemptFailed):
        train(tmp_path, body, limits=Limits(memory=Bytes(500 * MB)), meter=meter)
    used = meter.used()
    assert used.cpu_s > 0
    assert 100 * MB < used.memory_bytes < 300 * MB, "more than the largest process, and nothing twice"
    assert used.gpu_s > 2 * 2.5


def test_a_meter_adds_up_from_several_threads() -> None:
    meter = Meter()
    threads = [threading.Thread(target=meter.add, args=(Spent(1.0, n, 5, 7), 50)) for n in (10, 90)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    meter.add(None, 60)
    assert meter.used() == Used(2.0, 0.0, 90, 10, 14)


def test_the_ledger_keeps_it_with_the_attempt_and_sums_it_for_the_model(ledger: Ledger, clock: HandClock) -> None:
    adopt(ledger)
    grow(ledger)
    first = claim(ledger, 1)
    assert first is not None
    away = Failure("infrastructure", "the disk is full", transient=True)
    with ledger.write() as tx:
        attempts.fail(tx, 1, first.token, away, {}, USED)
    clock.forward(minutes=1)
    second = claim(ledger, 1)
    assert second is not None
    with ledger.write() as tx:
        more = Used(cpu_s=1.0, gpu_s=3.0, memory_bytes=700, read_bytes=1, written_bytes=2)
        attempts.finish(tx, 1, second.token, "sha256:" + "b" * 64, {"train": 1.5}, more)
    with ledger.read() as tx:
        assert [row.cpu_s for row in attempts.of_run(tx, 1)] == [2.5, 1.0]
        assert usage.by_model(tx, "delays", "nobody") == {"delays": usage.Total(3.5, 3.0, 700, 11, 22, 2)}


def test_what_is_left_of_a_run_is_known_from_its_progress_or_from_the_runs_before(
    ledger: Ledger, clock: HandClock
) -> None:
    def left() -> float | None:
        with ledger.read() as tx:
            return usage.left_s(tx, runs.find(tx, 2))

    adopt(ledger)
    grow(ledger)
    first = claim(ledger, 1)
    assert first is not None
    clock.forward(seconds=20)
    finish(ledger, first)
    grow(ledger)
    assert left() is None, "it waits"
    held = claim(ledger, waiting(ledger))
    assert held is not None
    clock.forward(seconds=8)
    assert left() == 12
    with ledger.write() as tx:
        attempts.beat(tx, 2, held.token, timedelta(seconds=30), 0.2)
    assert left() == pytest.approx(32)
    with ledger.write() as tx:
        attempts.hand_back(tx, 2, held.token, "leaves", {})
    again = claim(ledger, 2)
    assert again is not None
    with ledger.write() as tx:
        attempts.beat(tx, 2, again.token, timedelta(seconds=30), 0.9)
    clock.forward(seconds=5)
    assert left() == 15, "what an earlier attempt has done took no time of this one"
