"""Transactions on a SQLite file: immediate, fair, patient for a while, and a change that can be waited for."""

from __future__ import annotations

import fcntl
import os
import sqlite3
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from sqlalchemy import event, text

from shared.errors import ConfigurationError, Unavailable
from shared.ledger import Ledger, datasets, place, sqlite
from shared.ledger.schema import check_schema, create_all, migrate
from shared.ledger.tables import metadata
from tests.ledgers import HandClock

DEADLINE_S = 20.0


@pytest.fixture
def file(ledger_file: Path, clock: HandClock) -> Iterator[Ledger]:
    opened = Ledger(f"sqlite:///{ledger_file}", clock)
    yield opened
    opened.close()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch, ledger_file: Path) -> Iterator[Ledger]:
    """A ledger whose time limit is short."""
    monkeypatch.setattr(sqlite, "BUSY_TIMEOUT_S", 0.1)
    opened = Ledger(f"sqlite:///{ledger_file}")
    yield opened
    opened.close()


def note(ledger: Ledger, name: str = "flights") -> None:
    with ledger.write() as tx:
        datasets.ensure(tx, name)


def names(ledger: Ledger) -> list[str]:
    with ledger.read() as tx:
        return [row.name for row in datasets.find_all(tx)]


@contextmanager
def locked(path: Path) -> Iterator[sqlite3.Connection]:
    """Somebody outside holds the database, as a backup or a curious person may."""
    with closing(sqlite3.connect(path, isolation_level=None)) as outside:
        outside.execute("BEGIN IMMEDIATE")
        yield outside
        if outside.in_transaction:
            outside.execute("ROLLBACK")


@contextmanager
def turn_taken(path: Path) -> Iterator[None]:
    with open(f"{path}.turn", "ab") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        yield


