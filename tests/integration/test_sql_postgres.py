"""The sql source on a real PostgreSQL: rows that commit late, what holds them back and what does not, and being told."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
import pytest
from headrace.harness_data import Dataset
from headrace.harness_export import export
from psycopg import sql
from sqlalchemy import event

from services.ingest_watcher.loop import Loop, Wake
from services.ingest_watcher.sources.sql import SqlSource
from services.ingest_watcher.watch import DatasetWatch
from shared.catalog import Holdout
from shared.cuts import Cut, Range, training
from shared.declaration import Use
from shared.errors import ConfigurationError, Conflict, NotFound, Refused, Unavailable
from shared.ledger import Ledger, arrivals, datasets
from tests.ledgers import in_memory
from tests.pooler import transaction_pooler
from tests.postgres_server import PASSWORD, Postgres, start_postgres, start_standby

WAIT_S = 20.0
NOTIFY = Path(__file__).parents[2] / "deploy" / "postgresql" / "notify.sql"
TABLE = "CREATE TABLE flights (id bigserial PRIMARY KEY, at timestamptz DEFAULT now(), delay int)"
ROW = "INSERT INTO flights (delay) VALUES (7)"


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    """A server of one's own: some tests restart it."""
    server = start_postgres()
    server.execute("CREATE DATABASE flights")
    yield server
    server.stop()


@dataclass
class Hands:
    at: float = 100.0

    def __call__(self) -> float:
        return self.at


class Database:
    """A database, emptied, with whoever writes to it, and sources that look."""

    def __init__(self, server: Postgres) -> None:
        self.server = server
        self.name = "flights"
        self.url = server.database_url(self.name)
        self.clock = Hands()
        self._open: list[Any] = []
        self.run(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'flights' AND pid <> pg_backend_pid()",
            "SET lock_timeout = '5s'; SET client_min_messages = warning;"
            'DROP SCHEMA IF EXISTS public, sales, "a b" CASCADE; CREATE SCHEMA public; ALTER DATABASE flights RESET ALL',
        )

    def session(self, autocommit: bool = False) -> psycopg.Connection[Any]:
        session = psycopg.connect(self.url, autocommit=autocommit)
        self._open.append(session)
        return session

    def run(self, *statements: str) -> list[Any]:
        """Each in a transaction of its own; the rows of the last."""
        with psycopg.connect(self.url, autocommit=True) as session:
            for statement in statements:
                cursor = session.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    def source(self, cursor: str = "id", table: str = "flights", url: str | None = None, **more: Any) -> SqlSource:
        given = {"holdout": Holdout(newest=Decimal("0.1"), max_rows=1000, min_rows=1), "clock": self.clock} | more
        source = SqlSource(url or self.url, table, cursor, **given)
        self._open.append(source)
        return source

    def install(self, table: str = "flights") -> None:
        done = self.server.psql(self.url, "-v", f"table={table}", "-f", str(NOTIFY))
        assert done.returncode == 0, done.stderr

    def close(self) -> None:
        for one in reversed(self._open):
            one.close()


@pytest.fixture
def database(postgres: Postgres) -> Iterator[Database]:
    database = Database(postgres)
    database.run(TABLE)
    yield database
    database.close()


class Looker:
    """Looks again and again from where the last look ended, as the watch does."""

    def __init__(self, source: SqlSource) -> None:
        self.source = source
        self.cut: Cut | None = None
        self.seen: list[tuple[Any, Any, int]] = []

    def look(self) -> int:
        """The rows that are new."""
        above = self.cut.upto if self.cut else None
        look = self.source.look(self.cut)
        if look is None:
            return 0
        self.cut = look.after
        self.seen.append((above, look.after.upto, look.rows))
        return look.rows


def until(condition: Callable[[], object], wait_s: float = WAIT_S) -> None:
    deadline = time.monotonic() + wait_s
    while not condition():
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.005)


@contextmanager
def background(act: Callable[[], object]) -> Iterator[None]:
    thread = threading.Thread(target=act)
    thread.start()
    try:
        yield
    finally:
        thread.join(WAIT_S)
        assert not thread.is_alive()


# Numbers


