"""From a trained run to a champion: registered once whatever breaks off, judged on the same rows, the alias behind the ledger (I3, I6, I7)."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from services.registry_bridge import register
from services.registry_bridge.deliver import Deliverer
from services.registry_bridge.promote import Promoter, Wanted
from services.registry_bridge.register import Registrar
from services.registry_bridge.sweep import Sweep
from shared import cuts
from shared.blobs import DiskBlobs, store_tree
from shared.declaration import Gate
from shared.errors import Conflict, Unavailable
from shared.gates import Decision, Verdict
from shared.ledger import Ledger, attempts, deliveries, runs, scores, versions
from shared.manifest import read_tree
from tests import ledgers
from tests.ledgers import CONFIG, HandClock, adopt, claim, finish, grow, put_config, waiting
from tests.registry_twin import Killed, RegistryTwin

BUNDLE = {
    "model/headrace.json": json.dumps({"python": "3.11.7"}),
    "model/weights.txt": "1 2 3",
    "code/headrace_loader.py": "# loads",
    "requirements.txt": "numpy==2.0.0\n",
    "metrics.json": json.dumps({"metrics": {"auc": 0.7}, "history": []}),
    "parameters.json": json.dumps({"depth": "3"}),
}


@dataclass
class Bridge:
    """A bridge with a registry in memory."""

    home: Path
    ledger: Ledger
    clock: HandClock
    registry: RegistryTwin = field(default_factory=RegistryTwin)
    asked: list[Wanted] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.blobs = DiskBlobs(self.home / "blobs")
        self.registrar = Registrar(self.ledger, self.registry, self.blobs, self.home / "bridge")
        self.promoter = Promoter(self.ledger, self.registry, self.asked.append)

    def train(self, model: str = "delays", rows: int = 1000) -> int:
        """A run that leaves a real bundle."""
        grow(self.ledger, rows)
        held = claim(self.ledger, waiting(self.ledger, model))
        assert held is not None
        directory = self.home / f"bundle-{held.run}"
        for path, text in BUNDLE.items():
            (directory / path).parent.mkdir(parents=True, exist_ok=True)
            (directory / path).write_text(text)
        manifest = read_tree(directory)
        store_tree(self.blobs, directory, manifest)
        self.blobs.put_bytes(manifest.canonical())
        finish(self.ledger, held, manifest.digest)
        return held.run

    def candidate(self, rows: int = 1000, number: int | None = None) -> int:
        """A run with a version, without MLflow's part."""
        run = ledgers.train(self.ledger, rows)
        with self.ledger.read() as tx:
            made = len(versions.find_all(tx, "delays", before=None, limit=99))
        ledgers.register(self.ledger, run, number or made + 1)
        return run

    def score(self, run: int, auc: float | None, error: str | None = None) -> None:
        """What a trainer finds on the rows that the run is to be judged on now."""
        with self.ledger.write() as tx:
            serving = versions.champion(tx, "delays")
            before = attempts.trained(tx, serving.run_id).cut if serving is not None else None
            newest = versions.candidates(tx)[-1:] or [run]
            holdout = cuts.comparison(attempts.trained(tx, newest[0]).cut, before)
            metrics = {"auc": auc} if auc is not None else None
            scores.store(tx, run, cuts.digest(holdout), cuts.to_json(holdout), "standard", metrics, error)

    def verdict(self, run: int) -> tuple[str, str, tuple[str, ...]]:
        """State of the run's version, its last decision and reasons."""
        with self.ledger.read() as tx:
            row = versions.of_run(tx, run)
            found = versions.last_verdict(tx, row.id)
            return row.state, found.decision, tuple(found.reasons)

    def champion(self) -> int | None:
        return ledgers.champion(self.ledger)

    def notices(self) -> list[str]:
        with self.ledger.read() as tx:
            return [one.type for one in deliveries.read(tx, 0, 99) if one.type.startswith("version.")]


@pytest.fixture
def bridge(tmp_path: Path) -> Iterator[Bridge]:
    ledger, clock = ledgers.in_memory()
    adopt(ledger)
    yield Bridge(tmp_path, ledger, clock)
    ledger.close()


