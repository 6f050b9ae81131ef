"""The ledger on PostgreSQL: whose time counts, what is limited, what is tried again, and that nothing hangs on a session."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any, LiteralString

import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from shared.cuts import Cut
from shared.errors import ConfigurationError, Unavailable, Undone
from shared.ledger import (
    Ledger,
    Transaction,
    arrivals,
    attempts,
    datasets,
    deliveries,
    planning,
    postgres,
    repeats,
    runs,
)
from shared.ledger.schema import await_schema, check_schema, migrate
from shared.ledger.tables import metadata
from shared.notices import NoticeType
from tests import ledgers
from tests.ledgers import CONFIG, HandClock, adopt, grow, put_config
from tests.pooler import transaction_pooler
from tests.postgres_server import Postgres, start_postgres

DEADLINE_S = 30.0


@pytest.fixture
def url(postgres: Postgres, postgres_template: str) -> str:
    return postgres.new_database(postgres_template)


@pytest.fixture
def opened(url: str) -> Iterator[Ledger]:
    made = Ledger(url)
    put_config(made, CONFIG)
    yield made
    made.close()


@pytest.fixture
def own_server(postgres_template: str) -> Iterator[Postgres]:
    """A server that a test may restart."""
    server = start_postgres()
    migrate(server.url)
    yield server
    server.stop()


def note(ledger: Ledger, name: str = "flights") -> None:
    with ledger.write() as tx:
        datasets.ensure(tx, name)


def names(ledger: Ledger) -> list[str]:
    with ledger.read() as tx:
        return [row.name for row in datasets.find_all(tx)]


def kill_sessions(url: str) -> None:
    """What a failover or an administrator does: every session of the database ends, ours in the pool too."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )


def wait_for(look: Callable[[], bool]) -> None:
    deadline = threading.Event()
    timer = threading.Timer(DEADLINE_S, deadline.set)
    timer.start()
    while not look():
        assert not deadline.is_set(), "waited too long"
    timer.cancel()


def waiters(url: str) -> int:
    return int(select(url, "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted")[0][0])


def select(url: str, query: LiteralString) -> list[Any]:
    """What a session of its own sees."""
    with psycopg.connect(url, autocommit=True) as connection:
        return connection.execute(query).fetchall()


def test_the_time_is_the_databases_and_a_clock_that_is_given_goes_before_it(url: str) -> None:
    clock = HandClock(datetime(2001, 1, 1, tzinfo=UTC))
    ours, given = Ledger(url), Ledger(url, clock)
    with ours.read() as tx:
        asked = tx.connection.scalar(text("SELECT clock_timestamp()"))
        assert timedelta(0) <= asked - tx.now < timedelta(seconds=DEADLINE_S)
    with given.write() as tx:
        assert tx.now == clock.at
    ours.close()
    given.close()