def test_a_row_that_commits_late_with_a_lower_number_is_waited_for(database: Database) -> None:
    one, two = database.session(), database.session()
    one.execute(ROW)
    two.execute(ROW)
    two.commit()
    looker = Looker(database.source())
    assert looker.look() == 0
    pauses = []
    for _ in range(8):
        pauses.append(looker.source.settles_in_s())
        assert looker.look() == 0
    assert pauses == [0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.0, 1.0]
    one.commit()
    assert looker.look() == 2
    assert looker.source.settles_in_s() is None
    assert looker.cut == Cut(upto=2, rows=2, holdout_above=2, holdout_rows=0)


def test_a_row_that_is_rolled_back_is_waited_for_no_longer(database: Database) -> None:
    one, two = database.session(), database.session()
    one.execute(ROW)
    two.execute(ROW)
    two.commit()
    looker = Looker(database.source())
    assert looker.look() == 0
    one.rollback()
    assert looker.look() == 1


def test_what_is_settled_is_told_although_newer_rows_wait(database: Database) -> None:
    looker = Looker(database.source())
    database.run(ROW, ROW)
    assert looker.look() == 2
    one = database.session()
    one.execute(ROW)  # 3
    database.run(ROW)  # 4
    assert looker.look() == 0
    two = database.session()
    two.execute(ROW)  # 5
    database.run(ROW)  # 6
    assert looker.look() == 0
    one.commit()
    assert looker.look() == 2
    assert looker.cut is not None
    assert looker.cut.upto == 4
    two.commit()
    assert looker.look() == 2


@pytest.mark.parametrize("restart", [False, True])
def test_a_prepared_transaction_is_waited_for_also_over_a_restart_of_the_server(
    database: Database, restart: bool
) -> None:
    one, name = database.session(), f"load {restart}"
    one.execute(ROW)
    database.run(ROW)
    looker = Looker(database.source())
    assert looker.look() == 0
    one.execute(sql.SQL("PREPARE TRANSACTION {}").format(name))
    if restart:
        database.server.restart()
    assert looker.look() == 0
    database.clock.at += 10
    with pytest.raises(Unavailable, match=f"the rows wait for the transaction that was prepared as '{name}'"):
        looker.look()
    database.run(f"COMMIT PREPARED '{name}'")
    assert looker.look() == 2


def test_who_only_reads_and_who_writes_elsewhere_hold_nothing_back(database: Database) -> None:
    database.run("CREATE TABLE other (id bigserial, x int)")
    reader, writer, vacuum = database.session(), database.session(), database.session()
    reader.execute("SELECT count(*) FROM flights")
    writer.execute("INSERT INTO other (x) VALUES (1)")
    vacuum.execute("LOCK TABLE flights IN SHARE UPDATE EXCLUSIVE MODE")  # as VACUUM does, for hours
    database.run(ROW)
    assert Looker(database.source()).look() == 1


def test_a_number_that_is_drawn_in_a_statement_of_its_own_is_waited_for(database: Database) -> None:
    one = database.session()
    one.execute("SELECT nextval('flights_id_seq')")
    database.run(ROW)
    looker = Looker(database.source())
    assert looker.look() == 0
    one.execute("INSERT INTO flights (id) VALUES (1)")
    one.commit()
    assert looker.look() == 2


def test_numbers_of_no_default_may_come_from_any_sequence(database: Database) -> None:
    database.run("CREATE TABLE plain (id bigint PRIMARY KEY)", "CREATE SEQUENCE numbers")
    one = database.session()
    one.execute("SELECT nextval('numbers')")
    database.run("INSERT INTO plain VALUES (nextval('numbers'))")
    looker = Looker(database.source(table="plain"))
    assert looker.look() == 0
    one.execute("INSERT INTO plain VALUES (1)")
    one.commit()
    assert looker.look() == 2


