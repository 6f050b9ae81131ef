"""Each way in which a ledger can be wrong is planted in one that is right, by SQL and behind the transitions' back, and is told."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

import pytest
from sqlalchemy import func, select

from shared.audit import Sheet
from shared.ledger import Ledger, planning, restored
from shared.ledger.audit.standstill import standstill
from shared.ledger.tables import notice
from tests import audited, ledgers
from tests.audited import LATER
from tests.ledgers import HandClock, grow, in_memory

COPY = "CREATE TABLE other AS SELECT * FROM {0}; DROP TABLE {0}; ALTER TABLE other RENAME TO {0};"

# What is planted, and the invariant, the kind and the ids that are told. The past is `audited.furnish`'s: runs 1 to 4 have versions 1 to 4, run 5 has
# failed, run 6 was cancelled, run 7 waits.
PLANTED = {
    "a cursor beyond its arrivals": (
        """UPDATE dataset SET cut = json_set(cut, '$.upto', 99999) WHERE name = 'flights'""",
        ("I1", "cursor", {"dataset": "flights"}),
    ),
    "an arrival that is gone from the middle": (
        "DELETE FROM arrival WHERE id = 2",
        ("I1", "gap", {"dataset": "flights", "arrival": 3}),
    ),
    "a report whose arrival is of another dataset": (
        "UPDATE report SET dataset = 'flights'",
        ("I1", "report", {"report": 1}),
    ),
    "a report that is there twice": (
        COPY.format("report") + "INSERT INTO report SELECT id + 1, source, event_id, dataset, arrival_id, received_at, fingerprint FROM report",
        ("I2", "report_twice", {"source": "/loader", "event": "e-1"}),
    ),
    "a report that made two arrivals": (
        "UPDATE arrival SET source = '/loader', event_id = 'e-1' WHERE id = 1",
        ("I2", "arrival_twice", {}),
    ),
    "a waiting run that is gone": (
        "DELETE FROM run WHERE id = 7",
        ("I3", "no_fate", {"model": "delays", "dataset": "flights"}),
    ),
    "a waiting run that is gone, behind a sample that was cancelled": (
        "DELETE FROM run WHERE id = 7; UPDATE run SET sample = '1%', finished_at = '2030-01-01 00:00:00.000000' WHERE id = 6",
        ("I3", "no_fate", {"model": "delays", "dataset": "flights"}),
    ),
    "a cut that goes back": (
        "UPDATE run SET cut = (SELECT cut FROM run WHERE id = 1), cut_digest = (SELECT cut_digest FROM run WHERE id = 1) WHERE id = 3",
        ("I3", "older_cut", {"run": 3, "dataset": "flights"}),
    ),
    "a cut that ends with another dataset's arrival": (
        "UPDATE arrival SET dataset = 'reported' WHERE id = 4",
        ("I3", "unknown_arrival", {"run": 4, "dataset": "flights"}),
    ),
    "a champion that an older run displaced": (
        "UPDATE promotion SET actor = 'headrace', kind = 'promoted' WHERE kind = 'rolled_back'",
        ("I3", "older_champion", {"model": "delays", "version": 1}),
    ),
    "two waiting runs": (
        "DROP INDEX uq_run_waiting; UPDATE run SET state = 'waiting' WHERE id = 6",
        ("I4", "two_waiting", {"model": "delays"}),
    ),
    "two running runs": (
        "DROP INDEX uq_run_running; UPDATE run SET state = 'running' WHERE id IN (5, 6)",
        ("I4", "two_running", {"model": "delays"}),
    ),
    "two samples that wait": (
        "DROP INDEX uq_run_sample_waiting; UPDATE run SET state = 'waiting', sample = '1%' WHERE id IN (5, 6)",
        ("I4", "two_sample_waiting", {"model": "delays"}),
    ),
    "a rejected version that was trained on a sample": (
        "UPDATE run SET sample = '1%' WHERE id = 3",
        ("I7", "sample", {"version": 3}),
    ),
    "a sample that was judged": (
        "UPDATE run SET sample = '1%' WHERE id = 3; UPDATE version SET state = 'sample' WHERE number = 3",
        ("I7", "sample_judged", {"version": 3}),
    ),
    "a sample that serves": (
        "UPDATE run SET sample = '1%' WHERE id = 2; UPDATE version SET state = 'sample' WHERE number = 2",
        ("I7", "served", {"version": 2}),
    ),
    "a state that there is not": (
        "UPDATE run SET state = 'lost' WHERE id = 6",
        ("I5", "state", {"run": 6}),
    ),
    "a token ahead of its attempts": (
        "UPDATE run SET token = 3 WHERE id = 5",
        ("I5", "token", {"run": 5}),
    ),
    "an attempt that is gone": (
        "DELETE FROM attempt WHERE run_id = 5 AND number = 1",
        ("I5", "token", {"run": 5}),
    ),
    "an attempt left open": (
        "UPDATE attempt SET ended_at = NULL WHERE run_id = 5 AND number = 1",
        ("I5", "open_attempt", {"run": 5}),
    ),
    "a lease of a run that has ended": (
        "UPDATE run SET lease_until = finished_at, lease_owner = 'w1' WHERE id = 2",
        ("I5", "lease", {"run": 2}),
    ),
    "an end without its time": (
        "UPDATE run SET finished_at = NULL WHERE id = 6",
        ("I5", "end", {"run": 6}),
    ),
    "a claimed run without a cut": (
        "UPDATE run SET cut = NULL WHERE id = 5",
        ("I5", "cut", {"run": 5}),
    ),
    "a cut that was changed after the claim": (
        "UPDATE run SET cut = json_set(cut, '$.flights.upto', 17) WHERE id = 2",
        ("I5", "cut_digest", {"run": 2}),
    ),
    "a trained run whose attempt failed": (
        "UPDATE attempt SET outcome = 'failed' WHERE run_id = 2",
        ("I5", "outcome", {"run": 2}),
    ),
    "a bundle that is named no more": (
        "UPDATE run SET bundle = NULL WHERE id = 3",
        ("I5", "bundle", {"run": 3}),
    ),
    "a version of a run that was not trained": (
        "UPDATE version SET run_id = 5 WHERE number = 4",
        ("I6", "version_of", {"model": "delays", "version": 4, "run": 5}),
    ),
    "a trained run that nobody registers": (
        "DELETE FROM verdict WHERE version_id = 4; DELETE FROM version WHERE id = 4",
        ("I6", "not_registered", {"run": 4}),
    ),
    "a version called promoted that never served": (
        "UPDATE version SET state = 'promoted' WHERE number = 3",
        ("I7", "served", {"model": "delays", "version": 3, "run": 3}),
    ),
    "a verdict that nothing followed": (
        "UPDATE version SET state = 'candidate' WHERE number = 3",
        ("I7", "judged", {"version": 3}),
    ),
    "a rejected version without a verdict": (
        "DELETE FROM verdict WHERE version_id = 3",
        ("I7", "verdict", {"version": 3}),
    ),
    "a pinned version that was tidied away": (
        "UPDATE version SET tidied_at = registered_at WHERE number = 3",
        ("I7", "tidied", {"version": 3}),
    ),
    "a version that MLflow let go of by itself": (
        "UPDATE version SET removed_at = registered_at WHERE number = 3",
        ("I7", "removed", {"version": 3}),
    ),
    "a promotion that replaces another than served": (
        "UPDATE promotion SET replaces_id = 3 WHERE version_id = 2",
        ("I7", "chain", {"model": "delays", "promotion": 2, "version": 2}),
    ),
    "a promotion without a verdict": (
        "DELETE FROM verdict WHERE version_id = 2",
        ("I7", "no_verdict", {"model": "delays", "promotion": 2, "version": 2}),
    ),
    "a promotion whose verdict names another champion": (
        "UPDATE verdict SET champion_id = 3 WHERE version_id = 2",
        ("I7", "no_verdict", {"promotion": 2}),
    ),
    "a promotion by nobody": (
        "UPDATE promotion SET actor = '' WHERE id = 2",
        ("I7", "no_word", {"promotion": 2}),
    ),
    "a rollback to what never served": (
        "UPDATE promotion SET version_id = 3 WHERE kind = 'rolled_back'",
        ("I7", "never_served", {"promotion": 3}),
    ),
    "a promotion beside another that is under way": (
        "UPDATE promotion SET served_at = NULL WHERE id = 1",
        ("I7", "overlap", {"promotion": 2}),
    ),
    "a notice that is gone": (
        "DELETE FROM delivery WHERE sequence = 3; DELETE FROM notice WHERE sequence = 3",
        ("I8", "gap", {"sequence": 3}),
    ),
    "a number that was given to no notice": (
        "UPDATE counter SET value = value + 1 WHERE name = 'notice'",
        ("I8", "counter", {}),
    ),
    "a delivery that was not made": (
        "DELETE FROM delivery WHERE sequence = 3",
        ("I8", "no_delivery", {"sequence": 3, "subscription": "shop"}),
    ),
    "a delivery that was made twice": (
        "INSERT INTO delivery SELECT 'msg_twice', sequence, subscription, state, due_at, lease_until, attempts, answer, error, ended_at FROM delivery WHERE sequence = 3",
        ("I8", "two_deliveries", {"sequence": 3, "subscription": "shop"}),
    ),
    "a delivery that was given up without a try": (
        "UPDATE delivery SET state = 'failed', attempts = 0 WHERE sequence = 3",
        ("I8", "never_tried", {}),
    ),
    "a promotion that nobody was told of": (
        "UPDATE notice SET type = 'run.failed' WHERE type = 'version.promoted' AND run_id = 2",
        ("I8", "not_told", {"run": 2, "type": "version.promoted"}),
    ),
    "a rejection that was told twice": (
        "INSERT INTO notice SELECT 100, 'again', type, subject, model, run_id, data, traceparent, at FROM notice WHERE type = 'version.rejected'",
        ("I8", "told_too_often", {"run": 3, "type": "version.rejected"}),
    ),
    "a failure that nobody was told of": (
        "UPDATE notice SET run_id = 1 WHERE type = 'run.failed'",
        ("I8", "not_told", {"run": 5, "type": "run.failed"}),
    ),
    "a due run that a free worker leaves alone": (
        "UPDATE run SET due_at = planned_at WHERE id = 7",
        ("I10", "not_claimed", {"run": 7}),
    ),
    "a waiting run that does not say why": (
        "UPDATE run SET sentence = '' WHERE id = 7",
        ("I10", "not_planned", {"run": 7}),
    ),
    "a run that should be due and is not": (
        "UPDATE run SET asked = 1 WHERE id = 7",
        ("I10", "not_planned", {"run": 7}),
    ),
    "a wanted score that a free worker leaves alone": (
        "INSERT INTO score (run_id, holdout, rows, compute_class, tries) VALUES (2, 'sha256:h2', '{}', 'standard', 0)",
        ("I10", "not_scored", {"run": 2}),
    ),
    "a candidate that nobody judges": (
        "DELETE FROM verdict WHERE version_id = 4; UPDATE version SET state = 'candidate' WHERE number = 4",
        ("I10", "not_judged", {"model": "delays", "version": 4}),
    ),
    "a promotion whose alias does not follow": (
        "UPDATE promotion SET served_at = NULL, lease_until = NULL WHERE kind = 'rolled_back'",
        ("I10", "intent", {"model": "delays", "promotion": 3}),
    ),
    "a delivery that nobody sends": (
        "UPDATE delivery SET state = 'pending', due_at = (SELECT at FROM notice n WHERE n.sequence = delivery.sequence), lease_until = NULL, ended_at = NULL WHERE sequence = 3",
        ("I10", "not_sent", {}),
    ),
    "a dataset that nobody watches": (
        "UPDATE dataset SET lease_until = (SELECT min(observed_at) FROM arrival)",
        ("I10", "not_watched", {"dataset": "flights"}),
    ),
    "a janitor that went silent": (
        "INSERT INTO tidying (id, owner, keep, lease_until, started_at) SELECT 1, 'b1', '{}', min(observed_at), min(observed_at) FROM arrival",
        ("I10", "janitor", {"turn": 1}),
    ),
    "a row that points at nothing": (
        "UPDATE report SET arrival_id = 99",
        ("ledger", "foreign_key", {"table": "report", "row": 1}),
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def furnished() -> Iterator[tuple[Ledger, HandClock, bytes, datetime]]:
    """One for all: a test gets the bytes back as they were, for statements compile only once an engine."""
    ledger, clock = in_memory()
    audited.furnish(ledger, clock)
    raw = ledger.engine.raw_connection()
    yield ledger, clock, raw.driver_connection.serialize(), clock.at
    raw.close()
    ledger.close()


@pytest.fixture
def clock_and_ledger(furnished: tuple[Ledger, HandClock, bytes, datetime]) -> tuple[Ledger, HandClock]:
    ledger, clock, content, clock.at = furnished
    raw = ledger.engine.raw_connection()
    raw.driver_connection.deserialize(content)
    raw.close()
    return ledger, clock


@pytest.fixture
def ledger(clock_and_ledger: tuple[Ledger, HandClock]) -> Ledger:
    return clock_and_ledger[0]


def plant(ledger: Ledger, script: str) -> None:
    raw = ledger.engine.raw_connection()
    raw.driver_connection.executescript(f"PRAGMA foreign_keys = OFF; {script}; PRAGMA foreign_keys = ON;")
    raw.close()


def test_a_ledger_in_which_a_good_deal_has_happened_is_clean_and_was_looked_at(ledger: Ledger) -> None:
    sheet = audited.audited(ledger)
    assert not sheet.found
    assert sheet.counts["I5"] == {"runs": 7, "attempts": 6}
    assert sheet.counts["I1"] == {"arrivals": 7, "datasets": 2}
    assert sheet.counts["I7"] == {"promotions": 3}
    assert sheet.counts["I8"]["changes of versions"] == 5


def test_a_ledger_that_was_restored_is_clean_before_and_after_its_new_numbers_are_used(ledger: Ledger) -> None:
    with ledger.write() as tx:
        restored.begin_anew(tx, "carol")
        quiet = tx.execute(select(func.max(notice.c.sequence))).scalar_one()
    assert quiet > 1_000_000, "runs were called off, which was told"
    assert not audited.audited(ledger).found
    with ledger.write() as tx:
        above = restored.begin_anew(tx, "carol").above
        assert above == 2_000_000
    grow(ledger)
    assert not audited.audited(ledger).found
    plant(ledger, f"DELETE FROM delivery WHERE sequence = {above + 1}; DELETE FROM notice WHERE sequence = {above + 1}")
    assert [one.kind for one in audited.found(ledger) if one.kind == "gap"] == ["gap"]


def test_a_restore_after_which_nothing_was_told_is_clean_too() -> None:
    ledger, _ = in_memory()
    grow(ledger)
    with ledger.write() as tx:
        restored.begin_anew(tx, "carol")
    assert not audited.audited(ledger).found
    ledger.close()


@pytest.mark.parametrize("planted", PLANTED)
def test_an_audit_tells_of(ledger: Ledger, planted: str) -> None:
    script, (invariant, kind, ids) = PLANTED[planted]
    plant(ledger, script)
    told = [one for one in audited.found(ledger) if (one.invariant, one.kind) == (invariant, kind)]
    assert told, [(one.invariant, one.kind, one.what) for one in audited.found(ledger)]
    assert ids.items() <= told[0].ids.items()
    assert told[0].what
    assert len(told[0].do) > 20, "what to do about it"


def test_what_has_only_just_begun_is_no_standstill(clock_and_ledger: tuple[Ledger, HandClock]) -> None:
    ledger, clock = clock_and_ledger
    plant(ledger, "UPDATE delivery SET state = 'pending', ended_at = NULL")
    plant(ledger, f"UPDATE run SET due_at = '{clock.at:%Y-%m-%d %H:%M:%S.000000}' WHERE id = 7")
    plant(ledger, f"UPDATE delivery SET due_at = '{clock.at:%Y-%m-%d %H:%M:%S.000000}'")
    clock.at += LATER / 2
    assert not [one for one in audited.found(ledger) if one.invariant == "I10"]
    clock.at += LATER
    audited.attend(ledger)
    assert {one.kind for one in audited.found(ledger)} == {"not_claimed", "not_sent"}


def test_a_run_that_no_worker_serves_or_that_queues_behind_others_is_no_violation(ledger: Ledger) -> None:
    plant(ledger, "UPDATE run SET due_at = planned_at WHERE id = 7; UPDATE worker SET busy = slots")
    assert not audited.found(ledger)
    plant(ledger, "DELETE FROM worker")
    assert not audited.found(ledger)


def test_a_registration_that_says_why_it_waits_is_no_violation(ledger: Ledger) -> None:
    plant(
        ledger,
        "DELETE FROM verdict WHERE version_id = 4; DELETE FROM version WHERE id = 4; DELETE FROM notice WHERE type = 'version.awaiting'",
    )
    plant(ledger, "UPDATE run SET registration_error = 'MLflow did not answer' WHERE id = 4")
    assert "not_registered" not in {one.kind for one in audited.found(ledger)}


def test_of_very_many_violations_of_a_kind_the_first_are_named_and_the_rest_counted() -> None:
    sheet = Sheet()
    for number in range(1000):
        sheet.violated("I5", "token", "…", "…", run=number)
    assert (len(sheet.found), sheet.unnamed["I5"]) == (200, 800)


def test_a_second_look_keeps_only_what_is_still_so(clock_and_ledger: tuple[Ledger, HandClock]) -> None:
    ledger, _ = clock_and_ledger
    plant(ledger, "UPDATE run SET due_at = planned_at WHERE id = 7")
    first, again = Sheet(), Sheet()
    standstill(ledger, first)
    plant(ledger, "UPDATE run SET due_at = NULL; DELETE FROM dataset")
    standstill(ledger, again)
    assert {one.kind for one in first.found.values()} == {"not_claimed"}
    assert not first.confirmed(again).found


def test_a_ledger_that_was_restored_from_a_copy_is_clean(ledger: Ledger) -> None:
    with ledger.write() as tx:
        run = planning.ask(tx, "delays", "somebody asks")
    assert ledgers.claim(ledger, run) is not None
    with ledger.write() as tx:
        restored.begin_anew(tx, "alice", "the disk broke")
    audited.attend(ledger)
    assert not [one.what for one in audited.found(ledger)]
