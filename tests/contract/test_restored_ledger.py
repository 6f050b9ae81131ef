"""A ledger restored from an older copy: no version twice, none of the wrong run, and stale claims are refused. With a real MLflow."""

from __future__ import annotations

import json
import sqlite3
import uuid
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from mlflow import MlflowClient
from sqlalchemy import select

from services.registry_bridge.mlflow_registry import MlflowRegistry
from services.registry_bridge.register import Registrar
from shared.blobs import DiskBlobs, store_tree
from shared.errors import Conflict, Fenced, Refused
from shared.ledger import (
    Ledger,
    Transaction,
    arrivals,
    attempts,
    copies,
    deliveries,
    fates,
    history,
    restored,
    runs,
    versions,
)
from shared.ledger.attempts import Claim
from shared.ledger.tables import version
from shared.manifest import read_tree
from shared.notices import NoticeType
from shared.settings import Settings
from stack.restore import restore
from stack.state import StateDirectory
from tests import ledgers
from tests.ledgers import LEASE, HandClock
from tests.servers import Server


@dataclass
class World:
    """A ledger on a file, a store, and an MLflow that knows nothing of copies."""

    place: Path
    model: str
    mlflow: str
    clock: HandClock

    def __post_init__(self) -> None:
        self.path = self.place / "ledger.db"
        self.blobs = DiskBlobs(self.place / "blobs")
        self.settings = Settings.model_validate(
            {
                "state_dir": self.place,
                "redis_url": "redis://127.0.0.1:1/0",
                "ledger_url": f"sqlite:///{self.path}",
                "blobs_url": (self.place / "blobs").as_uri(),
                "logs_url": (self.place / "logs").as_uri(),
            }
        )
        self.ledger = Ledger(self.settings.ledger_url, self.clock)

    def registrar(self) -> Registrar:
        return Registrar(self.ledger, MlflowRegistry(self.mlflow), self.blobs, self.place / "scratch")

    def grow(self) -> int:
        return ledgers.grow(self.ledger)

    def waiting(self) -> int:
        return ledgers.waiting(self.ledger, self.model)

    def claim(self) -> Claim:
        claimed = ledgers.claim(self.ledger, self.waiting())
        assert claimed is not None
        return claimed

    def train(self, claimed: Claim, weights: str) -> None:
        """The bundle lies in the store, and the run is trained."""
        ledgers.finish(self.ledger, claimed, self.bundle(weights))

    def bundle(self, weights: str) -> str:
        place = self.place / f"bundle-{weights}"
        for path, said in {
            "model/headrace.json": {"python": "3.11.7"},
            "model/weights.json": weights,
            "metrics.json": {"metrics": {"auc": 0.7}},
            "signature.json": {"inputs": [{"name": "a", "type": "long"}], "outputs": [{"type": "double"}]},
            "input_example.json": {"columns": ["a"], "data": [[1]]},
        }.items():
            (place / path).parent.mkdir(parents=True, exist_ok=True)
            (place / path).write_text(json.dumps(said))
        for path in ("code/headrace_loader.py", "source/model.py", "requirements.txt", "log.txt"):
            (place / path).parent.mkdir(parents=True, exist_ok=True)
            (place / path).write_text("\n")
        manifest = read_tree(place)
        store_tree(self.blobs, place, manifest)
        self.blobs.put_bytes(manifest.canonical())
        return manifest.digest

    def register(self, run: int) -> None:
        assert self.registrar().register(run), self.run(run).registration_error

    def run(self, id: int):  # type: ignore[no-untyped-def]
        with self.ledger.read() as tx:
            return runs.find(tx, id)

    def mlflow_versions(self) -> dict[int, tuple[int, str]]:
        """Of each version in MLflow the run that it is tagged with, and its bundle's digest."""
        found = MlflowClient(self.mlflow, self.mlflow).search_model_versions(f"name = '{self.model}'")
        return {int(one.version): (int(one.tags["headrace.run"]), one.tags["headrace.bundle"]) for one in found}

    def ledger_versions(self) -> dict[int, int]:
        with self.ledger.read() as tx:
            return {row.number: row.run_id for row in tx.execute(select(version))}

    def copy(self) -> Path:
        return copies.make(self.path, "test")

    def put_back(self, copy: Path) -> None:
        """As somebody does who knows of nothing."""
        copies.put_back(copy, self.path)