def test_the_moment_between_drawing_a_number_and_writing_the_row_is_covered(database: Database) -> None:
    """There the transaction has no number of its own yet, and `pg_snapshot_xmin` knows nothing of it."""
    database.run(
        "CREATE FUNCTION slowly() RETURNS bigint LANGUAGE plpgsql AS $$ DECLARE drawn bigint := nextval('flights_id_seq'); "
        "BEGIN PERFORM pg_advisory_xact_lock_shared(1); RETURN drawn; END $$",
        "SELECT nextval('flights_id_seq') FROM generate_series(1, 5)",  # logged 32 ahead: the next draws need no transaction id
    )
    holder, slow = database.session(), database.session()
    holder.execute("SELECT pg_advisory_xact_lock(1)")
    looker = Looker(database.source())
    with background(lambda: (slow.execute("INSERT INTO flights (id) VALUES (slowly())"), slow.commit())):
        waits = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'advisory'"
        until(lambda: database.run(waits))
        database.run(ROW)
        looks = [looker.look() for _ in range(3)]
        holder.rollback()
    assert looks == [0, 0, 0]
    assert looker.look() == 2


def meanwhile(source: SqlSource, word: str, act: Callable[[], object]) -> None:
    """Do it once, just before the source sends the statement with this word in it."""
    waiting = [act]

    def act_once(_connection, _cursor, statement, *_):  # type: ignore[no-untyped-def]
        if word in statement and waiting:
            waiting.pop()()

    event.listen(source._engine, "before_cursor_execute", act_once)


def test_a_row_that_is_committed_while_the_writers_are_asked_for_is_counted(database: Database) -> None:
    one = database.session()
    one.execute(ROW)
    database.run(ROW)
    looker = Looker(database.source())
    meanwhile(looker.source, "pg_locks", one.commit)
    assert looker.look() == 2


def test_a_writer_that_begins_just_before_the_maximum_is_read_is_waited_for(database: Database) -> None:
    one = database.session()
    looker = Looker(database.source())
    meanwhile(looker.source, "set_config", lambda: (one.execute(ROW), database.run(ROW)))
    assert looker.look() == 0
    one.commit()
    assert looker.look() == 2


@pytest.mark.parametrize("into", ["flights", "flights_low"])
def test_a_writer_of_a_partition_is_waited_for(postgres: Postgres, into: str) -> None:
    with closing(Database(postgres)) as database:
        database.run(
            "CREATE TABLE flights (id bigint GENERATED BY DEFAULT AS IDENTITY, delay int) PARTITION BY RANGE (id)",
            "CREATE TABLE flights_low PARTITION OF flights FOR VALUES FROM (1) TO (1000) PARTITION BY RANGE (id)",
            "CREATE TABLE flights_lowest PARTITION OF flights_low FOR VALUES FROM (1) TO (10)",
        )
        one = database.session()
        one.execute(f"INSERT INTO {into} (id) VALUES (1)".encode())
        database.run("INSERT INTO flights (id) VALUES (2)")
        looker = Looker(database.source())
        assert looker.look() == 0
        one.commit()
        assert looker.look() == 2


def test_a_view_waits_for_every_transaction_of_its_database(database: Database) -> None:
    database.run("CREATE VIEW late AS SELECT id, at FROM flights WHERE delay > 5")
    one = database.session()
    one.execute(ROW)
    database.run(ROW)
    looker = Looker(database.source(table="late"))
    assert looker.look() == 0
    one.commit()
    assert looker.look() == 2


def test_a_sequence_that_hands_out_numbers_in_advance_is_refused_without_a_lag(database: Database) -> None:
    database.run("ALTER SEQUENCE flights_id_seq CACHE 20", ROW)
    with pytest.raises(Refused, match=r"a sequence with CACHE 20: .* ALTER SEQUENCE … CACHE 1, or set `lag`"):
        database.source().look(None)
    source = database.source(lag=timedelta(seconds=5))
    assert source.look(None) is None
    database.clock.at += 5
    assert Looker(source).look() == 1


def test_a_lag_is_waited_for_beside_the_transactions(database: Database) -> None:
    one = database.session()
    one.execute(ROW)
    database.run(ROW)
    looker = Looker(database.source(lag=timedelta(seconds=5)))
    assert looker.look() == 0
    database.clock.at += 5
    assert looker.look() == 0
    one.commit()
    assert looker.look() == 2
    database.run(ROW)
    assert looker.look() == 0
    assert looker.source.settles_in_s() == 5.0


