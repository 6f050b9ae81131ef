"""The ledger under any order of what can happen: the invariants of the design hold after each step, and everything comes to rest."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from functools import partial
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from sqlalchemy import func, select

from services.registry_bridge.promote import Promoter
from shared.arrivals import Report
from shared.cuts import Cut
from shared.errors import Conflict, Fenced, NotFound, Unavailable
from shared.ledger import (
    Ledger,
    Transaction,
    arrivals,
    attempts,
    datasets,
    deliveries,
    fates,
    planning,
    runs,
    scores,
    versions,
)
from shared.ledger.attempts import Claim, Failure
from shared.ledger.fates import FateKind
from shared.ledger.session import create_all
from shared.ledger.tables import attempt, delivery, metadata, notice, promotion, run, verdict, version
from shared.lifecycle import RunState, VersionState
from tests.ledgers import CONFIG, LEASE, HandClock, declare, put_config
from tests.registry_twin import RegistryTwin

RELEASES = [(f"v{major}.0.0", f"{major}" * 40) for major in (1, 2, 3)]
CONFIGS = {
    "as ever": CONFIG,
    "patient": CONFIG.replace("{ min_rows = 100 }", '{ quiet = "10s", cooldown = "40s", max_wait = "2m" }'),
    "manual": CONFIG.replace("[models.delays]", '[models.delays]\npromote = "manual"'),
    "no model": CONFIG.split("[models.delays]")[0] + "[[subscriptions]]" + CONFIG.split("[[subscriptions]]")[1],
    "no dataset": CONFIG.replace("[datasets.flights]", "[datasets.other]"),
}
TRANSIENT, LASTING = Failure("infrastructure", "disk", transient=True), Failure("author_error", "KeyError")
ENDINGS: dict[str, Callable[[Transaction, Claim], object]] = {
    "finish": lambda tx, held: attempts.finish(tx, held.run, held.token, "sha256:" + "b" * 64, {}),
    "finish as most do": lambda tx, held: ENDINGS["finish"](tx, held),
    "beat": lambda tx, held: attempts.beat(tx, held.run, held.token, LEASE, 0.5),
    "fail": lambda tx, held: attempts.fail(tx, held.run, held.token, TRANSIENT, {}),
    "fail for good": lambda tx, held: attempts.fail(tx, held.run, held.token, LASTING, {}),
    "hand back": lambda tx, held: attempts.hand_back(tx, held.run, held.token, "leaves", {}),
    "cancelled": lambda tx, held: attempts.cancelled(tx, held.run, held.token, {}),
}
HOW = st.sampled_from(list(ENDINGS))
SCORES = st.sampled_from([0.7, 0.5, None])
WORKERS = st.sampled_from(["w1", "w2", "w3"])
LEDGER = Ledger(
    "sqlite://"
)  # in memory: nothing is opened before the first transaction; kept, since statements compile once an engine


class Headrace(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.clock = LEDGER.clock = HandClock()
        self.ledger, self.registry = LEDGER, RegistryTwin()
        self.promoter = Promoter(LEDGER, self.registry, lambda _wanted: None)
        self.claims: list[Claim] = []
        self.reported: dict[str, int | None] = {}
        self.registered = 0

    @initialize()
    def begin(self) -> None:
        create_all(LEDGER)
        with LEDGER.engine.begin() as connection:
            for table in reversed(metadata.sorted_tables):
                connection.execute(table.delete())
        put_config(LEDGER, CONFIG)
        self.release(RELEASES[0], "flights")
        self.data_arrives(500)

    # What comes in.

    @rule(rows=st.sampled_from([500, 60, 1]))
    def data_arrives(self, rows: int) -> None:
        with self.ledger.write() as tx:
            datasets.take(tx, "flights", "watcher", LEASE)
            before = datasets.known(tx, ["flights"]).get("flights")
            total = rows + (before.rows or 0 if before else 0)
            cut = Cut(upto=total, rows=total, holdout_above=total - total // 10, holdout_rows=total // 10)
            arrivals.observe(tx, "flights", before, cut, rows, "watcher")

    @rule(id=st.sampled_from("abc"), rows=st.sampled_from([None, 200]))
    def data_is_reported(self, id: str, rows: int | None) -> None:
        with self.ledger.write() as tx:
            told = arrivals.receive(tx, Report(dataset="reported", source="/loader", event_id=id, rows=rows))
        assert told.repeated == (id in self.reported)
        assert self.reported.setdefault(id, told.arrival) == told.arrival

    @rule(release=st.sampled_from(RELEASES), dataset=st.sampled_from(["flights", "flights", "reported"]))
    def release(self, release: tuple[str, str], dataset: str) -> None:
        with self.ledger.write() as tx:
            planning.adopt(tx, "delays", *release, declare(dataset))

    @rule(name=st.sampled_from(list(CONFIGS)), stays=st.booleans())
    def the_operator_changes_the_file(self, name: str, stays: bool) -> None:
        put_config(self.ledger, CONFIGS[name])
        if not stays:
            self.a_worker_takes_what_is_due("w1", None)
            put_config(self.ledger, CONFIG)

    @rule(seconds=st.sampled_from([0.5, 6, 61, 400]))
    def time_passes(self, seconds: float) -> None:
        self.clock.forward(seconds=seconds)

    @rule(auc=SCORES, steps=st.sampled_from([4, 4, 4, 3, 2, 1]))
    def all_goes_well_up_to_a_step(self, auc: float | None, steps: int) -> None:
        """The usual day, so that the unusual ones start from many places."""
        self.clock.forward(minutes=10)
        self.data_arrives(500)
        self.a_worker_takes_what_is_due("w1", "finish")
        self.the_bridge_looks(auc, steps, False, False)

    # What workers do.

    @rule(worker=WORKERS, ending=st.none() | HOW)
    def a_worker_takes_what_is_due(self, worker: str, ending: str | None) -> None:
        with self.ledger.read() as tx:
            due = runs.claimable(tx, "standard")
        if due is not None and self._claim(due, worker) and ending is not None:
            self._end(self.claims[-1], ending)

    @rule(worker=WORKERS, which=st.integers(1, 6))
    def a_message_comes_twice_or_late(self, worker: str, which: int) -> None:
        self._claim(which, worker)

    @precondition(lambda self: self.claims)
    @rule(worker=WORKERS, ending=HOW)
    def a_worker_goes_silent_and_comes_back(self, worker: str, ending: str) -> None:
        silent = self.claims[-1]
        self.clock.forward(seconds=31)
        self._claim(silent.run, worker)
        self._end(silent, ending)

    @precondition(lambda self: self.claims)
    @rule(back=st.integers(0, 2), ending=HOW)
    def a_claim_ends(self, back: int, ending: str) -> None:
        """The newest, or one whose worker slept and does not know better."""
        self._end(self.claims[-1 - back % len(self.claims)], ending)

    def _claim(self, id: int, worker: str) -> bool:
        with self.ledger.write() as tx:
            free = runs.is_claimable(tx, id)
            held = attempts.claim(tx, id, worker, LEASE)
        if held is None:
            return False
        before = [one for one in self.claims if one.run == id]
        assert free
        assert all(one.token < held.token for one in before)
        assert all((one.cut, one.release) == (held.cut, held.release) for one in before)
        self.claims.append(held)
        return True

    def _end(self, held: Claim, ending: str) -> None:
        with self.ledger.read() as tx:
            before = runs.find(tx, held.run)
        newest = held == [one for one in self.claims if one.run == held.run][-1] and before.state == RunState.RUNNING
        try:
            with self.ledger.write() as tx:
                ENDINGS[ending](tx, held)
        except Fenced:
            assert not newest
            with self.ledger.read() as tx:
                assert runs.find(tx, held.run) == before
        else:
            assert newest

    # What people do.

    @rule(which=st.integers(1, 6), again=st.booleans())
    def a_run_is_cancelled_or_retried(self, which: int, again: bool) -> None:
        with suppress(Conflict, NotFound), self.ledger.write() as tx:
            planning.retry(tx, which, "once more") if again else planning.cancel(tx, which, "not now")

    @precondition(lambda self: self.registered)
    @rule(number=st.none() | st.integers(1, 4))
    def a_person_rolls_back(self, number: int | None) -> None:
        with suppress(Conflict, NotFound), self.ledger.write() as tx:
            versions.roll_back(tx, "delays", number, "alice", "late flights")

    @precondition(lambda self: self.registered)
    @rule()
    def a_person_promotes(self) -> None:
        with self.ledger.write() as tx:
            for row in versions.find_all(tx, "delays", before=None, limit=9):
                with suppress(Conflict):
                    versions.promote(tx, "delays", row.number, "alice", "seen it")

    # What the bridge does.

    @rule(
        auc=SCORES,
        steps=st.sampled_from([4, 4, 4, 3, 2, 1]),
        away=st.sampled_from([False, False, True]),
        backwards=st.booleans(),
    )
    def the_bridge_looks(self, auc: float | None, steps: int, away: bool, backwards: bool) -> None:
        """It takes trained runs as far as it comes; MLflow may be away when the alias would move."""
        self.registry.trouble = Unavailable("MLflow is away") if away else None
        for step in (self._register, self._settle, lambda: self._score(auc), self._settle)[:steps]:
            step()
        if backwards and self.registered > 1:
            with suppress(Unavailable):
                self.promoter.mirror()

    def _register(self) -> None:
        with self.ledger.read() as tx:
            waiting = versions.unregistered(tx)
        for id in waiting * 2:
            with self.ledger.write() as tx:
                if versions.begin_registration(tx, id, LEASE) is not None:
                    self.registered += 1
                    versions.registered(tx, id, self.registered, "sha256:" + "c" * 64, f"r{id}", f"m-{id}")

    def _score(self, auc: float | None) -> None:
        with self.ledger.write() as tx:
            while (wanted := scores.wanted(tx, "standard")) is not None:
                if (row := scores.claim(tx, *wanted, LEASE)) is not None:
                    found = {"auc": auc} if auc is not None else None
                    scores.store(tx, *wanted, row.rows, "standard", found, None if found else "no such table")

    def _settle(self) -> None:
        with self.ledger.read() as tx:
            waiting, models = versions.candidates(tx), versions.with_intent(tx)
        for act in (
            *(partial(self.promoter.settle, id) for id in waiting),
            *(partial(self.promoter.follow, m) for m in models),
        ):
            with suppress(Unavailable):
                act()

    @rule(answer=st.sampled_from([204, 500, None]))
    def deliver(self, answer: int | None) -> None:
        with self.ledger.write() as tx:
            for one in deliveries.claim_due(tx, LEASE, 5):
                if answer == 204:
                    deliveries.delivered(tx, one.id, answer)
                elif answer is not None:
                    deliveries.undelivered(tx, one.id, answer, "no", timedelta(seconds=5) if one.attempts < 2 else None)

    # What always holds.

    @invariant()
    def no_arrival_is_lost(self) -> None:  # I1, I2
        with self.ledger.read() as tx:
            for name, cut in datasets.known(tx, ["flights", "reported"]).items():
                seen = arrivals.find_all(tx, dataset=name, before=None, limit=10_000)
                assert cut.arrival == seen[0].id
                assert cut.rows in (None, sum(row.rows or 0 for row in seen))
                assert name != "reported" or len(seen) == len(self.reported)

    @invariant()
    def every_arrival_has_one_fate(self) -> None:  # I3
        with self.ledger.read() as tx:
            for row in arrivals.find_all(tx, dataset=None, before=None, limit=2):
                found = fates.of_arrival(tx, row.id)
                assert len(found) <= 1
                for fate in found:
                    self._check_fate(tx, row, fate)

    def _check_fate(self, tx: Any, arrival: Any, fate: fates.Fate) -> None:
        if fate.run is None:
            assert fate.kind in (FateKind.SUPERSEDED, FateKind.WAITS)
            return
        row = runs.find(tx, fate.run)
        covered = ((row.cut or {}).get(arrival.dataset) or {}).get("arrival", 0) >= arrival.id
        assert covered == (row.cut is not None)
        if fate.kind is FateKind.WAITS:
            assert row.state in (RunState.WAITING, RunState.RUNNING, RunState.RETRYING)
        else:
            assert row.state == fate.kind

    @invariant()
    def a_model_has_one_waiting_and_one_running_run(self) -> None:  # I4, I5, I10
        with self.ledger.read() as tx:
            rows = tx.execute(select(run)).all()
            held = {row.run_id: row for row in tx.execute(select(attempt).order_by(attempt.c.number))}
        states = [row.state for row in rows]
        assert states.count(RunState.WAITING) <= 1
        assert states.count(RunState.RUNNING) + states.count(RunState.RETRYING) <= 1
        for row in rows:
            assert row.token == (held[row.id].number if row.id in held else 0)
            assert (row.state == RunState.RUNNING) == (row.id in held and held[row.id].ended_at is None)
            assert (row.state == RunState.RUNNING) == (row.lease_until is not None)
            assert (row.state == RunState.TRAINED) == (row.bundle is not None)
            assert row.state != RunState.RETRYING or (row.due_at is not None and row.cancel_reason is None)
            assert row.state != RunState.WAITING or row.sentence

    @invariant()
    def champions_change_only_by_the_rules(self) -> None:  # I3, I6, I7
        with self.ledger.read() as tx:
            made = {row.id: row for row in tx.execute(select(version))}
            moves = tx.execute(select(promotion).order_by(promotion.c.id)).all()
            words = tx.execute(select(verdict)).all()
        assert len({row.run_id for row in made.values()}) == len(made)
        serving, intended, promoted = None, [row for row in moves if row.served_at is None], set()
        assert intended in ([], moves[-1:])
        for move in moves:
            assert move.replaces_id == serving
            if move.actor == "headrace":
                assert any(
                    (w.version_id, w.champion_id, w.decision) == (move.version_id, serving, "promote") for w in words
                )
                assert serving is None or made[move.version_id].run_id > made[serving].run_id
            assert (move.kind == "promoted") == (move.version_id not in promoted)
            promoted.add(move.version_id)
            serving = move.version_id if move.served_at is not None else serving
        for id, row in made.items():
            assert (row.state == VersionState.PROMOTED) == any(
                m.version_id == id and m.served_at is not None for m in moves
            )
        if not intended:
            assert self.registry.aliases.get("delays") == (made[serving].number if serving else None)

    @invariant()
    def everyone_is_told_once(self) -> None:  # I8
        with self.ledger.read() as tx:
            told = tx.execute(select(notice).order_by(notice.c.sequence)).all()
            served = tx.execute(select(func.count()).where(promotion.c.served_at.is_not(None))).scalar_one()
            states = list(tx.execute(select(version.c.state)).scalars())
            ends = list(tx.execute(select(run.c.state)).scalars())
            sent = tx.execute(select(delivery.c.sequence)).scalars().all()
        kinds = [row.type for row in told]
        assert [row.sequence for row in told] == list(range(1, len(told) + 1))
        assert sorted(sent) == [row.sequence for row in told]  # one subscription, which wants all
        assert kinds.count("version.promoted") + kinds.count("version.rolled_back") == served
        assert kinds.count("version.rejected") == states.count(VersionState.REJECTED)
        assert kinds.count("version.awaiting") >= states.count(VersionState.AWAITING)
        assert kinds.count("run.failed") == ends.count(RunState.FAILED)
        assert kinds.count("run.cancelled") == ends.count(RunState.CANCELLED)

    def teardown(self) -> None:
        """Workers, MLflow and the operator's file come back: nothing is stuck (I10)."""
        put_config(self.ledger, CONFIG)
        for _ in range(6):
            self.time_passes(400)
            self.a_worker_takes_what_is_due("w9", "finish")
            self.the_bridge_looks(0.9, 4, False, True)
            self.deliver(204)
        with self.ledger.read() as tx:
            assert runs.find_busy(tx, "delays") is None
            waiting = runs.find_waiting(tx, "delays")
            assert waiting is None or waiting.due_at is None
            assert (versions.unregistered(tx), versions.candidates(tx), versions.with_intent(tx)) == ([], [], [])
        super().teardown()


TestHeadrace = Headrace.TestCase
TestHeadrace.settings = settings(
    max_examples=40,
    stateful_step_count=40,
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