@pytest.fixture
def world(tmp_path: Path, ledger_file: Path, mlflow_server: Server) -> World:
    model = f"restored-{uuid.uuid4().hex[:10]}"
    world = World(tmp_path, model, mlflow_server.url, HandClock(datetime(2026, 11, 24, tzinfo=UTC)))
    ledgers.put_config(world.ledger, ledgers.CONFIG.replace("[models.delays]", f"[models.{model}]"))
    ledgers.adopt(world.ledger, model)
    world.grow()
    world.train(world.claim(), "first")
    world.register(1)
    yield world
    world.ledger.close()


def test_what_happened_after_the_copy_is_neither_doubled_nor_taken_for_something_else(world: World) -> None:
    world.grow()
    held = world.claim()  # run 2: its worker knows nothing of what comes
    world.grow()  # run 3 waits
    copy = world.copy()
    world.train(held, "second")
    world.register(2)
    lost = world.claim()  # run 3
    assert (held.run, lost.run, lost.token) == (2, 3, 1)
    newest = _last_notice(world)

    restore(copy, world.settings, "the disk broke")
    world.clock.at = datetime.now(UTC) + timedelta(seconds=1)  # by which the restored runs were planned

    for stale in (held, lost):
        for write in _writes(stale, world.bundle("stale")):
            with pytest.raises(Fenced), world.ledger.write() as tx:
                write(tx)
    assert [world.run(id).state for id in (1, 2, 3)] == ["trained", "cancelled", "cancelled"]
    assert world.waiting() == 1_000_001
    anew = world.claim()
    assert {name: cut.arrival for name, cut in anew.cut.items()} == {"flights": 3}, "all data is covered again"
    world.train(anew, "third")
    world.register(anew.run)
    second, third = world.bundle("second"), world.bundle("third")
    assert {number: told for number, told in world.mlflow_versions().items() if number > 1} == {
        2: (2, second),
        3: (1_000_001, third),
    }
    assert world.ledger_versions() == {1: 1, 3: 1_000_001}
    assert _last_notice(world) > 1_000_000 > newest, "a consumer that read on after the copy misses nothing"
    with world.ledger.read() as tx:
        assert arrivals.newest(tx, "flights") == 3
        assert [fate.version for fate in fates.of_arrival(tx, 3)] == [3]
        told = history.find_all(tx, model=None, before=None, limit=1)[0]
    assert (told.action, told.subject, told.reason) == ("restore", "ledger", "the disk broke")
    assert told.after == {"numbers above": 1_000_000, "cancelled runs": [3, 2], "planned runs": [1_000_001]}
    assert world.grow() == 1_000_001


def test_a_version_that_was_made_after_the_copy_of_a_run_trained_before_it_is_found_again(world: World) -> None:
    world.grow()
    world.train(world.claim(), "second")
    copy = world.copy()
    for _ in range(3):  # the newest of these registrations bears a higher token than any in the copy
        with world.ledger.write() as tx:
            assert versions.begin_registration(tx, 2, LEASE) is not None
        world.clock.forward(minutes=1)
    world.register(2)
    before = world.mlflow_versions()
    restore(copy, world.settings, "")
    assert world.ledger_versions() == {1: 1}
    world.register(2)
    assert world.mlflow_versions() == before
    assert world.ledger_versions() == {1: 1, 2: 2}


def test_a_copy_that_was_put_back_by_hand_gives_no_version_to_the_wrong_run(world: World) -> None:
    copy = world.copy()
    world.grow()
    world.train(world.claim(), "second")
    world.register(2)
    world.put_back(copy)
    world.grow()
    again = world.claim()
    assert (again.run, again.token) == (2, 1), "the same names, for another training"
    world.train(again, "third")
    world.register(2)
    second, third = world.bundle("second"), world.bundle("third")
    assert {number: told for number, told in world.mlflow_versions().items() if number > 1} == {
        2: (2, second),
        3: (2, third),
    }
    assert world.ledger_versions() == {1: 1, 3: 2}