def test_what_holds_rows_back_for_long_is_said_in_the_same_words_until_it_ends(database: Database) -> None:
    database.run(ROW)
    looker = Looker(database.source())
    assert looker.look() == 1
    one = database.session()
    one.execute(ROW)
    database.run(ROW)
    assert looker.look() == 0
    database.clock.at += 9.9
    assert looker.look() == 0
    database.clock.at += 0.1
    said = rf"the rows above 1 wait for a transaction that has been open since .* UTC \(server process {one.info.backend_pid}, postgres\)"
    with pytest.raises(Unavailable, match=said) as first:
        looker.look()
    with pytest.raises(Unavailable) as second:
        looker.look()
    assert first.value.message == second.value.message
    one.commit()
    assert looker.look() == 2


# Times


@pytest.mark.parametrize("type", ["timestamptz", "timestamp"])
def test_a_transaction_that_has_not_touched_the_table_yet_is_waited_for_where_the_cursor_is_a_time(
    postgres: Postgres, type: str
) -> None:
    with closing(Database(postgres)) as database:
        database.run(f"CREATE TABLE flights (at {type} DEFAULT now(), delay int)")
        one = database.session()
        one.execute("SELECT 1")
        database.run(ROW)
        looker = Looker(database.source("at"))
        for _ in range(3):
            assert looker.look() == 0
            database.clock.at += 1
        one.execute(ROW)
        assert looker.look() == 0
        one.commit()
        assert looker.look() == 2


def test_a_time_is_given_a_moment_for_transactions_that_are_just_beginning(database: Database) -> None:
    database.run(ROW)
    looker = Looker(database.source("at"))
    assert looker.look() == 0
    assert looker.source.settles_in_s() == pytest.approx(0.2)
    database.clock.at += 0.2
    assert looker.look() == 1


def test_transactions_of_another_database_hold_nothing_back(database: Database, postgres: Postgres) -> None:
    with closing(psycopg.connect(postgres.url)) as elsewhere:
        elsewhere.execute("SELECT 1")
        database.run(ROW)
        looker = Looker(database.source("at"))
        assert looker.look() == 0
        database.clock.at += 1
        assert looker.look() == 1


def test_a_transaction_that_is_prepared_while_it_holds_back_a_time_is_waited_for(database: Database) -> None:
    one = database.session()
    one.execute(ROW)
    database.run(ROW)
    looker = Looker(database.source("at"))
    assert looker.look() == 0
    one.execute("PREPARE TRANSACTION 'hour'")
    database.clock.at += 1
    assert looker.look() == 0
    database.run("COMMIT PREPARED 'hour'")
    assert looker.look() == 2


# Under load


@pytest.mark.parametrize("cursor", ["id", "at"])
def test_of_rows_that_many_commit_and_roll_back_at_once_each_is_in_one_range(database: Database, cursor: str) -> None:
    looker = Looker(database.source(cursor, clock=time.monotonic))
    ended = threading.Event()

    def write(seed: int) -> None:
        chance = random.Random(seed)
        with psycopg.connect(database.url) as session:
            for _ in range(40):
                session.execute("SELECT pg_sleep(%s)", [chance.random() / 100])
                for _ in range(chance.randrange(1, 4)):
                    session.execute(ROW)
                    session.execute("SELECT pg_sleep(%s)", [chance.random() / 100])
                session.commit() if chance.random() < 0.8 else session.rollback()

    def watch() -> None:
        while not ended.is_set():
            looker.look()

    with background(watch):
        writers = [threading.Thread(target=write, args=(seed,)) for seed in range(8)]
        for writer in writers:
            writer.start()
        for writer in writers:
            writer.join()
        committed = database.run("SELECT count(*) FROM flights")[0][0]
        try:
            until(lambda: sum(rows for *_, rows in looker.seen) >= committed)
        finally:
            ended.set()
    assert len(looker.seen) > 3  # it looked while they wrote
    for above, upto, rows in looker.seen:
        now = f"SELECT count(*) FROM flights WHERE {cursor} <= '{upto}'" + (
            f" AND {cursor} > '{above}'" if above else ""
        )
        assert database.run(now)[0][0] == rows
    assert sum(rows for *_, rows in looker.seen) == committed