def served(bridge: Bridge, auc: float = 0.7) -> int:
    run = bridge.candidate()
    bridge.score(run, auc)
    bridge.promoter.settle(run)
    assert bridge.verdict(run)[0] == "promoted"
    return run


# Registration.


def test_a_trained_run_becomes_one_version_however_often_it_is_registered(bridge: Bridge) -> None:
    run = bridge.train()
    assert bridge.registrar.register(run)
    assert not bridge.registrar.register(run)
    with bridge.ledger.read() as tx:
        row = versions.of_run(tx, run)
    assert (row.number, row.state, bridge.registry.runs) == (1, "candidate", {"delays": [run]})
    assert bridge.blobs.has(row.digest.removeprefix("sha256:"))
    assert list((bridge.home / "bridge").iterdir()) == []


def test_a_bridge_that_dies_between_mlflow_and_the_ledger_leaves_one_version(bridge: Bridge) -> None:
    run = bridge.train()
    bridge.registry.killed_after = True
    with pytest.raises(Killed):
        bridge.registrar.register(run)
    bridge.registry.killed_after = False
    assert not bridge.registrar.register(run)  # the dead one's lease holds
    bridge.clock.forward(minutes=6)
    assert bridge.registrar.register(run)
    with bridge.ledger.read() as tx:
        assert versions.of_run(tx, run).number == 1
    assert bridge.registry.runs == {"delays": [run]}


def test_the_same_bundle_gives_the_same_digest_each_time(bridge: Bridge) -> None:
    run = bridge.train()
    for _ in range(2):
        with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
            patch.setattr(bridge.registry, "killed_after", True)
            bridge.registrar.register(run)
        bridge.clock.forward(minutes=6)
    composed = {path.name for path in (bridge.home / "blobs").rglob("*") if path.is_file()}
    assert bridge.registrar.register(run)
    assert {path.name for path in (bridge.home / "blobs").rglob("*") if path.is_file()} == composed


def test_while_mlflow_is_away_it_is_tried_again_and_the_run_says_so(bridge: Bridge) -> None:
    run = bridge.train()
    bridge.registry.trouble = Unavailable("MLflow is away")
    assert not bridge.registrar.register(run)
    with bridge.ledger.read() as tx:
        assert runs.find(tx, run).registration_error == "MLflow is away"
    bridge.registry.trouble = None
    bridge.clock.forward(seconds=2.001)
    assert bridge.registrar.register(run)
    with bridge.ledger.read() as tx:
        assert runs.find(tx, run).registration_error is None


def test_a_bundle_that_is_damaged_is_noted_and_holds_up_nothing(bridge: Bridge) -> None:
    run = bridge.train()
    for path in (bridge.home / "blobs").rglob("*"):
        if path.is_file():
            path.chmod(0o600)
            path.write_bytes(b"[]")
    assert not bridge.registrar.register(run)
    with bridge.ledger.read() as tx:
        assert runs.find(tx, run).registration_error
        assert versions.unregistered(tx) == []