def test_a_registration_from_before_is_fenced(world: World) -> None:
    world.grow()
    world.train(world.claim(), "second")
    with world.ledger.write() as tx:
        token = versions.begin_registration(tx, 2, timedelta(hours=1))
    assert token == 1
    restore(world.copy(), world.settings, "")
    with pytest.raises(Fenced), world.ledger.read() as tx:
        versions.check_registration(tx, 2, token)
    world.register(2)


def test_the_ledger_that_gives_way_is_kept(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    copy = world.copy()
    world.grow()
    restore(copy, world.settings, "")
    (kept,) = copy.parent.glob("ledger-replaced-*.db")
    assert f"the ledger as it was lies in {kept}" in capsys.readouterr().out
    with closing(sqlite3.connect(kept)) as opened:
        assert opened.execute("SELECT count(*) FROM arrival").fetchone() == (2,)


def test_a_damaged_ledger_gives_way_too(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    copy = world.copy()
    world.ledger.close()
    with world.path.open("r+b") as file:
        file.write(b"\xff" * 8192)
    restore(copy, world.settings, "")
    (kept,) = copy.parent.glob("ledger-damaged-*.db")
    assert kept.read_bytes().startswith(b"\xff" * 8192)
    assert str(kept) in capsys.readouterr().out
    assert world.ledger_versions() == {1: 1}


def test_the_oldest_copy_can_be_gone_back_to(world: World) -> None:
    oldest, *_ = [world.copy() for _ in range(copies.KEPT)]
    world.grow()
    restore(oldest, world.settings, "")
    assert oldest.exists()
    with world.ledger.read() as tx:
        assert arrivals.newest(tx, "flights") == 1


def test_what_is_no_copy_is_refused_and_nothing_is_touched(world: World, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no database")
    before = world.path.read_bytes()
    for wrong in (tmp_path / "notes.txt", tmp_path / "nowhere.db"):
        with pytest.raises(Refused, match="is no copy of a ledger"):
            restore(wrong, world.settings, "")
    assert world.path.read_bytes() == before


def test_nothing_is_restored_under_a_stack_that_runs(world: World) -> None:
    StateDirectory(world.place).lock()
    with pytest.raises(Conflict, match="a stack runs on"):
        restore(world.copy(), world.settings, "")


def test_numbers_rise_on_every_database_and_once_more_at_the_next_time(ledger: Ledger) -> None:
    ledgers.adopt(ledger)
    ledgers.grow(ledger)
    assert ledgers.claim(ledger, 1) is not None
    ledgers.grow(ledger)
    for million in (1, 2):
        with ledger.write() as tx:
            done = restored.begin_anew(tx, "carol")
        assert done.above == million * 1_000_000
        assert ledgers.waiting(ledger) == done.above + 1
        assert ledgers.grow(ledger) == done.above + 1
        with ledger.write() as tx:
            assert deliveries.tell(tx, NoticeType.RUN_FAILED, "delays", "delays", {}) > done.above
    with ledger.read() as tx:
        assert runs.count(tx) == {"cancelled": 3, "waiting": 1}


def test_a_model_that_is_gone_gets_no_new_run(ledger: Ledger) -> None:
    ledgers.adopt(ledger)
    ledgers.grow(ledger)
    assert ledgers.claim(ledger, 1) is not None
    ledgers.put_config(ledger, ledgers.CONFIG.replace("[models.delays]", "[models.other]"))
    with ledger.write() as tx:
        done = restored.begin_anew(tx, "carol")
    assert (done.cancelled, done.planned) == ((1,), ())


def _writes(claimed: Claim, bundle: str) -> tuple[Callable[[Transaction], object], ...]:
    run, token = claimed.run, claimed.token
    return (
        lambda tx: attempts.beat(tx, run, token, LEASE),
        lambda tx: attempts.finish(tx, run, token, bundle, {}),
        lambda tx: attempts.fail(tx, run, token, attempts.Failure("x", "y", transient=True), {}),
        lambda tx: attempts.hand_back(tx, run, token, "leaves", {}),
        lambda tx: attempts.cancelled(tx, run, token, {}),
    )


def _last_notice(world: World) -> int:
    with world.ledger.read() as tx:
        return deliveries.read(tx, 0, 10_000)[-1].sequence