def test_a_table_on_which_somebody_always_writes_is_told_of_all_the_same(database: Database) -> None:
    one, two = database.session(), database.session()
    looker = Looker(database.source())
    one.execute(ROW)
    for _ in range(30):
        two.execute(ROW)
        one.commit()
        looker.look()
        one.execute(ROW)
        two.commit()
        looker.look()
    assert sum(rows for *_, rows in looker.seen) >= 55


# Being told


def test_a_commit_is_told_at_once_where_the_trigger_is_installed(database: Database) -> None:
    database.install()
    database.install()
    woken = Wake()
    source = database.source(told=woken.call)
    assert source.look(None) is None
    until(source.stirred)  # it listens
    assert not source.tells
    one = database.session()
    one.execute(ROW)
    assert not source.stirred()
    one.commit()
    until(source.stirred, 2)
    assert Looker(source).look() == 1


def test_of_two_that_insert_at_once_one_tells_and_both_are_seen(database: Database) -> None:
    database.install()
    with watched(database, poll=timedelta(hours=1)) as ledger:
        until(lambda: listeners(database))
        one, two = database.session(), database.session()
        one.execute(ROW)
        two.execute(ROW)
        one.commit()  # the told look waits for the other, and asks again by itself
        assert seen(ledger) == 0
        two.commit()
        until(lambda: seen(ledger) == 2)
        one.execute(ROW)
        two.execute(ROW)
        two.commit()  # says nothing: its row has to wait for the other anyhow
        one.commit()
        until(lambda: seen(ledger) == 4)


def test_one_that_commits_untold_while_the_told_look_goes_on_is_seen_by_a_second(database: Database) -> None:
    database.install()
    looker = Looker(database.source())
    looker.look()
    until(looker.source.stirred)  # it listens
    looker.look()
    looker.look()
    assert looker.source.settles_in_s() is None
    one, two = database.session(), database.session()
    one.execute(ROW)
    two.execute(ROW)
    one.commit()
    until(looker.source.stirred)
    meanwhile(looker.source, "pg_locks", two.commit)  # the maximum is read already, and now nobody writes
    assert looker.look() == 1
    assert looker.source.settles_in_s() == 0.02
    assert looker.look() == 1
    assert looker.source.settles_in_s() is None


def test_an_insert_into_a_partition_is_told_whatever_name_is_looked_at(postgres: Postgres) -> None:
    with closing(Database(postgres)) as database:
        database.run(
            'CREATE SCHEMA "a b"',
            """CREATE TABLE "a b"."x'y" (id bigserial, delay int) PARTITION BY RANGE (id)""",
            """CREATE TABLE "a b".low PARTITION OF "a b"."x'y" FOR VALUES FROM (1) TO (1000)""",
        )
        database.install(""""a b"."x'y\"""")
        url = database.url + "?options=-csearch_path%3D%22a%5C%20b%22"
        sources = [database.source(table=table, url=url) for table in ("x'y", "low")]
        for source in sources:
            assert source.look(None) is None
            until(source.stirred)
        for statement in (
            """INSERT INTO "a b"."x'y" (delay) VALUES (1)""",
            """INSERT INTO "a b".low (delay) VALUES (1)""",
        ):
            database.run(statement)
            for source in sources:
                until(source.stirred, 2)


def test_another_table_s_rows_are_not_told(database: Database) -> None:
    database.run("CREATE TABLE other (id bigserial, delay int)")
    database.install()
    database.install("other")
    source = database.source()
    source.look(None)
    until(source.stirred)  # it listens
    with closing(database.session(autocommit=True)) as beside:
        beside.execute("LISTEN headrace")
        database.run("INSERT INTO other (delay) VALUES (1)")
        assert [one.payload for one in beside.notifies(timeout=WAIT_S, stop_after=1)] == ["public.other"]
    with pytest.raises(AssertionError, match="did not come true"):
        until(source.stirred, 0.3)
    database.run(ROW)
    until(source.stirred)


@contextmanager
def watched(database: Database, poll: timedelta, url: str | None = None) -> Iterator[Ledger]:
    """The loop over a dataset, as the watcher runs it."""
    ledger, _ = in_memory()
    wake = Wake()
    open_source = partial(SqlSource, url or database.url, "flights", "id", told=wake.call)
    body = DatasetWatch(ledger, "flights", open_source, wake, owner="w1", lease=timedelta(days=1), poll=poll)
    loop = Loop("dataset flights", body, wake)
    try:
        yield ledger
    finally:
        loop.stop()
        assert loop.join(10)


