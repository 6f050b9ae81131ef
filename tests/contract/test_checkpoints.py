"""A training that is interrupted goes on, here or on another machine, from the newest checkpoint that its run has left."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from services.trainer import checkpoints
from services.trainer.checkpoints import Keeper
from services.trainer.claims import LedgerClaims
from services.trainer.failures import Leaving
from services.trainer.usage import Meter
from shared.blobs import DiskBlobs
from shared.ledger import Ledger, runs
from shared.ledger.attempts import Checkpoint, Claim
from shared.logs import DiskLogs
from tests import ledgers
from tests.children import train

pytestmark = pytest.mark.usefixtures("way")

LEASE = timedelta(seconds=30)
COUNTS = """
import time
state = job.resume() or {"epoch": 0}
print("begins at", state["epoch"], flush=True)
while True:
    state["epoch"] += 1
    job.checkpoint(state, progress=0.5, note="epoch %d" % state["epoch"])
    if state["epoch"] == 3:
        (job.scratch.parent / "third").touch()
    if state["epoch"] > 3:
        time.sleep(0.01)
"""
ENDS = """
state = job.resume()
print("goes on at", state, flush=True)
return state
"""


@pytest.fixture
def ledger(ledger_file: Path) -> Iterator[Ledger]:
    opened = Ledger(f"sqlite:///{ledger_file}", ledgers.HandClock())
    ledgers.put_config(opened, ledgers.CONFIG)
    ledgers.adopt(opened)
    ledgers.grow(opened)
    yield opened
    opened.close()


@pytest.fixture
def blobs(tmp_path: Path) -> DiskBlobs:
    return DiskBlobs(tmp_path / "blobs")


class Machine:
    """A worker on a disk of its own: what it claims, and what it says."""

    def __init__(self, place: Path, ledger: Ledger, blobs: DiskBlobs, name: str, most_bytes: int = 10**6) -> None:
        self.place, self.blobs, self.said, self._most_bytes = place / name, blobs, list[str](), most_bytes
        self.place.mkdir()
        self.claims = LedgerClaims(ledger, name, LEASE)

    def claim(self, run: int) -> Claim:
        claimed = self.claims.claim(run)
        assert claimed is not None
        return claimed

    def keeper(self, claim: Claim, scratch: Path) -> Keeper:
        def names(sha256: str, size_bytes: int) -> Checkpoint:
            return self.claims.checkpoint(claim, sha256, size_bytes)

        replaces, most = claim.checkpoint, self._most_bytes
        place = self.place / "kept"
        return Keeper(scratch, place, self.blobs, names, self.said.append, most_bytes=most, replaces=replaces)

    def train(self, claim: Claim, body: str, leaving: threading.Event | None = None) -> None:
        resume = None
        if claim.checkpoint is not None:
            resume = checkpoints.fetch(self.blobs, claim.checkpoint, self.place / "resume", self.said.append)
        train(self.place, body, resume=resume, leaving=leaving, keeper=lambda scratch: self.keeper(claim, scratch))

    @property
    def log(self) -> str:
        return DiskLogs(self.place / "logs").read("runs/1/1", 0, 10_000)[0].decode()


def leave_after(path: Path, leaving: threading.Event) -> None:
    deadline = time.monotonic() + 20
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    leaving.set()


def kept(ledger: Ledger, run: int) -> Checkpoint | None:
    with ledger.read() as tx:
        found = runs.find(tx, run).checkpoint
    return Checkpoint.from_json(found) if found else None


def leave(machine: Machine, claim: Claim, state: bytes) -> None:
    """As a child would: a checkpoint in its scratch directory."""
    scratch = machine.place / "scratch"
    scratch.mkdir(exist_ok=True)
    (scratch / "checkpoint").write_bytes(state)
    with machine.keeper(claim, scratch):
        pass


def test_a_training_whose_machine_is_wanted_back_goes_on_on_another(
    tmp_path: Path, ledger: Ledger, blobs: DiskBlobs
) -> None:
    first, second = (Machine(tmp_path, ledger, blobs, name) for name in ("first", "second"))
    claim, leaving = first.claim(1), threading.Event()
    watch = threading.Thread(target=leave_after, args=(first.place / "scratch" / "third", leaving))
    watch.start()
    began = time.monotonic()
    with pytest.raises(Leaving):
        first.train(claim, COUNTS, leaving)
    watch.join()
    assert time.monotonic() - began < 4, "the code was told, and its grace was not used up"
    assert "begins at 0" in first.log
    first.claims.hand_back(claim, "the worker shuts down", {}, Meter().used())
    again = second.claim(1)
    assert again.checkpoint is not None
    assert again.checkpoint.attempt == 1
    second.train(again, ENDS)
    assert int(second.log.partition("goes on at {'epoch': ")[2].partition("}")[0]) >= 3
    assert second.said == [
        f"goes on from the checkpoint that attempt 1 left at 2026-01-01 00:00:00Z ({again.checkpoint.size_bytes}B)"
    ]


def test_a_person_who_catches_all_exceptions_is_stopped_all_the_same(
    tmp_path: Path, ledger: Ledger, blobs: DiskBlobs
) -> None:
    body = """