def wait_until_it_has_the_turn(path: Path, work: Future[Any]) -> None:
    """A writer that has the turn and has not ended waits for the database itself."""
    with open(f"{path}.turn", "ab") as turn:
        for _ in range(1_000_000):
            assert not work.done(), work.result()
            try:
                fcntl.flock(turn, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return
            fcntl.flock(turn, fcntl.LOCK_UN)
    raise AssertionError("the writer never came")


def test_every_write_begins_immediately_and_every_read_does_not(file: Ledger) -> None:
    begun: list[str] = []
    event.listen(file.engine, "before_cursor_execute", lambda *args: begun.append(args[2]))
    note(file)
    names(file)
    assert [one for one in begun if one.startswith("BEGIN")] == ["BEGIN IMMEDIATE", "BEGIN"]


def test_a_file_keeps_what_was_committed_even_if_the_power_goes(file: Ledger) -> None:
    with file.read() as tx:
        wanted = ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        assert [tx.connection.scalar(text(f"PRAGMA {name}")) for name in wanted] == ["wal", 2, 1, 15000]


def test_a_transaction_that_fails_writes_nothing(ledger: Ledger) -> None:
    with pytest.raises(ZeroDivisionError), ledger.write() as tx:
        datasets.ensure(tx, "flights")
        raise ZeroDivisionError
    assert names(ledger) == []
    note(ledger)
    assert names(ledger) == ["flights"]


def test_a_write_inside_a_write_is_an_error_and_not_a_deadlock(ledger: Ledger) -> None:
    with pytest.raises(RuntimeError, match="is open in this thread already"), ledger.write(), ledger.write():
        pass
    note(ledger)


def test_a_ledger_locked_from_outside_makes_a_write_slower_and_nothing_else(file: Ledger, ledger_file: Path) -> None:
    with ThreadPoolExecutor(1) as pool:
        with locked(ledger_file):
            writing = pool.submit(note, file)
            wait_until_it_has_the_turn(ledger_file, writing)
            assert names(file) == []  # a reader does not wait
        writing.result(DEADLINE_S)
    assert names(file) == ["flights"]


@pytest.mark.parametrize("hold", [locked, turn_taken])
def test_a_ledger_that_stays_locked_is_unavailable_and_nothing_is_written(
    impatient: Ledger, ledger_file: Path, hold: Any
) -> None:
    with hold(ledger_file), pytest.raises(Unavailable, match="nothing was written, try again"):
        note(impatient)
    assert names(impatient) == []
    note(impatient)
    assert names(impatient) == ["flights"]


def test_a_thread_that_holds_the_ledger_too_long_makes_others_unavailable(impatient: Ledger) -> None:
    with ThreadPoolExecutor(1) as pool, impatient.write(), pytest.raises(Unavailable, match="the ledger is busy"):
        pool.submit(note, impatient).result(DEADLINE_S)


def test_who_has_given_up_its_turn_locks_no_file_that_has_its_number_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_wait, lock, others = threading.Event(), fcntl.flock, set(threading.enumerate())

    def late(file: Any, how: int) -> None:
        assert how != fcntl.LOCK_EX or may_wait.wait(DEADLINE_S)
        lock(file, how)

    with ExitStack() as opened:
        with turn_taken(tmp_path / "ledger.db"):
            monkeypatch.setattr(fcntl, "flock", late)
            with pytest.raises(Unavailable, match="another process"), sqlite._file_turn(tmp_path / "ledger.db", 0):
                pass
            (behind,) = set(threading.enumerate()) - others
            opened.enter_context(open(tmp_path / "other", "ab"))
            may_wait.set()
        behind.join(DEADLINE_S)
        with open(tmp_path / "other", "ab") as again:
            lock(again, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_full_disk_is_unavailable_and_keeps_what_was_there(file: Ledger) -> None:
    note(file)
    with file.engine.connect() as connection:
        pages = connection.scalar(text("PRAGMA page_count"))
    file.engine.dispose()
    event.listen(
        file.engine, "connect", lambda connection, _record: connection.execute(f"PRAGMA max_page_count={pages}")
    )
    with pytest.raises(Unavailable, match="full"), file.write() as tx:
        for number in range(500):
            datasets.ensure(tx, f"{number}-" + "x" * 500)
    assert names(file) == ["flights"]


def test_a_disk_that_has_room_again_takes_what_it_refused_without_a_restart(file: Ledger) -> None:
    note(file)
    with file.engine.connect() as connection:
        pages = connection.scalar(text("PRAGMA page_count"))
    room = [int(pages or 0)]
    event.listen(
        file.engine, "begin", lambda connection: connection.exec_driver_sql(f"PRAGMA max_page_count={room[0]}")
    )
    for _ in range(3):
        with pytest.raises(Unavailable, match="full"), file.write() as tx:
            for number in range(500):
                datasets.ensure(tx, f"{number}-" + "x" * 500)
    assert names(file) == ["flights"]
    room[0] = 1_000_000
    note(file, "weather")
    assert names(file) == ["flights", "weather"]
    with file.read() as tx:
        assert tx.connection.scalar(text("PRAGMA integrity_check")) == "ok"


def test_a_ledger_is_not_carried_into_another_process(file: Ledger) -> None:
    note(file)
    if (child := os.fork()) == 0:
        try:
            note(file, "from the child")
        except RuntimeError as error:
            os._exit(7 if "does not survive a fork" in str(error) else 1)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert names(file) == ["flights"]


MOUNTS = """\
22 27 0:21 / /proc rw,relatime - proc proc rw
27 1 254:0 / / rw,relatime - ext4 /dev/vda rw
40 27 0:50 / {point} rw,relatime shared:1 - {kind} server:/export rw
"""


@pytest.mark.parametrize("kind", ["nfs", "nfs4", "cifs", "smb3", "fuse.sshfs", "fuse.glusterfs", "ceph"])
def test_a_ledger_on_a_network_file_system_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    shared = tmp_path / "on the net"
    (tmp_path / "mounts").write_text(MOUNTS.format(point=str(shared).replace(" ", "\\040"), kind=kind))
    monkeypatch.setattr(place, "MOUNTS", tmp_path / "mounts")
    for deeper in (shared / "ledger.db", shared / "state" / "ledger.db"):
        with pytest.raises(ConfigurationError, match=rf"network file system \({kind}\).*PostgreSQL"):
            Ledger(f"sqlite:///{deeper}")
    Ledger(f"sqlite:///{tmp_path / 'on the network.db'}").close()  # beside it


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs", "overlay", "tmpfs", "fuse.fuse-overlayfs", "9p", "virtiofs"])
def test_a_ledger_on_a_file_system_of_this_machine_is_not_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    (tmp_path / "mounts").write_text(MOUNTS.format(point=tmp_path, kind=kind))
    monkeypatch.setattr(place, "MOUNTS", tmp_path / "mounts")
    Ledger(f"sqlite:///{tmp_path / 'ledger.db'}").close()


def test_of_mounts_at_one_place_the_last_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    twice = MOUNTS.format(point=tmp_path, kind="ext4") + f"41 27 0:51 / {tmp_path} rw - nfs4 server:/export rw\n"
    assert place.file_system(tmp_path / "ledger.db", twice) == "nfs4"
    assert place.file_system(tmp_path / "ledger.db", "") == ""


def test_a_watcher_wakes_on_a_commit_and_not_on_a_look(file: Ledger, ledger_file: Path) -> None:
    changes, other = file.watch(), Ledger(f"sqlite:///{ledger_file}")
    assert not changes.poll()
    names(other)
    names(file)
    with other.write():
        pass  # a transaction that changed nothing
    assert not changes.poll()
    note(other)
    assert changes.wait(DEADLINE_S)
    note(file, "own")
    assert changes.poll()
    assert not changes.poll()
    changes.close()
    other.close()


def test_the_twin_tells_of_its_commits_too(clock: HandClock) -> None:
    twin = Ledger("sqlite://", clock)
    create_all(twin)
    changes = twin.watch()
    assert not changes.poll()
    note(twin)
    assert changes.wait(DEADLINE_S)
    assert not changes.wait(0)
    changes.close()
    twin.close()


def test_a_watcher_that_is_told_to_stop_stops(file: Ledger) -> None:
    changes, stop = file.watch(), threading.Event()
    stop.set()
    assert not changes.wait(DEADLINE_S, stop)
    changes.close()


@pytest.mark.parametrize("name", ["a b", "50%20", "c#d", "é"])
def test_a_ledger_may_lie_in_a_directory_of_any_name(tmp_path: Path, name: str) -> None:
    url = f"sqlite:///{quote(str(tmp_path / name / 'ledger.db'))}"
    migrate(url)
    opened = Ledger(url)
    check_schema(opened)
    changes = opened.watch()
    note(opened)
    assert changes.poll()
    changes.close()
    opened.close()
    assert (tmp_path / name / "ledger.db").exists()


def test_the_migrations_make_exactly_the_tables_that_the_code_knows(file: Ledger) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    with file.read() as tx:
        assert compare_metadata(MigrationContext.configure(tx.connection), metadata) == []


def test_migrating_again_changes_nothing(file: Ledger, ledger_file: Path) -> None:
    note(file)
    changes = file.watch()
    migrate(file.url)
    check_schema(file)
    assert (names(file), changes.poll()) == (["flights"], False)
    changes.close()


def test_a_database_that_is_locked_cannot_be_migrated_and_says_so(
    monkeypatch: pytest.MonkeyPatch, ledger_file: Path
) -> None:
    monkeypatch.setattr(sqlite, "BUSY_TIMEOUT_S", 0.1)
    with locked(ledger_file), pytest.raises(Unavailable):
        migrate(f"sqlite:///{ledger_file}")


@pytest.mark.parametrize(
    ("spoil", "found"),
    [("DROP TABLE alembic_version", "none"), ("UPDATE alembic_version SET version_num='0001'", "0001")],
)
def test_a_program_refuses_a_ledger_of_another_schema_and_says_what_to_do(file: Ledger, spoil: str, found: str) -> None:
    check_schema(file)
    with file.engine.begin() as by_hand:
        by_hand.exec_driver_sql(spoil)
    with pytest.raises(ConfigurationError, match=f"has schema {found}, .* run `python -m stack migrate`"):
        check_schema(file)


def test_a_ledger_that_was_never_migrated_is_refused(tmp_path: Path) -> None:
    opened = Ledger(f"sqlite:///{tmp_path / 'new.db'}")
    with pytest.raises(ConfigurationError, match="schema none"):
        check_schema(opened)
    opened.close()