def seen(ledger: Ledger) -> int:
    with ledger.read() as tx:
        return sum(row.rows for row in arrivals.find_all(tx, dataset="flights", before=None, limit=1000))


def listeners(database: Database) -> int:
    """Connections that have said LISTEN."""
    asked = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND query = 'LISTEN headrace'"
    return int(database.run(asked)[0][0])


def test_no_poll_is_waited_for_where_the_trigger_is_installed(database: Database) -> None:
    database.install()
    with watched(database, poll=timedelta(hours=1)) as ledger:
        until(lambda: listeners(database))
        for batch in range(1, 6):
            database.run(ROW, ROW)
            until(lambda batch=batch: seen(ledger) == 2 * batch)  # type: ignore[misc]


def test_what_was_told_while_nobody_was_connected_is_made_up_for(database: Database) -> None:
    database.install()
    with watched(database, poll=timedelta(hours=1)) as ledger:
        until(lambda: listeners(database))
        database.run(ROW)
        until(lambda: seen(ledger) == 1)
        database.server.restart()
        database.run(ROW)  # before it is connected again, or after: it does not matter
        until(lambda: seen(ledger) == 2)
        until(lambda: listeners(database))
        database.run("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query = 'LISTEN headrace'", ROW)
        until(lambda: seen(ledger) == 3)


def test_a_restart_of_the_server_in_mid_watch_is_said_and_survived(database: Database) -> None:
    with watched(database, poll=timedelta(milliseconds=20)) as ledger:
        database.run(ROW)
        until(lambda: seen(ledger) == 1)
        database.server.restart()
        database.run(ROW)
        until(lambda: seen(ledger) == 2)
        with ledger.read() as tx:
            assert next(row.error for row in datasets.find_all(tx) if row.name == "flights") is None


def test_nothing_listens_where_there_is_no_trigger_until_there_is_one(database: Database) -> None:
    with watched(database, poll=timedelta(milliseconds=20)) as ledger:
        database.run(ROW)
        until(lambda: seen(ledger) == 1)
        assert not listeners(database)
        database.install()
        until(lambda: listeners(database))


@pytest.mark.parametrize("trigger", [False, True])
def test_behind_a_transaction_pooler_polls_find_what_is_told_to_nobody(database: Database, trigger: bool) -> None:
    if trigger:
        database.install()
    with (
        transaction_pooler(database.url) as url,
        watched(database, poll=timedelta(milliseconds=20), url=url) as ledger,
    ):
        one = database.session()
        for batch in range(1, 11):
            one.execute(ROW)
            database.run(ROW)
            one.commit()
            until(lambda batch=batch: seen(ledger) == 2 * batch)  # type: ignore[misc]


# A standby


def test_on_a_standby_the_snapshot_says_who_may_still_commit(postgres: Postgres, database: Database) -> None:
    standby = start_standby(postgres)
    try:

        def there() -> int:
            with psycopg.connect(standby.database_url(database.name), autocommit=True) as session:
                return int(session.execute("SELECT count(*) FROM flights").fetchone()[0])  # type: ignore[index]

        database.install()
        one = database.session()
        one.execute(ROW)
        database.run(ROW)
        until(lambda: there() == 1)
        looker = Looker(database.source(url=standby.database_url(database.name)))
        assert looker.look() == 0
        database.clock.at += 10
        with pytest.raises(Unavailable, match="the rows wait for a transaction of the primary"):
            looker.look()
        one.commit()
        until(lambda: there() == 2)
        assert looker.look() == 2
        looker.source.close()
    finally:
        standby.stop()


# What is wrong


def test_a_table_that_was_emptied_or_dropped_is_said(database: Database) -> None:
    database.run(ROW)
    looker = Looker(database.source())
    assert looker.look() == 1
    database.run("TRUNCATE flights")
    with pytest.raises(Conflict, match="'flights' has no rows, but rows up to 1 were seen before"):
        looker.look()
    database.run("DROP TABLE flights", "CREATE TABLE trains (id int)")
    with pytest.raises(NotFound, match=r"no table 'flights' .*\(tables: trains\)"):
        looker.look()
    database.run("CREATE TABLE flights (number int)")
    with pytest.raises(NotFound, match="'flights' has no column 'id'; it has number"):
        looker.look()