import time
job.checkpoint(0)
(job.scratch.parent / "third").touch()
while True:
    try:
        if job.stopping:
            job.checkpoint("the last")
        time.sleep(0.01)
    except Exception:
        pass
    except job.Stopped as stopped:
        print("puts things in order:", stopped, flush=True)
        raise
"""
    machine, leaving = Machine(tmp_path, ledger, blobs, "w1"), threading.Event()
    watch = threading.Thread(target=leave_after, args=(machine.place / "scratch" / "third", leaving))
    watch.start()
    with pytest.raises(Leaving):
        machine.train(machine.claim(1), body, leaving)
    watch.join()
    assert "puts things in order: the worker shuts down" in machine.log
    newest = kept(ledger, 1)
    assert newest is not None
    with blobs.open(newest.sha256) as stream:
        assert b"the last" in stream.read()


def test_only_the_newest_checkpoint_is_kept(tmp_path: Path, ledger: Ledger, blobs: DiskBlobs) -> None:
    machine = Machine(tmp_path, ledger, blobs, "w1")
    claim = machine.claim(1)
    for n in range(3):
        leave(machine, claim, b"{}\n%d" % n)
        claim = Claim(**{**claim.__dict__, "checkpoint": kept(ledger, 1)})
    assert [sha256 for sha256, _, _ in blobs.stored()] == [kept(ledger, 1).sha256]  # type: ignore[union-attr]
    assert machine.said == []
    assert list((machine.place / "kept").iterdir()) == []


def test_two_runs_that_leave_the_same_do_not_share_it(tmp_path: Path, ledger: Ledger, blobs: DiskBlobs) -> None:
    """Or the one that goes on would take away what the other needs."""
    machine = Machine(tmp_path, ledger, blobs, "w1")
    claim = machine.claim(1)
    other = blobs.put_bytes(b"{}\nthe same")
    leave(machine, claim, b"{}\nthe same")
    leave(machine, Claim(**{**claim.__dict__, "checkpoint": kept(ledger, 1)}), b"{}\nanother")
    assert blobs.has(other)


def test_a_stale_worker_puts_nothing_in_the_place_of_a_newer_checkpoint(
    tmp_path: Path, ledger: Ledger, blobs: DiskBlobs
) -> None:
    stale, fresh = (Machine(tmp_path, ledger, blobs, name) for name in ("stale", "fresh"))
    claim = stale.claim(1)
    stale.claims.hand_back(claim, "it lost its way", {}, Meter().used())
    leave(fresh, fresh.claim(1), b"{}\nnewer")
    newest = kept(ledger, 1)
    leave(stale, claim, b"{}\nolder")
    assert newest is not None
    assert kept(ledger, 1) == newest
    assert [sha256 for sha256, _, _ in blobs.stored()] == [newest.sha256], "nor is it left in the store"


def test_a_checkpoint_that_is_too_large_is_not_kept_and_the_log_says_the_limit(
    tmp_path: Path, ledger: Ledger, blobs: DiskBlobs
) -> None:
    machine = Machine(tmp_path, ledger, blobs, "w1", most_bytes=1000)
    claim = machine.claim(1)
    leave(machine, claim, b"{}\nsmall")
    before = kept(ledger, 1)
    leave(machine, claim, b"{}\n" + bytes(2000))
    assert kept(ledger, 1) == before
    assert machine.said == [
        "a checkpoint was not kept: it is larger than 1kB; raise limits.checkpoint of the model in headrace.toml"
    ]


@pytest.mark.parametrize("link", ["symbolic", "hard"])
def test_a_link_in_the_place_of_a_checkpoint_leads_nowhere(
    tmp_path: Path, ledger: Ledger, blobs: DiskBlobs, link: str
) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"of somebody else")
    machine = Machine(tmp_path, ledger, blobs, "w1")
    scratch = machine.place / "scratch"
    scratch.mkdir()
    place = scratch / "checkpoint"
    place.symlink_to(secret) if link == "symbolic" else place.hardlink_to(secret)
    with machine.keeper(machine.claim(1), scratch):
        pass
    assert kept(ledger, 1) is None
    assert "not kept" in machine.said[0]
    assert secret.read_bytes() == b"of somebody else"


@pytest.mark.parametrize("fault", ["damaged", "lost"])
def test_where_the_checkpoint_is_damaged_training_begins_anew_and_says_so(
    tmp_path: Path, ledger: Ledger, blobs: DiskBlobs, fault: str
) -> None:
    machine = Machine(tmp_path, ledger, blobs, "w1")
    claim = machine.claim(1)
    leave(machine, claim, b"{}\nstate")
    found = kept(ledger, 1)
    assert found is not None
    path = tmp_path / "blobs" / found.sha256[:2] / found.sha256[2:4] / found.sha256
    path.write_bytes(b"something else") if fault == "damaged" else path.unlink()
    assert checkpoints.fetch(blobs, found, tmp_path / "resume", machine.said.append) is None
    assert "the training begins anew" in machine.said[0]


def test_a_run_that_has_ended_names_no_checkpoint(tmp_path: Path, ledger: Ledger, blobs: DiskBlobs) -> None:
    machine = Machine(tmp_path, ledger, blobs, "w1")
    claim = machine.claim(1)
    leave(machine, claim, b"{}\nstate")
    assert kept(ledger, 1) is not None
    ledgers.finish(ledger, claim)
    assert kept(ledger, 1) is None


@pytest.mark.parametrize(("grace_s", "last"), [(1.0, b"begun"), (10.0, b"done")])
def test_who_takes_long_to_come_to_a_checkpoint_has_the_grace_and_no_more(
    tmp_path: Path, ledger: Ledger, blobs: DiskBlobs, grace_s: float, last: bytes
) -> None:
    body = """
import time
job.checkpoint("begun")
(job.scratch.parent / "third").touch()
while not job.stopping:
    time.sleep(0.01)
time.sleep(2.5)
job.checkpoint("done")
"""
    machine, leaving = Machine(tmp_path, ledger, blobs, "w1"), threading.Event()
    claim = machine.claim(1)
    watch = threading.Thread(target=leave_after, args=(machine.place / "scratch" / "third", leaving))
    watch.start()
    with pytest.raises(Leaving):
        train(
            machine.place,
            body,
            leaving=leaving,
            grace_s=grace_s,
            keeper=lambda scratch: machine.keeper(claim, scratch),
        )
    watch.join()
    newest = kept(ledger, 1)
    assert newest is not None
    with blobs.open(newest.sha256) as stream:
        assert last in stream.read()
