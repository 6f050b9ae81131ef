"""A free slot finds its work although a bell was lost, and a worker that hears nothing leaves loudly (C3, C7, C14)."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import pytest

from services.trainer import lookout
from services.trainer.claims import LedgerWork
from services.trainer.lookout import EX_DEAF, PATIENCE, Due, Lookout, Slots
from shared.errors import Unavailable
from shared.ledger import Ledger, workers
from tests import ledgers
from tests.ledgers import adopt, claim, grow, waiting

DEADLINE_S = 20.0


@dataclass
class Table:
    """Work that lies on a table: what is there is due, and what somebody has taken is not open."""

    there: list[Due] = field(default_factory=list)
    taken: list[Due] = field(default_factory=list)
    told: list[int] = field(default_factory=list)
    looks: int = 0
    left: bool = False
    trouble: bool = False

    def due(self, patience: timedelta) -> Due | None:
        assert patience == PATIENCE
        self.looks += 1
        if self.trouble:
            raise Unavailable("the ledger is away")
        return next((one for one in self.there if one not in self.taken), None)

    def is_open(self, run: int) -> bool:
        return run not in self.taken

    def tell(self, busy: int) -> None:
        self.told.append(busy)

    def leave(self) -> None:
        self.left = True


@dataclass
class Worker:
    """A lookout with a table; `hear` is what becomes of a ring: whether it is published, and whatever else happens then."""

    table: Table = field(default_factory=Table)
    slots: Slots = field(default_factory=lambda: Slots(1))
    leaving: threading.Event = field(default_factory=threading.Event)
    hear: Callable[[Due], bool] = lambda due: False
    rung: list[Due] = field(default_factory=list)
    done: list[Due] = field(default_factory=list)
    hold: threading.Event = field(default_factory=threading.Event)

    def start(self, every_s: float = 0.01) -> Lookout:
        self.lookout = Lookout(self.table, self.slots, self._ring, self._do, self.leaving, every_s)
        self.lookout.start()
        return self.lookout

    def _ring(self, due: Due) -> bool:
        self.rung.append(due)
        return self.hear(due)

    def _do(self, due: Due) -> None:
        self.table.taken.append(due)
        self.done.append(due)
        assert self.hold.wait(DEADLINE_S)

    def wait(self, condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while not condition():
            assert time.monotonic() < deadline, self
            time.sleep(0.001)

    def looks(self, more: int = 3) -> None:
        """Wait until it has looked again a few times."""
        enough = self.table.looks + more
        self.wait(lambda: self.table.looks >= enough)

    def stop(self) -> None:
        self.leaving.set()
        self.hold.set()
        self.slots.freed.set()  # it may be resting until the next look
        self.lookout.stop(DEADLINE_S)


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> Iterator[Worker]:
    monkeypatch.setattr(lookout, "HEARD_WITHIN_S", 0.1)
    made = Worker()
    made.hold.set()
    yield made
    made.stop()


def test_a_bell_that_was_heard_leaves_the_work_to_the_message(worker: Worker) -> None:
    def answer(due: Due) -> bool:
        worker.table.taken.append(due)
        return True

    worker.hear = answer
    worker.table.there = [1]
    worker.start()
    worker.looks()
    assert (worker.rung, worker.done, worker.lookout.deaf) == ([1], [], False)


def test_a_bell_that_cannot_be_rung_is_not_waited_for(worker: Worker) -> None:
    worker.table.there = [1, (2, "sha256:h")]
    worker.start()
    worker.wait(lambda: len(worker.done) == 2)
    assert (worker.done, worker.lookout.deaf) == ([1, (2, "sha256:h")], False)


def test_a_bell_that_nobody_heard_is_answered_by_the_one_who_rang_which_is_deaf_then(worker: Worker) -> None:
    worker.hear = lambda due: True
    worker.hold.clear()
    worker.table.there = [1]
    worker.start()
    worker.wait(lambda: worker.done == [1])
    assert worker.lookout.deaf
    worker.lookout.heard()  # a message comes after all: the line works
    assert not worker.lookout.deaf


def test_a_full_worker_neither_looks_nor_rings_and_a_freed_slot_looks_at_once(worker: Worker) -> None:
    worker.hold.clear()
    worker.table.there = [1]
    worker.start(every_s=1000)
    worker.wait(lambda: worker.done == [1])
    worker.table.there = [2]
    assert (worker.slots.busy, worker.table.looks, worker.rung) == (1, 1, [1])
    worker.hold.set()
    worker.wait(lambda: worker.done == [1, 2])
    assert worker.rung == [1, 2]


def test_a_ledger_that_is_away_is_asked_again(worker: Worker) -> None:
    worker.table.trouble = True
    worker.start()
    worker.looks()
    worker.table.trouble, worker.table.there = False, [1]
    worker.wait(lambda: worker.done == [1])


def test_a_worker_that_leaves_takes_nothing_new_waits_for_its_work_and_says_goodbye(worker: Worker) -> None:
    worker.hold.clear()
    worker.table.there = [1]
    worker.start()
    worker.wait(lambda: worker.done == [1])
    worker.leaving.set()
    worker.table.there = [2]
    ending = threading.Thread(target=worker.stop)
    ending.start()
    ending.join(DEADLINE_S)
    assert (worker.done, worker.slots.busy, worker.table.left) == ([1], 0, True)
    assert worker.table.told[0] == 0


def test_slots_are_given_and_taken_back() -> None:
    slots = Slots(2)
    assert [slots.take(), slots.take(), slots.take()] == [True, True, False]
    assert (slots.busy, slots.freed.is_set()) == (2, False)
    slots.give_back()
    assert (slots.take(), slots.busy, slots.freed.is_set()) == (True, 2, True)


DEAF = """
from tests.unit.test_lookout import Worker
from services.trainer import lookout
lookout.HEARD_WITHIN_S = 0.05
worker = Worker(hear={hear})
worker.table.there = [{due!r}]
worker.hold.set()
{before}
worker.start()
worker.leaving.wait(20)
"""


@pytest.mark.parametrize(
    ("before", "hear", "sign"),
    [
        ("", "lambda due: True", "worker_is_deaf"),
        ("worker.table.due = lambda patience: 1 // 0", "lambda due: True", "lookout_failed"),
    ],
)
def test_a_worker_that_cannot_hear_or_see_ends_loudly_to_be_started_again(before: str, hear: str, sign: str) -> None:
    program = DEAF.format(before=before, hear=hear, due=1)
    root = Path(__file__).parents[2]
    ended = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, sign in ended.stdout + ended.stderr) == (EX_DEAF, True), ended


def test_the_ledger_shows_what_is_due_to_the_workers_of_a_class_after_the_watchers_ring() -> None:
    ledger, clock = ledgers.in_memory()
    work = LedgerWork(ledger, "w1", "standard", slots=2)
    adopt(ledger)
    grow(ledger)
    run = waiting(ledger)
    assert (work.due(timedelta(0)), work.due(PATIENCE)) == (run, None)
    clock.forward(seconds=0.5)
    assert work.due(PATIENCE) == run
    assert LedgerWork(ledger, "w2", "gpu", slots=1).due(PATIENCE) is None
    assert work.is_open(run)
    assert claim(ledger, run) is not None
    assert (work.is_open(run), work.due(PATIENCE)) == (False, None)
    work.tell(busy=1)
    assert alive(ledger) == [("w1", 2, 1)]
    work.leave()
    assert alive(ledger) == []
    ledger.close()


def alive(ledger: Ledger) -> list[tuple[str, int, int]]:
    with ledger.read() as tx:
        return [(row.name, row.slots, row.busy) for row in workers.alive(tx, timedelta(minutes=1))]