@pytest.mark.parametrize(
    ("type", "value", "said"),
    [
        ("uuid", "gen_random_uuid()", "'id' of the table 'flights' is neither an integer nor a time, and the database"),
        ("boolean", "true", "neither an integer nor a time"),
        ("text", "'7'", "the cursor 'id' holds '7', which is neither an integer nor a time"),
        ("float8", "1.5", "the cursor 'id' holds '1.5', which is neither"),
        ("interval", "interval '1h'", "the cursor 'id' holds '1:00:00', which is neither"),
    ],
)
def test_a_cursor_of_another_type_is_refused(postgres: Postgres, type: str, value: str, said: str) -> None:
    with closing(Database(postgres)) as database:
        database.run(f"CREATE TABLE flights (id {type})", f"INSERT INTO flights VALUES ({value})")
        with pytest.raises(Refused, match=said):
            database.source().look(None)


def test_a_time_without_end_is_said(database: Database) -> None:
    database.run("INSERT INTO flights (at) VALUES ('infinity')")
    with pytest.raises(Refused, match=r"'at' of the table 'flights' holds what cannot be read \(timestamp too large"):
        database.source("at").look(None)


def test_a_table_that_may_not_be_read_is_said_with_what_to_grant(database: Database) -> None:
    database.run(ROW, "DROP ROLE IF EXISTS reader", "CREATE ROLE reader LOGIN PASSWORD 'reader'")
    database.run("GRANT USAGE ON SCHEMA public TO reader")
    looker = Looker(database.source(url=database.url.replace(f"postgres:{PASSWORD}@", "reader:reader@")))
    with pytest.raises(Refused, match="permission denied for table flights; grant its role SELECT on 'flights'"):
        looker.look()
    database.run("GRANT SELECT ON flights TO reader")
    one = database.session()  # as a superuser, and seen all the same
    one.execute(ROW)
    database.run(ROW)
    assert looker.look() == 0
    one.commit()
    assert looker.look() == 3


def test_no_message_holds_the_password(database: Database) -> None:
    wrong = database.url.replace(f":{PASSWORD}@", ":s3cr%2Fet@")
    with pytest.raises(Unavailable, match="password authentication failed") as away:
        database.source(url=wrong).look(None)
    with pytest.raises(ConfigurationError, match="%40") as unreadable:
        database.source(url="postgresql://me:s3cr@et@127.0.0.1/flights")
    with pytest.raises(ConfigurationError, match="cannot be read") as port:
        database.source(url="postgresql://me:s3cr@127.0.0.1:s3cr/flights")
    for error in (away, unreadable, port):
        assert "s3cr" not in str(error.value)


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg"])
def test_each_way_to_write_the_url_is_read(database: Database, scheme: str) -> None:
    database.run(ROW)
    url = database.url.replace("postgresql", scheme, 1)
    assert Looker(database.source(url=url)).look() == 1


def test_limits_and_reading_only_hold_for_each_transaction_and_nothing_for_the_session(database: Database) -> None:
    source = database.source()
    asked = (
        "SELECT current_setting('statement_timeout'), current_setting('idle_in_transaction_session_timeout'), "
        "current_setting('transaction_read_only'), current_setting('transaction_isolation')"
    )
    with source._engine.connect() as connection:
        with connection.begin():
            assert connection.exec_driver_sql(asked).one() == ("15min", "1min", "on", "repeatable read")
        driver: Any = connection.connection.driver_connection
        driver.autocommit = True
        assert driver.execute(asked).fetchone() == ("0", "0", "off", "read committed")
        assert driver.prepare_threshold is None
        driver.autocommit = False