def test_a_registration_that_takes_longer_than_its_lease_is_kept(
    bridge: Bridge, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One large file is uploaded for longer than the lease; nobody else may begin meanwhile."""
    run, began = bridge.train(), bridge.clock.at
    monkeypatch.setattr(register, "LEASE", timedelta(milliseconds=60))
    second = Registrar(bridge.ledger, bridge.registry, bridge.blobs, bridge.home / "second")

    def lease() -> datetime:
        with bridge.ledger.read() as tx:
            return runs.find(tx, run).registration_lease  # type: ignore[no-any-return]

    def upload() -> None:
        bridge.clock.forward(milliseconds=50)
        deadline = time.monotonic() + 10
        while lease() == began + register.LEASE and time.monotonic() < deadline:
            time.sleep(0.005)
        bridge.clock.forward(milliseconds=20)
        assert not second.register(run)

    bridge.registry.before = upload
    assert bridge.registrar.register(run)
    assert bridge.registry.tokens == [1]


def test_a_bridge_that_slept_past_its_lease_makes_nothing_and_disturbs_nobody(bridge: Bridge) -> None:
    """The second bridge takes over while the first is on its way to MLflow."""
    run = bridge.train()
    second = Registrar(bridge.ledger, bridge.registry, bridge.blobs, bridge.home / "second")

    def overtake() -> None:
        bridge.registry.before = lambda: None
        bridge.clock.forward(minutes=6)
        assert second.register(run)

    bridge.registry.before = overtake
    assert not bridge.registrar.register(run)
    assert (bridge.registry.runs, bridge.registry.tokens) == ({"delays": [run]}, [2])
    with bridge.ledger.read() as tx:
        assert versions.of_run(tx, run).number == 1
        assert runs.find(tx, run).registration_error is None


def test_a_bridge_that_is_overtaken_after_mlflow_leaves_the_record_to_the_newer_one(bridge: Bridge) -> None:
    run = bridge.train()
    taken: list[int | None] = []

    def overtake() -> None:
        bridge.clock.forward(minutes=6)
        with bridge.ledger.write() as tx:
            taken.append(versions.begin_registration(tx, run, timedelta(minutes=5)))

    bridge.registry.after = overtake
    assert not bridge.registrar.register(run)
    with bridge.ledger.read() as tx:
        assert versions.of_run(tx, run) is None
        versions.check_registration(tx, run, taken[0] or 0)


# The verdict.


def test_the_first_version_is_promoted_on_its_thresholds(bridge: Bridge) -> None:
    run = bridge.candidate()
    bridge.promoter.settle(run)
    assert (bridge.champion(), bridge.asked) == (None, [(run, bridge.asked[0][1], "standard")])
    bridge.promoter.settle(run)
    assert len(bridge.asked) == 1  # the wish stands in the ledger
    bridge.score(run, 0.65)
    bridge.promoter.settle(run)
    assert (bridge.champion(), bridge.registry.aliases) == (1, {"delays": 1})
    assert bridge.notices() == ["version.promoted"]


def test_settling_again_changes_nothing(bridge: Bridge) -> None:
    run = served(bridge)
    for _ in range(3):
        bridge.promoter.settle(run)
        bridge.promoter.follow("delays")
    assert (bridge.registry.moves, bridge.notices()) == ([("delays", 1)], ["version.promoted"])


def test_a_candidate_waits_for_the_champions_score_on_its_rows(bridge: Bridge) -> None:
    first = served(bridge)
    second = bridge.candidate()
    bridge.asked.clear()
    bridge.score(second, 0.9)
    bridge.promoter.settle(second)
    assert [one[0] for one in bridge.asked] == [first]
    bridge.score(first, 0.8)
    bridge.promoter.settle(second)
    assert bridge.verdict(second)[:2] == ("promoted", "promote")
    assert bridge.champion() == 2


@pytest.mark.parametrize(("auc", "state"), [(0.795, "promoted"), (0.794, "rejected"), (None, "awaiting")])
def test_a_candidate_is_judged_beside_the_champion(bridge: Bridge, auc: float | None, state: str) -> None:
    first, second = served(bridge), bridge.candidate()
    bridge.score(first, 0.8)
    bridge.score(second, auc, "evaluate() raised KeyError" if auc is None else None)
    bridge.promoter.settle(second)
    found, _, reasons = bridge.verdict(second)
    assert found == state
    assert auc is not None or reasons == ("the candidate has no scores: evaluate() raised KeyError",)
    assert bridge.champion() == (2 if state == "promoted" else 1)


def test_a_champion_that_cannot_be_scored_leaves_it_undecided(bridge: Bridge) -> None:
    first, second = served(bridge), bridge.candidate()
    bridge.score(first, None, "the table has changed")
    bridge.score(second, 0.9)
    bridge.promoter.settle(second)
    assert bridge.verdict(second)[:2] == ("awaiting", "undecided")
    assert "the table has changed" in bridge.verdict(second)[2][-1]


def test_too_few_rows_that_both_have_not_seen_leave_it_undecided(bridge: Bridge) -> None:
    first = served(bridge)
    second = bridge.candidate(rows=100)
    put_config(bridge.ledger, CONFIG.replace("min_rows = 10 }", "min_rows = 5000 }"))
    for run in (first, second):
        bridge.score(run, 0.9)
    bridge.promoter.settle(second)
    assert bridge.verdict(second)[:2] == ("awaiting", "undecided")
    assert "(holdout.min_rows = 5,000)" in bridge.verdict(second)[2][0]


def test_where_a_person_promotes_a_passed_version_waits_for_a_word(bridge: Bridge) -> None:
    put_config(bridge.ledger, CONFIG.replace("[models.delays]", '[models.delays]\npromote = "manual"'))
    run = bridge.candidate()
    bridge.score(run, 0.9)
    bridge.promoter.settle(run)
    assert bridge.verdict(run)[:2] == ("awaiting", "promote")
    with bridge.ledger.write() as tx:
        versions.promote(tx, "delays", 1, "alice", "seen it")
    bridge.promoter.follow("delays")
    assert (bridge.champion(), bridge.registry.aliases) == (1, {"delays": 1})


def test_an_older_cut_that_finishes_late_never_displaces_a_newer_champion(bridge: Bridge) -> None:
    late = bridge.candidate()
    newer = bridge.candidate()
    bridge.score(newer, 0.7)
    bridge.promoter.settle(newer)
    for run in (late, newer):
        bridge.score(run, 0.9)
    with bridge.ledger.write() as tx:
        holdout = cuts.comparison(attempts.trained(tx, late).cut, attempts.trained(tx, newer).cut)
        for run in (late, newer):
            scores.store(tx, run, cuts.digest(holdout), {}, "standard", {"auc": 0.9}, None)
    bridge.promoter.settle(late)
    assert bridge.verdict(late) == (
        "rejected", "reject", (f"champion 2 was trained later, on newer data (run {newer})",),
    )  # fmt: skip
    assert (bridge.champion(), bridge.registry.moves) == (2, [("delays", 2)])


def test_a_verdict_is_made_again_when_another_champion_serves_by_then(bridge: Bridge) -> None:
    first, second, third = served(bridge), bridge.candidate(), bridge.candidate()
    bridge.score(first, 0.7)
    bridge.score(third, 0.9)
    with bridge.ledger.write() as tx:  # meanwhile a person promotes the second
        row, serving = versions.of_run(tx, second), versions.champion(tx, "delays")
        versions.decide(tx, row, serving, Verdict(Decision.UNDECIDED, ("few rows",)), None, automatic=True)
        versions.promote(tx, "delays", 2, "alice", "seen it")
    bridge.promoter.settle(third)
    assert bridge.champion() == 2
    with bridge.ledger.read() as tx:
        assert versions.last_verdict(tx, versions.of_run(tx, third).id) is None
    bridge.asked.clear()
    bridge.promoter.settle(third)
    assert [one[0] for one in bridge.asked] == [second]
    bridge.score(second, 0.95)
    bridge.promoter.settle(third)
    assert bridge.verdict(third)[:2] == ("rejected", "reject")
    with bridge.ledger.read() as tx:
        assert versions.last_verdict(tx, versions.of_run(tx, third).id).champion == 2


def test_a_release_that_loosens_its_own_gates_is_told(bridge: Bridge) -> None:
    first = served(bridge)
    adopt(bridge.ledger, name="v2.0.0", commit="b" * 40, gates={"auc": Gate(min=0.1)})
    second = bridge.candidate()
    for run in (first, second):
        bridge.score(run, 0.5)
    bridge.promoter.settle(second)
    state, _, reasons = bridge.verdict(second)
    assert state == "promoted"
    assert "release v2.0.0 loosens its own gates: auc: min 0.6 became 0.1" in reasons


def test_the_operators_floor_holds_under_a_loose_release(bridge: Bridge) -> None:
    put_config(bridge.ledger, CONFIG.replace("[models.delays]", "[models.delays]\ngates = { auc = { min = 0.8 } }"))
    run = bridge.candidate()
    bridge.score(run, 0.7)
    bridge.promoter.settle(run)
    assert bridge.verdict(run)[:2] == ("rejected", "reject")


def test_a_model_that_left_is_judged_when_it_is_back(bridge: Bridge) -> None:
    run = bridge.candidate()
    bridge.score(run, 0.9)
    put_config(bridge.ledger, CONFIG.split("[models.delays]")[0])
    bridge.promoter.settle(run)
    assert bridge.champion() is None
    put_config(bridge.ledger, CONFIG)
    bridge.promoter.settle(run)
    assert bridge.champion() == 1


# The alias.


def test_the_alias_follows_when_mlflow_is_back(bridge: Bridge) -> None:
    run = bridge.candidate()
    bridge.score(run, 0.9)
    bridge.registry.trouble = Unavailable("MLflow is away")
    with pytest.raises(Unavailable):
        bridge.promoter.settle(run)
    assert (bridge.champion(), bridge.notices()) == (None, [])
    bridge.registry.trouble = None
    bridge.clock.forward(seconds=61)
    bridge.promoter.follow("delays")
    assert (bridge.champion(), bridge.registry.aliases, bridge.notices()) == (1, {"delays": 1}, ["version.promoted"])


def test_an_alias_that_someone_moved_is_put_right(bridge: Bridge) -> None:
    served(bridge)
    bridge.registry.aliases["delays"] = 7
    bridge.promoter.mirror()
    assert bridge.registry.aliases == {"delays": 1}
    bridge.registry.moves.clear()
    bridge.promoter.mirror()
    assert bridge.registry.moves == []


def test_an_alias_is_left_alone_while_a_promotion_is_under_way(bridge: Bridge) -> None:
    served(bridge)
    served_before = dict(bridge.registry.aliases)
    second = bridge.candidate()
    ledgers.decide(bridge.ledger, 2)
    bridge.registry.aliases["delays"] = 2
    bridge.promoter.mirror()
    assert (bridge.registry.aliases, served_before) == ({"delays": 2}, {"delays": 1})
    bridge.promoter.settle(second)
    assert bridge.champion() == 2


def test_a_rollback_moves_the_alias_back(bridge: Bridge) -> None:
    for _ in range(2):
        bridge.candidate()
    ledgers.decide(bridge.ledger, 1)
    bridge.promoter.follow("delays")
    ledgers.decide(bridge.ledger, 2)
    bridge.promoter.follow("delays")
    with bridge.ledger.write() as tx:
        assert versions.roll_back(tx, "delays", None, "alice", "late flights") == 1
    bridge.promoter.mirror()
    with pytest.raises(Conflict), bridge.ledger.write() as tx:
        versions.roll_back(tx, "delays", None, "alice", "again")
    bridge.promoter.follow("delays")
    bridge.promoter.mirror()
    assert (bridge.registry.moves, bridge.champion()) == ([("delays", 1), ("delays", 2), ("delays", 1)], 1)
    assert bridge.notices()[-1] == "version.rolled_back"


# The sweep.


def test_the_sweep_takes_a_run_all_the_way_and_one_model_in_trouble_does_not_hold_up_another(bridge: Bridge) -> None:
    put_config(bridge.ledger, CONFIG + '\n[models.broken]\nrepository = "file:///nowhere/broken.git"\n')
    for model in ("broken", "delays"):
        adopt(bridge.ledger, model, name="v2.0.0", gates={})
        bridge.train(model)
    bridge.registry.refuses = {"broken"}
    deliverer = Deliverer(bridge.ledger)
    sweep = Sweep(bridge.ledger, bridge.registrar, bridge.promoter, deliverer)
    sweep.start()
    try:
        wait_for_champion(bridge, 1)
        bridge.train("delays")
        wait_for_champion(bridge, 2)
        with bridge.ledger.write() as tx:
            versions.roll_back(tx, "delays", None, "alice", "late flights")
        wait_for_champion(bridge, 1)
    finally:
        sweep.stop(10)
        deliverer._pool.shutdown()  # a sender that writes on into a closed ledger in memory takes the interpreter down
    assert bridge.registry.aliases == {"delays": 1}


def wait_for_champion(bridge: Bridge, number: int) -> None:
    deadline = time.monotonic() + 20
    while bridge.champion() != number:
        assert time.monotonic() < deadline, f"version {number} never served"
        time.sleep(0.01)
