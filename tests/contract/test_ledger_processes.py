"""One ledger and many real processes: nothing twice, nothing lost, nobody starved (I2, I4, I5, I9)."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from shared.ledger import Ledger, arrivals, attempts, datasets, runs, schema, sqlite
from shared.ledger.schema import check_schema
from tests.contract import ledger_processes
from tests.ledgers import CONFIG, adopt, claim, finish, grow, put_config
from tests.postgres_server import Postgres

PROCESSES, MODELS, IDS = 6, 40, 15
DEADLINE_S = 60.0


@pytest.fixture(scope="module")
def processes() -> Iterator[multiprocessing.context.ForkServerContext]:
    """Processes that are forked from a server which has only imported: no thread or connection of ours is carried over."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.contract.ledger_processes"])
    yield context


@pytest.fixture(scope="module")
def pool(processes: multiprocessing.context.ForkServerContext) -> Iterator[ProcessPoolExecutor]:
    together = processes.Barrier(PROCESSES)
    with ProcessPoolExecutor(PROCESSES, processes, ledger_processes.join, (together,)) as started:
        yield started


@pytest.fixture(params=["sqlite", "postgresql"])
def empty(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a database without tables."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'new.db'}"
    server: Postgres = request.getfixturevalue("postgres")
    return server.new_database()


@pytest.fixture
def file(empty: str) -> Iterator[Ledger]:
    schema.migrate(empty)
    opened = Ledger(empty)
    put_config(opened, CONFIG)
    yield opened
    opened.close()


def all_at_once(pool: ProcessPoolExecutor, work: Callable[..., Any], *arguments: object) -> list[Any]:
    started = [pool.submit(work, *arguments) for _ in range(PROCESSES)]
    return [one.result(DEADLINE_S) for one in started]


def test_six_processes_claim_forty_runs_each_once_and_nobody_waits_long(
    pool: ProcessPoolExecutor, file: Ledger
) -> None:
    names = [f"model-{number}" for number in range(MODELS)]
    put_config(file, CONFIG + "".join(f'\n[models.{name}]\nrepository = "file:///nowhere/x.git"\n' for name in names))
    for name in names:
        adopt(file, name)
    grow(file)
    told = all_at_once(pool, ledger_processes.claim_all, file.url)
    claimed = Counter(run for runs_of_one, _ in told for run in runs_of_one)
    assert (len(claimed), set(claimed.values())) == (MODELS, {1})
    assert max(longest for _, longest in told) < sqlite.BUSY_TIMEOUT_S / 3
    with file.read() as tx:
        assert runs.count(tx) == {"trained": MODELS}
        assert all(len(attempts.of_run(tx, run)) == 1 for run in claimed)


def test_six_processes_send_the_same_reports_and_each_is_one_arrival(pool: ProcessPoolExecutor, file: Ledger) -> None:
    adopt(file, dataset="reported")
    told = all_at_once(pool, ledger_processes.report_all, file.url, IDS)
    for number in range(IDS):
        assert len({receipts[number][0] for receipts in told}) == 1
        assert Counter(receipts[number][1] for receipts in told) == {False: 1, True: PROCESSES - 1}
    with file.read() as tx:
        found = arrivals.find_all(tx, dataset="reported", before=None, limit=99)
        assert (len(found), datasets.known(tx, ["reported"])["reported"].rows) == (IDS, IDS)
        assert len(runs.find_all(tx)) == 1


def test_six_processes_send_under_the_same_keys_and_each_is_one_arrival(
    pool: ProcessPoolExecutor, file: Ledger
) -> None:
    told = all_at_once(pool, ledger_processes.send_keys, file.url, IDS)
    for number in range(IDS):
        assert len({receipts[number][0] for receipts in told}) == 1
        assert Counter(receipts[number][1] for receipts in told) == {False: 1, True: PROCESSES - 1}
    with file.read() as tx:
        assert len(arrivals.find_all(tx, dataset="reported", before=None, limit=99)) == IDS


def test_an_id_that_two_datasets_are_told_of_at_once_is_one_of_theirs(pool: ProcessPoolExecutor, file: Ledger) -> None:
    told = all_at_once(pool, ledger_processes.claim_ids, file.url, IDS)
    assert all(any(taken[number] for taken in told) for number in range(IDS))
    with file.read() as tx:
        reported = len(arrivals.find_all(tx, dataset="reported", before=None, limit=99))
    assert reported <= IDS


def test_six_processes_migrate_at_once_and_all_find_the_tables(pool: ProcessPoolExecutor, empty: str) -> None:
    opened = Ledger(empty)
    all_at_once(pool, ledger_processes.migrate_together, opened.url)
    check_schema(opened)
    opened.close()


def test_a_commit_by_another_process_wakes_who_waits_and_a_look_does_not(
    pool: ProcessPoolExecutor, file: Ledger
) -> None:
    changes = file.watch()
    while changes.wait(0.5):
        pass  # a watch may begin with one change too many
    pool.submit(ledger_processes.look, file.url).result(DEADLINE_S)
    assert not changes.poll()
    noted = pool.submit(ledger_processes.note, file.url)
    assert changes.wait(DEADLINE_S)
    noted.result(DEADLINE_S)
    changes.close()


def test_a_worker_that_was_stopped_past_its_lease_writes_nothing_when_it_goes_on(
    processes: multiprocessing.context.ForkServerContext, file: Ledger, tmp_path: Path
) -> None:
    adopt(file)
    grow(file)
    ready, going_on, outcome = (tmp_path / name for name in ("ready", "going on", "outcome"))
    frozen = processes.Process(target=ledger_processes.hold_run, args=(file.url, 1, ready, going_on, outcome))
    frozen.start()
    wait_for(lambda: ready.exists() and ready.read_text())
    assert frozen.pid is not None
    os.kill(frozen.pid, signal.SIGSTOP)
    taken: list[attempts.Claim] = []
    wait_for(lambda: (held := claim(file, 1, "other")) is not None and taken.append(held) is None)
    finish(file, taken[0])
    going_on.touch()
    os.kill(frozen.pid, signal.SIGCONT)
    frozen.join(DEADLINE_S)
    assert outcome.read_text() == "fenced fenced fenced"
    with file.read() as tx:
        row = runs.find(tx, 1)
        assert (row.state, row.token, row.bundle) == ("trained", 2, "sha256:" + "b" * 64)
        assert [one.outcome for one in attempts.of_run(tx, 1)] == ["lost", "trained"]


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.02)


def test_a_process_that_is_killed_while_it_writes_leaves_nothing_and_holds_up_nobody(
    processes: multiprocessing.context.ForkServerContext, file: Ledger, tmp_path: Path
) -> None:
    ready = tmp_path / "ready"
    dying = processes.Process(target=ledger_processes.die_while_writing, args=(file.url, ready))
    dying.start()
    deadline = time.monotonic() + DEADLINE_S
    while not (ready.exists() and ready.read_text()):
        assert time.monotonic() < deadline, "it never wrote"
    assert dying.pid is not None
    os.kill(dying.pid, signal.SIGKILL)
    dying.join(DEADLINE_S)
    with file.write() as tx:
        assert [row.name for row in datasets.find_all(tx)] == []
        datasets.ensure(tx, "flights")
    with file.read() as tx:
        assert [row.name for row in datasets.find_all(tx)] == ["flights"]