def test_a_schema_comes_from_the_search_path_of_the_url(database: Database) -> None:
    database.run(
        "CREATE SCHEMA sales", TABLE.replace("flights", "sales.flights"), "INSERT INTO sales.flights VALUES (5)"
    )
    url = database.url + "?options=-csearch_path%3Dsales"
    look = database.source(url=url).look(None)
    assert look is not None
    assert look.after.upto == 5
    rows = Dataset(
        "flights", {"kind": "sql", "url": url, "train": {"table": "flights", "cursor": "id", "upto": 5}}
    ).train
    with psycopg.connect(rows.url) as session:
        assert len(session.execute(*rows.query("pyformat")).fetchall()) == 1


# What the author reads


@pytest.mark.parametrize("zone", ["UTC", "America/New_York"])
@pytest.mark.parametrize(
    ("type", "value"),
    [
        ("int", "n"),
        ("bigint", "n * 10000000000"),
        ("numeric(30, 0)", "n * 10000000000000000000000"),
        ("timestamp", "timestamp '2013-03-10 00:00' + n * interval '7 min'"),
        ("timestamptz", "timestamptz '2013-03-10 00:00+00' + n * interval '7 min' + interval '0.000001 s'"),
        ("date", "date '2013-03-10' + n"),
        ("text", "to_char(timestamp '2013-03-10 00:00' + n * interval '7 min', 'YYYY-MM-DD HH24:MI:SS')"),
    ],
)
def test_the_author_reads_the_rows_that_were_counted(postgres: Postgres, type: str, value: str, zone: str) -> None:
    with closing(Database(postgres)) as database:
        database.run(f"ALTER DATABASE flights SET timezone TO '{zone}'")
        database.run(f"CREATE TABLE flights (id {type})", "CREATE INDEX ON flights (id)")
        is_time = "(" not in type and "int" not in type
        source = database.source(time_column="id" if is_time else None)
        cut = None
        for first in (1, 101):
            database.run(f"INSERT INTO flights SELECT {value} FROM generate_series({first}, {first + 99}) n")
            if is_time:
                assert source.look(cut) is None
                database.clock.at += 1
            look = source.look(cut)
            assert look is not None
            assert look.rows == 100
            cut = look.after
        assert cut is not None
        assert cut.holdout_rows == 20
        assert read(database, Range(cut.holdout_above, cut.upto)) == 20
        assert read(database, training(cut, Use())) == 180
        assert read(database, training(cut, Use(rows=50))) == 50
        if is_time:
            use = Use(history=timedelta(days=50) if type == "date" else timedelta(minutes=7 * 50))
            since = training(cut, use).since
            assert read(database, training(cut, use)) == 31 == counted(database, cut, f"id >= '{since}'")


def test_a_command_gets_the_rows_as_a_file(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    database.run(
        'CREATE TABLE shop (id int, "100%" numeric, ok bool, at timestamptz, raw bytea, said text)',
        "INSERT INTO shop VALUES (1, 1.50, true, '2026-01-01 12:00+00', '\\x00ff', 'a, \"b\"'), (2, NULL, false, NULL, NULL, 'ü'), (3, 1, NULL, NULL, NULL, '')",
    )
    described = {"kind": "sql", "url": database.url, "train": {"table": "shop", "cursor": "id", "upto": 2}}
    assert export(Dataset("shop", described).train, tmp_path / "shop" / "train.csv")
    lines = (tmp_path / "shop" / "train.csv").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "id,100%,ok,at,raw,said"
    assert lines[1].startswith("1,1.50,true,2026-01-01T")
    assert lines[1].endswith(',00ff,"a, ""b"""')
    assert lines[2:] == ["2,,false,,,ü"]
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert not export(Dataset("shop", described).train, tmp_path / "shop" / "again.csv")
    assert "psycopg or psycopg2 would have to be among the dependencies" in capsys.readouterr().err


def read(database: Database, which: Range) -> int:
    """How many rows the author's query gives, in their order."""
    described = {"table": "flights", "cursor": "id", "time_column": "id", **vars(which)}
    rows = Dataset("flights", {"kind": "sql", "url": database.url, "train": described}).train
    with psycopg.connect(rows.url) as session:
        found = session.execute(*rows.query("pyformat")).fetchall()
    assert found == sorted(found)
    return len(found)


def counted(database: Database, cut: Cut, condition: str) -> int:
    return int(database.run(f"SELECT count(*) FROM flights WHERE id <= '{cut.holdout_above}' AND {condition}")[0][0])