def test_a_worker_whose_clock_is_an_hour_ahead_takes_no_run_whose_lease_holds(
    opened: Ledger, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    adopt(opened)
    grow(opened)
    run = ledgers.waiting(opened)
    assert ledgers.claim(opened, run, "right") is not None
    monkeypatch.setattr("shared.clock.datetime", Ahead)
    ahead = Ledger(url)
    assert ahead.clock.now() > datetime.now(UTC) + timedelta(minutes=50)
    assert ledgers.claim(ahead, run, "ahead") is None
    ahead.close()


class Ahead(datetime):
    @classmethod
    def now(cls, tz: object = None) -> datetime:  # type: ignore[override]
        return datetime.now(UTC) + timedelta(hours=1)


def test_each_transaction_brings_its_own_limits_and_the_session_keeps_none(opened: Ledger) -> None:
    wanted = {"statement_timeout": "15s", "lock_timeout": "10s", "idle_in_transaction_session_timeout": "10s"}
    with opened.write() as tx:
        assert {name: tx.connection.scalar(text(f"SHOW {name}")) for name in wanted} == wanted
    with opened.engine.connect() as connection:
        assert {connection.scalar(text(f"SHOW {name}")) for name in wanted} == {"0"}


def test_a_statement_past_its_limit_is_unavailable(opened: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Unavailable, match="statement timeout"), opened.write() as tx:
        tx.connection.execute(text("SET LOCAL statement_timeout = '50ms'"))
        tx.connection.execute(text("SELECT pg_sleep(20)"))


def test_a_transaction_that_somebody_else_blocks_is_unavailable_after_the_lock_limit(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres, "LOCK_S", 1)
    impatient = Ledger(url)
    with psycopg.connect(url) as outside:
        outside.execute("LOCK TABLE dataset IN ACCESS EXCLUSIVE MODE")
        with pytest.raises(Unavailable, match="lock timeout"):
            note(impatient)
    note(impatient)
    assert names(impatient) == ["flights"]
    impatient.close()


def test_a_writer_that_stands_still_in_a_transaction_is_cut_off_and_has_written_nothing(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres, "IDLE_S", 1)
    paused, other = Ledger(url), Ledger(url)
    with pytest.raises(Unavailable), paused.write() as tx:
        datasets.ensure(tx, "half-written")
        note(other, "half-written")  # waits for the name until the session that stands still is ended
        datasets.looked(tx, "half-written", None)
    assert names(other) == ["half-written"]
    paused.close()
    other.close()


def test_connections_that_died_in_the_pool_are_replaced_and_nobody_notices(opened: Ledger, url: str) -> None:
    note(opened, "before")
    kill_sessions(url)
    note(opened, "after")
    assert names(opened) == ["after", "before"]


def test_a_connection_lost_in_mid_transaction_is_undone_and_repeated(opened: Ledger, url: str) -> None:
    tries = []

    @repeats
    def work() -> None:
        with opened.write() as tx:
            datasets.ensure(tx, "flights")
            tries.append(1)
            if len(tries) == 1:
                kill_sessions(url)
            datasets.looked(tx, "flights", None)

    work()
    assert (len(tries), names(opened)) == (2, ["flights"])


def test_what_was_lost_while_it_committed_is_not_repeated_for_it_may_have_been_written(
    opened: Ledger, url: str
) -> None:
    tries = []

    @repeats
    def work() -> None:
        with opened.write() as tx:
            datasets.ensure(tx, "flights")
            tries.append(1)
            commit = tx.connection.connection.commit

            def break_off() -> None:
                kill_sessions(url)
                commit()

            tx.connection.connection.commit = break_off  # type: ignore[method-assign]

    with pytest.raises(Unavailable, match="whether it was written is not known") as raised:
        work()
    assert not isinstance(raised.value, Undone)
    assert len(tries) == 1


def test_of_two_that_lock_each_other_out_one_is_undone_and_repeated(opened: Ledger) -> None:
    together, tries = threading.Barrier(2), []

    @repeats
    def work(first: str, second: str) -> None:
        with opened.write() as tx:
            tx.lock(first)
            tries.append(first)
            if len(tries) <= 2:
                together.wait(DEADLINE_S)
            tx.lock(second)
            datasets.ensure(tx, first)

    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(work, "a", "b"), pool.submit(work, "b", "a")]:
            done.result(DEADLINE_S)
    assert len(tries) == 3
    assert names(opened) == ["a", "b"]


def test_a_mistake_of_ours_is_not_taken_for_an_outage(opened: Ledger) -> None:
    with pytest.raises(IntegrityError), opened.write() as tx:
        tx.connection.execute(text("INSERT INTO dataset (name) VALUES (NULL)"))


def test_who_waited_for_a_model_sees_what_the_one_before_has_written(opened: Ledger, url: str) -> None:
    adopt(opened)
    grow(opened)
    run = ledgers.waiting(opened)
    with ThreadPoolExecutor(2) as pool:
        with opened.write() as tx:
            assert attempts.claim(tx, run, "first", ledgers.LEASE) is not None
            second = pool.submit(ledgers.claim, opened, run, "second")
            wait_for(lambda: waiters(url) == 1)
        assert second.result(DEADLINE_S) is None
    with opened.read() as tx:
        assert [row.worker for row in attempts.of_run(tx, run)] == ["first"]


