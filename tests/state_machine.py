"""The ledger under any order of what can happen: it does what a plain model of it does, the invariants of the design hold after each step,
and everything comes to rest. `tests/unit` runs it in memory, `tests/contract` on every database.

A failure prints its steps as a program, and a line `@reproduce_failure(…)`; put above `machine` in the test that failed, it plays just them again,
in seconds.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from functools import partial
from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from sqlalchemy import func, select

from services.registry_bridge.promote import Promoter
from shared.arrivals import Report
from shared.cuts import Cut
from shared.errors import Conflict, Fenced, NotFound, Unavailable
from shared.gates import Decision, Verdict
from shared.ledger import (
    Ledger,
    Transaction,
    arrivals,
    attempts,
    datasets,
    deliveries,
    fates,
    planning,
    releases,
    runs,
    scores,
    versions,
)
from shared.ledger.attempts import Claim, Failure
from shared.ledger.fates import FateKind
from shared.ledger.tables import attempt, delivery, metadata, notice, promotion, run, verdict, version
from shared.lifecycle import RunState, VersionState
from tests.ledgers import CONFIG, LEASE, HandClock, declare, empty, put_config
from tests.plain_model import End, PlainModel, PlainRun
from tests.registry_twin import Killed, RegistryTwin

RELEASES = [(f"v{major}.0.0", f"{major}" * 40) for major in (1, 2, 3)]
CONFIGS = {
    "as ever": CONFIG,
    "patient": CONFIG.replace("{ min_rows = 100 }", '{ quiet = "10s", cooldown = "40s", max_wait = "2m" }'),
    "manual": CONFIG.replace("[models.delays]", '[models.delays]\npromote = "manual"'),
    "no model": CONFIG.split("[models.delays]")[0] + "[[subscriptions]]" + CONFIG.split("[[subscriptions]]")[1],
    "no dataset": CONFIG.replace("[datasets.flights]", "[datasets.other]"),
}
TRANSIENT, LASTING = Failure("infrastructure", "disk", transient=True), Failure("author_error", "KeyError")
ENDINGS: dict[End, Callable[[Transaction, Claim], object]] = {
    End.TRAINED: lambda tx, held: attempts.finish(tx, held.run, held.token, "sha256:" + "b" * 64, {}),
    End.BEAT: lambda tx, held: attempts.beat(tx, held.run, held.token, LEASE, 0.5),
    End.FAILED: lambda tx, held: attempts.fail(tx, held.run, held.token, TRANSIENT, {}),
    End.FAILED_FOR_GOOD: lambda tx, held: attempts.fail(tx, held.run, held.token, LASTING, {}),
    End.HANDED_BACK: lambda tx, held: attempts.hand_back(tx, held.run, held.token, "leaves", {}),
    End.CANCELLED: lambda tx, held: attempts.cancelled(tx, held.run, held.token, {}),
}
HOW = st.sampled_from([End.TRAINED, *End])  # most do
SCORES = st.sampled_from([0.7, 0.5, None])
WORKERS = st.sampled_from(["w1", "w2", "w3"])
QUICK = settings(
    max_examples=15,
    stateful_step_count=40,
    deadline=None,
    print_blob=True,
    phases=[
        Phase.explicit,
        Phase.reuse,
        Phase.generate,
    ],  # to make a failure small takes minutes: leave this line out for it
    suppress_health_check=[HealthCheck.too_slow],
)


class Headrace(RuleBasedStateMachine):
    """`ledger` is any ledger with its tables; what is in it is deleted."""

    def __init__(self, ledger: Ledger) -> None:
        super().__init__()
        self.clock, self.ledger, self.registry = HandClock(), ledger, RegistryTwin()
        ledger.go_by(self.clock)
        self.promoter = Promoter(ledger, self.registry, lambda _wanted: None)
        self.plain = PlainModel(LEASE)
        self.config = CONFIG
        self.claims: list[Claim] = []
        self.reported: dict[str, int | None] = {}
        self.verdicts: list[tuple[Any, Any]] = []
        self.registered = 0

    @initialize()
    def begin(self) -> None:
        empty(self.ledger)
        self._put(CONFIG)
        self.release(RELEASES[0], "flights")
        self.data_arrives(500)

    def _put(self, config: str) -> None:
        put_config(self.ledger, config)
        self.config = config
        if "[models.delays]" not in config:
            self.plain.taken_out()

    def _knows(self, dataset: str | None = None) -> bool:
        """Whether the operator's file has the model, and the dataset if one is named."""
        return "[models.delays]" in self.config and (dataset is None or f"[datasets.{dataset}]" in self.config)

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
        self._put(CONFIGS[name])
        if not stays:
            self.a_worker_takes_what_is_due("w1", None)
            self._put(CONFIG)

    @rule(seconds=st.sampled_from([0.5, 6, 61, 400, -1, -90]))
    def time_passes(self, seconds: float) -> None:
        """Or the clock is set back."""
        self.clock.forward(seconds=seconds)

    @rule(auc=SCORES, steps=st.sampled_from([4, 4, 4, 3, 2, 1]))
    def all_goes_well_up_to_a_step(self, auc: float | None, steps: int) -> None:
        """The usual day, so that the unusual ones start from many places."""
        self.clock.forward(minutes=10)
        self.data_arrives(500)
        self.a_worker_takes_what_is_due("w1", End.TRAINED)
        self.the_bridge_looks(auc, steps, False, False)

    # What workers do.

    @rule(worker=WORKERS, ending=st.none() | HOW)
    def a_worker_takes_what_is_due(self, worker: str, ending: End | None) -> None:
        with self.ledger.read() as tx:
            due = runs.claimable(tx, "standard")
        if due is not None and self._claim(due, worker) and ending is not None:
            self._end(self.claims[-1], ending)

    @rule(worker=WORKERS, which=st.integers(1, 6))
    def a_message_comes_twice_or_late(self, worker: str, which: int) -> None:
        self._claim(which, worker)

    @precondition(lambda self: self.claims)
    @rule(worker=WORKERS, ending=HOW)
    def a_worker_goes_silent_and_comes_back(self, worker: str, ending: End) -> None:
        silent = self.claims[-1]
        self.clock.forward(seconds=31)
        self._claim(silent.run, worker)
        self._end(silent, ending)

    @precondition(lambda self: self.claims)
    @rule(back=st.integers(0, 2), ending=HOW)
    def a_claim_ends(self, back: int, ending: End) -> None:
        """The newest, or one whose worker slept and does not know better."""
        self._end(self.claims[-1 - back % len(self.claims)], ending)

    def _claim(self, id: int, worker: str) -> bool:
        with self.ledger.write() as tx:
            self._meet_new_runs(tx)
            due, known = runs.is_claimable(tx, id), self._knows(self._dataset_of(tx, id))
            repeats = known and self._repeats(tx, id)
            held = attempts.claim(tx, id, worker, LEASE)
        assert (held is not None) == self.plain.take(id, self.clock.now(), due=due, known=known, repeats=repeats)
        if held is None:
            return False
        before = [one for one in self.claims if one.run == id]
        assert all(one.token < held.token for one in before)
        assert all((one.cut, one.release) == (held.cut, held.release) for one in before)
        self.claims.append(held)
        return True

    def _repeats(self, tx: Transaction, id: int) -> bool:
        """Whether the run would train the commit and the rows that the newest one has trained."""
        rows = runs.find_all(tx)  # the newest first
        asked = next((row for row in rows if row.id == id), None)
        newest = next((row for row in rows if row.started_at is not None and row.sample is None), None)
        if (
            asked is None
            or asked.sample is not None
            or newest is None
            or newest.state != RunState.TRAINED
            or asked.cut is not None
            or asked.again
        ):
            return False
        one, other = releases.find(tx, asked.release_id), releases.find(tx, newest.release_id)
        known = datasets.known(tx, list(one.declaration.datasets))
        return one.commit == other.commit and {name: part.to_json() for name, part in known.items()} == newest.cut

    def _dataset_of(self, tx: Transaction, id: int) -> str | None:
        with suppress(NotFound):
            return next(iter(releases.find(tx, runs.find(tx, id).release_id).declaration.datasets))
        return None

    def _meet_new_runs(self, tx: Transaction) -> None:
        """Runs that were planned since the last look; each begins as a waiting one."""
        for row in tx.execute(select(run.c.id).where(run.c.id.not_in(list(self.plain.runs)))):
            self.plain.runs[row.id] = PlainRun()

    def _end(self, held: Claim, ending: End) -> None:
        with self.ledger.read() as tx:
            before = runs.find(tx, held.run)
        counts = self.plain.say(held.run, held.token, ending, self.clock.now(), known=self._knows())
        try:
            with self.ledger.write() as tx:
                ENDINGS[ending](tx, held)
        except Fenced:
            assert not counts
            with self.ledger.read() as tx:
                assert runs.find(tx, held.run) == before
        else:
            assert counts

    @precondition(lambda self: self.claims)
    @rule(back=st.integers(0, 2), ending=HOW)
    def a_worker_dies_before_its_commit(self, back: int, ending: End) -> None:
        held = self.claims[-1 - back % len(self.claims)]
        before = self._all_rows()
        with suppress(Fenced, Killed), self.ledger.write() as tx:
            ENDINGS[ending](tx, held)
            raise Killed
        assert self._all_rows() == before

    def _all_rows(self) -> dict[str, list[Any]]:
        with self.ledger.read() as tx:
            return {
                table.name: tx.execute(select(table).order_by(*table.primary_key)).all()
                for table in metadata.sorted_tables
            }

    # What people do.

    @rule(which=st.integers(1, 6), again=st.booleans())
    def a_run_is_cancelled_or_retried(self, which: int, again: bool) -> None:
        with suppress(Conflict, NotFound), self.ledger.write() as tx:
            self._meet_new_runs(tx)
            planning.retry(tx, which, "once more") if again else planning.cancel(tx, which, "not now")
        if not again and which in self.plain.runs:
            self.plain.stop(which)

    @rule(sample=st.sampled_from(["1%", "50"]))
    def consumers_ask_for_a_sample(self, sample: str) -> None:
        with suppress(Conflict, NotFound), self.ledger.write() as tx:
            planning.ask(tx, "delays", "consumers begin", "carol", sample=sample)

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

    @precondition(lambda self: self.registered)
    @rule()
    def a_bridge_begins_to_judge(self) -> None:
        """It has read the candidate and the champion, and is slow from here on."""
        with self.ledger.read() as tx:
            for id in versions.candidates(tx):
                row, champion = versions.of_run(tx, id), versions.champion(tx, "delays")
                if champion is None or champion.run_id < row.run_id:
                    self.verdicts.append((row, champion))

    @rule(decision=st.sampled_from(Decision))
    def a_verdict_is_overtaken_by_a_promotion(self, decision: Decision) -> None:
        for _ in range(2):
            self.all_goes_well_up_to_a_step(None, 1)
        before = len(self.verdicts)
        self.a_bridge_begins_to_judge()
        with self.ledger.read() as tx:
            first = versions.candidates(tx)[:1]
        self._score(0.9)
        for id in first * 2:  # the first time it may wish for a score
            self.promoter.settle(id)
            self._score(0.9)
        with suppress(Unavailable):
            self.promoter.follow("delays")
        for which in range(before, len(self.verdicts)):
            self.a_verdict_comes_late(which, decision)

    @precondition(lambda self: self.verdicts)
    @rule(which=st.integers(0, 3), decision=st.sampled_from(Decision))
    def a_verdict_comes_late(self, which: int, decision: Decision) -> None:
        """It counts only if the champion is still the one that it names, nobody has judged meanwhile, and no promotion is under way."""
        row, champion = self.verdicts[which % len(self.verdicts)]
        with self.ledger.read() as tx:
            now, serving = versions.of_run(tx, row.run_id), versions.champion(tx, "delays")
            stale = versions.has_intent(tx, "delays") or now.state != VersionState.CANDIDATE
        stale = stale or (serving.id if serving else None) != (champion.id if champion else None)
        try:
            with self.ledger.write() as tx:
                versions.decide(tx, row, champion, Verdict(decision, ("as seen",)), "sha256:h", automatic=True)
        except Conflict:
            assert stale
        else:
            assert not stale

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
    def the_ledger_is_as_the_plain_model_says(self) -> None:
        with self.ledger.read() as tx:
            self._meet_new_runs(tx)
            rows = tx.execute(select(run)).all()
        found = {
            row.id: PlainRun(
                row.state,
                row.token,
                row.failures,
                row.lost,
                row.cancel_reason is not None,
                row.lease_until,
                row.due_at if row.state == RunState.RETRYING else None,
            )
            for row in rows
        }
        assert found == self.plain.runs

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
        assert row.sample is None
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
        for samples in (False, True):
            states = [row.state for row in rows if (row.sample is not None) == samples]
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
            parts = set(tx.execute(select(run.c.id).where(run.c.sample.is_not(None))).scalars())
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
        judged = {one.version_id for one in (*moves, *words)}
        for id, row in made.items():
            assert (row.state == VersionState.SAMPLE) == (row.run_id in parts)
            assert row.run_id not in parts or id not in judged
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
        self._put(CONFIG)
        for _ in range(6 + 2 * self.registered):  # one champion at a time
            self.time_passes(2400)  # more than the clock was ever set back
            self.a_worker_takes_what_is_due("w9", End.TRAINED)
            self.the_bridge_looks(0.9, 4, False, True)
            self.deliver(204)
            if self._rests():
                break
        assert self._rests()
        super().teardown()

    def _rests(self) -> bool:
        with self.ledger.read() as tx:
            waiting = runs.find_waiting(tx, "delays")
            idle = runs.find_busy(tx, "delays") is None and (waiting is None or waiting.due_at is None)
            busy, waits = (find(tx, "delays", sample=True) for find in (runs.find_busy, runs.find_waiting))
            idle = idle and busy is None and (waits is None or waits.due_at is None)  # for the first rows
            return idle and not (versions.unregistered(tx) or versions.candidates(tx) or versions.with_intent(tx))