def test_a_new_policy_and_an_arrival_at_the_same_time_leave_no_run_planned_by_the_old_one(
    opened: Ledger, url: str
) -> None:
    adopt(opened)
    assert ledgers.train(opened)
    with ThreadPoolExecutor(2) as pool:
        with opened.write() as tx:
            before = datasets.known(tx, ["flights"])["flights"]
            datasets.take(tx, "flights", "watcher", ledgers.LEASE)
            after = type(before)(upto=1050, rows=1050, holdout_above=945, holdout_rows=105)
            arrivals.observe(tx, "flights", before, after, 50, "watcher")  # fewer than min_rows = 100
            applied = pool.submit(put_config, opened, CONFIG.replace("min_rows = 100", "min_rows = 1"))
            wait_for(lambda: waiters(url) == 1)
        applied.result(DEADLINE_S)
    with opened.read() as tx:
        assert runs.find_waiting(tx, "delays").due_at is not None


def test_a_release_adopted_while_its_first_rows_arrive_is_trained_on_them(opened: Ledger, url: str) -> None:
    with ThreadPoolExecutor(1) as pool:
        with opened.write() as tx:
            planning.adopt(tx, "delays", "v1.0.0", "a" * 40, ledgers.declare())
            grown = pool.submit(grow, opened)
            wait_for(lambda: grown.done() or waiters(url) == 1)
        grown.result(DEADLINE_S)
    with opened.read() as tx:
        assert runs.find_waiting(tx, "delays").due_at is not None


def test_rows_that_arrive_while_a_release_lets_go_of_their_dataset_are_no_reason_for_its_run(
    opened: Ledger, url: str
) -> None:
    adopt(opened)
    with ThreadPoolExecutor(1) as pool:
        with opened.write() as tx:
            planning.adopt(tx, "delays", "v2.0.0", "b" * 40, ledgers.declare("reported"))
            grown = pool.submit(grow, opened)
            wait_for(lambda: waiters(url) == 1)
        grown.result(DEADLINE_S)
    with opened.read() as tx:
        assert runs.find_waiting(tx, "delays").reason == "new release v1.0.0; new release v2.0.0"


def test_rows_that_arrive_while_a_release_is_adopted_make_its_run_due(opened: Ledger, url: str) -> None:
    with ThreadPoolExecutor(1) as pool:
        with opened.write() as tx:
            datasets.take(tx, "flights", "watcher", ledgers.LEASE)
            arrivals.observe(tx, "flights", None, Cut(1000, 1000, 900, 100), 1000, "watcher")
            adopted = pool.submit(adopt, opened)
            wait_for(lambda: adopted.done() or waiters(url) == 1)
        adopted.result(DEADLINE_S)
    with opened.read() as tx:
        assert runs.find_waiting(tx, "delays").due_at is not None


def test_a_reader_of_notices_never_passes_over_one_that_commits_late(opened: Ledger, url: str) -> None:
    def tell(name: str) -> None:
        with opened.write() as tx:
            deliveries.tell(tx, NoticeType.RELEASE_REFUSED, name, "delays", {})

    with ThreadPoolExecutor(1) as pool:
        with opened.write() as tx:
            first = deliveries.tell(tx, NoticeType.RELEASE_REFUSED, "first", "delays", {})
            later = pool.submit(tell, "later")
            wait_for(lambda: blocked(url) == 1)
            assert [sequence for (sequence,) in select(url, "SELECT sequence FROM notice")] == []  # not overtaken
        later.result(DEADLINE_S)
    with opened.read() as tx:
        assert [(one.sequence, one.subject) for one in deliveries.read(tx, 0, 10)] == [
            (first, "first"),
            (first + 1, "later"),
        ]


def blocked(url: str) -> int:
    return int(select(url, "SELECT count(*) FROM pg_locks WHERE NOT granted")[0][0])


def test_two_bridges_take_different_deliveries_and_neither_waits(opened: Ledger) -> None:
    with opened.write() as tx:
        for number in range(4):
            deliveries.tell(tx, NoticeType.RELEASE_REFUSED, f"model-{number}", "delays", {})
    other = Ledger(opened.url)
    with opened.write() as first, other.engine.begin() as connection:
        taken = {one.id for one in deliveries.claim_due(first, ledgers.LEASE, 2)}
        second = Transaction(connection, first.now)
        rest = {one.id for one in deliveries.claim_due(second, ledgers.LEASE, 4)}
    assert (len(taken), len(rest), taken & rest) == (2, 2, set())
    other.close()


def test_a_commit_by_another_wakes_who_waits_and_a_look_does_not(opened: Ledger, url: str) -> None:
    changes, other = opened.watch(), Ledger(url)
    assert changes.wait(DEADLINE_S)  # it listens from now on
    changes.poll()
    names(other)
    with other.write():
        pass  # a transaction that changed nothing
    note(other)
    assert changes.wait(DEADLINE_S)
    assert not changes.wait(0)
    other.close()
    changes.close()


def test_a_watcher_whose_connection_was_lost_looks_again(opened: Ledger, url: str) -> None:
    changes = opened.watch()
    assert changes.wait(DEADLINE_S)
    changes.poll()
    kill_sessions(url)
    assert changes.wait(DEADLINE_S), "what was committed meanwhile would not be noticed"
    note(opened)
    assert changes.wait(DEADLINE_S)


def test_a_server_that_is_restarted_is_waited_for_and_keeps_what_was_committed(own_server: Postgres) -> None:
    ledger = Ledger(own_server.url)
    note(ledger)
    own_server.restart()
    await_schema(ledger, DEADLINE_S)
    assert names(ledger) == ["flights"]
    ledger.close()


def test_a_server_that_is_away_is_unavailable(own_server: Postgres) -> None:
    ledger = Ledger(own_server.url)
    own_server.process.kill()
    own_server.process.wait()
    with pytest.raises(Unavailable, match="did not answer"):
        note(ledger)
    with pytest.raises(Unavailable):
        await_schema(ledger, 0)
    ledger.close()


def test_a_program_waits_for_whoever_migrates(postgres: Postgres) -> None:
    url = postgres.new_database()
    ledger = Ledger(url)
    with pytest.raises(ConfigurationError, match="schema none"):
        await_schema(ledger, 0)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(await_schema, ledger, DEADLINE_S)
        migrate(url)
        waiting.result(DEADLINE_S)
    ledger.close()


def test_the_migrations_make_exactly_the_tables_that_the_code_knows(opened: Ledger) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    with opened.read() as tx:
        assert compare_metadata(MigrationContext.configure(tx.connection), metadata) == []


def test_behind_a_transaction_pooler_everything_is_the_same(url: str) -> None:
    with transaction_pooler(url) as pooled:
        ledger = Ledger(pooled)
        check_schema(ledger)
        changes = ledger.watch()
        put_config(ledger, CONFIG)
        adopt(ledger)
        assert ledgers.serve(ledger, 1)
        with ThreadPoolExecutor(4) as pool:
            for done in [pool.submit(note, ledger, f"d{number % 8}") for number in range(64)]:
                done.result(DEADLINE_S)
        assert (ledgers.champion(ledger), len(names(ledger))) == (1, 9)
        while changes.wait(0.5):
            pass  # until it has noticed all that
        note(ledger, "news")
        assert changes.wait(DEADLINE_S), "nobody can LISTEN here, so that it must look"
        ledger.close()


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+psycopg"])
def test_an_address_in_any_spelling_means_our_driver(url: str, scheme: str) -> None:
    ledger = Ledger(url.replace("postgresql", scheme, 1))
    check_schema(ledger)
    ledger.close()


@pytest.mark.parametrize("wrong", ["mysql://u:secret@h/x", "no url:secret", "postgresql://u:secret@h:port/x"])
def test_an_address_that_cannot_be_used_is_refused_without_its_password(wrong: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        Ledger(wrong)
    assert "secret" not in str(raised.value)
