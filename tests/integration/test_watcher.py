"""The watcher as a process: real tables, real repositories, a real broker, and kills."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, TypeVar

import pytest

from services.ingest_watcher.app import Watcher
from shared.arrivals import Report
from shared.ledger import Ledger, arrivals, datasets, fates, planning, releases, runs, workers
from shared.ledger.schema import migrate
from shared.settings import Settings
from tests.forks import Fork, Forks
from tests.ledgers import put_config
from tests.redis_server import Valkey, start_valkey

WAIT_S = 20.0
NOWHERE = "redis://127.0.0.1:9/0"  # the discard port: nobody listens
LEASE_S = 0.9
STARTED_LATE = ("alembic.command", "kombu.transport.redis")
PYPROJECT = """
[project]
name = "delays"
version = "1"

[tool.headrace]
train = "delays:train"

[tool.headrace.datasets.flights]
"""
T = TypeVar("T")
_queues = (f"class-{number}" for number in itertools.count())


class World:
    """A ledger, a table and a repository in a directory, and watchers over them."""

    def __init__(self, directory: Path, forks: Forks, redis_url: str = NOWHERE) -> None:
        self.directory = directory
        self.forks = forks
        self.table = directory / "flights.db"
        self.repository = directory / "delays"
        self.redis_url = redis_url
        self.lease_s = LEASE_S
        self.ledger_url = f"sqlite:///{directory}/ledger/ledger.db"
        migrate(self.ledger_url)
        self.ledger = Ledger(self.ledger_url)
        self.watchers: list[Fork] = []
        self.options = {
            "repository": str(self.repository),
            "release": "latest",
            "class": "standard",
            "dataset": "",
            "model": "",
            "poll": "200ms",
        }

    def configure(self, **options: str) -> None:
        self.options |= options
        text = f"""
        [datasets.flights]
        source = {{ kind = "sql", url = "sqlite:///{self.table}", table = "flights", cursor = "id", poll = "{self.options["poll"]}" }}
        [models.delays]
        repository = "{self.options["repository"]}"
        release = "{self.options["release"]}"
        release_poll = "1s"
        {self.options["model"]}
        [compute_classes.{self.options["class"]}]
        {self.options["dataset"]}
        """
        put_config(self.ledger, text)

    def create_table(self) -> None:
        self.run("CREATE TABLE flights (id INTEGER PRIMARY KEY, delay INTEGER)")

    def run(self, statement: str) -> None:
        with closing(sqlite3.connect(self.table, timeout=10)) as connection, connection:
            connection.execute(statement)

    def insert(self, rows: int) -> None:
        with closing(sqlite3.connect(self.table, timeout=10)) as connection, connection:
            connection.executemany("INSERT INTO flights (delay) VALUES (?)", [(row,) for row in range(rows)])

    def git(self, *arguments: str) -> str:
        self.repository.mkdir(exist_ok=True)
        who = {f"GIT_{role}_{fact}": "a@example.com" for role in ("AUTHOR", "COMMITTER") for fact in ("NAME", "EMAIL")}
        env = {"PATH": os.environ["PATH"], "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_NOSYSTEM": "1", **who}
        done = subprocess.run(["git", *arguments], cwd=self.repository, env=env, capture_output=True, check=True)
        return done.stdout.decode().strip()

    def commit(self, pyproject: str | None, tag: str | None = None) -> str:
        if not (self.repository / ".git").exists():
            self.git("init", "--quiet", "--initial-branch=main")
        (self.repository / "delays.py").write_text("def train(job): ...\n")
        if pyproject is not None:
            (self.repository / "pyproject.toml").write_text(pyproject)
        self.git("add", "--all")
        self.git("commit", "--quiet", "--allow-empty", "--message=change")
        if tag:
            self.git("tag", "--force", tag)
        return self.git("rev-parse", "HEAD")

    def settings(self, state: Path) -> dict[str, Any]:
        return {
            "state_dir": str(state),
            "ledger_url": self.ledger_url,
            "redis_url": self.redis_url,
            "blobs_url": f"file://{state}/blobs",
            "logs_url": f"file://{state}/logs",
            "lease_s": self.lease_s,
            "heartbeat_s": self.lease_s / 3,
            "patience_s": 1.0,
            "process": "watcher",
        }

    def start(self) -> Fork:
        """Start a watcher; it says itself when it is ready."""
        number = len(self.watchers)
        state = self.directory / f"state{number}"
        (settings := self.directory / f"settings{number}.json").write_text(json.dumps(self.settings(state)))
        env = {"PATH": os.environ["PATH"], "HEADRACE_SETTINGS": str(settings)}
        process = self.forks.start(["services.ingest_watcher"], env, self.log(number))
        self.watchers.append(process)
        until(lambda: (state / "ready" / "watcher").exists() or process.poll() is not None, self)
        return process

    def log(self, number: int) -> Path:
        return self.directory / f"watcher{number}.log"

    def said(self) -> str:
        return "\n".join(self.log(number).read_text()[-3000:] for number in range(len(self.watchers)))

    def end(self) -> None:
        for watcher in self.watchers:
            if watcher.poll() is None:
                os.killpg(watcher.pid, signal.SIGKILL)
                watcher.wait()
        self.ledger.close()

    def arrivals(self) -> list[Any]:
        with self.ledger.read() as tx:
            return list(reversed(arrivals.find_all(tx, dataset="flights", before=None, limit=1000)))

    def rows_seen(self) -> int:
        return sum(one.rows for one in self.arrivals())

    def dataset(self) -> Any:
        with self.ledger.read() as tx:
            return next((row for row in datasets.find_all(tx) if row.name == "flights"), None)

    def holder(self) -> Fork | None:
        """Of the watchers that run, the one that looks at the table."""
        owner = self.dataset().lease_owner or ""
        return next((one for one in self.watchers if one.poll() is None and owner.endswith(f":{one.pid}")), None)

    def release(self, model: str = "delays") -> tuple[str, str] | None:
        with self.ledger.read() as tx:
            found = releases.in_force(tx, model)
        return (found.name, found.commit) if found else None

    def why(self) -> str:
        with self.ledger.read() as tx:
            return " ".join(fates.why(tx, "delays"))

    def waiting(self) -> Any:
        with self.ledger.read() as tx:
            return runs.find_waiting(tx, "delays")


@pytest.fixture(scope="module")
def forks() -> Iterator[Forks]:
    forks = Forks("services.ingest_watcher.app", *STARTED_LATE)
    yield forks
    forks.stop()


@pytest.fixture
def world(tmp_path: Path, forks: Forks) -> Iterator[World]:
    world = World(tmp_path, forks)
    yield world
    world.end()


def until(condition: Callable[[], T | None], world: World) -> T:
    deadline = time.monotonic() + WAIT_S
    while not (found := condition()):
        assert time.monotonic() < deadline, f"it did not come true; the watchers said:\n{world.said()}"
        time.sleep(0.01)
    return found


def check_each_row_once(world: World, rows: int) -> None:
    """The arrivals join without gap or overlap up to the cursor, and hold every row (I1)."""
    told = world.arrivals()
    assert [one.above for one in told] == [None, *(one.upto for one in told[:-1])]
    assert sum(one.rows for one in told) == rows == world.dataset().cut["rows"]
    assert told[-1].upto == world.dataset().cut["upto"] == rows


def test_new_rows_become_an_arrival_at_their_commit_and_no_poll_is_waited_for(world: World) -> None:
    world.create_table()
    world.configure(poll="1h")
    world.lease_s = 3600.0  # a look comes with each renewal too
    world.start()
    until(lambda: world.dataset() and world.dataset().lease_owner, world)
    for batch in range(1, 6):
        world.insert(1000)
        until(lambda batch=batch: world.rows_seen() == 1000 * batch, world)  # type: ignore[misc]
    check_each_row_once(world, 5000)
    assert world.dataset().cut["holdout_rows"] == 500


def test_each_row_is_seen_once_although_watchers_are_killed_and_two_watch_at_once(world: World) -> None:
    world.create_table()
    world.configure()
    first, _second = world.start(), world.start()
    rows = 0
    for batch in range(1, 60):
        world.insert(batch)
        rows += batch
        if batch in (15, 30, 45):
            first.kill()
            first.wait(10)
            first = world.start()
            holder = until(world.holder, world)
            holder.kill()
            holder.wait(10)
            if holder is first:
                first = world.start()
    world.start()
    until(lambda: world.rows_seen() >= rows, world)
    check_each_row_once(world, rows)


def test_rows_that_came_while_no_watcher_ran_are_seen(world: World) -> None:
    world.create_table()
    world.insert(10)
    world.configure()
    watcher = world.start()
    until(lambda: world.rows_seen() == 10, world)
    watcher.terminate()
    assert watcher.wait(10) == 0
    world.insert(5)
    world.start()
    until(lambda: world.rows_seen() == 15, world)
    check_each_row_once(world, 15)


def test_a_clean_stop_takes_less_than_two_seconds_and_gives_the_watch_back(world: World) -> None:
    world.create_table()
    world.commit(PYPROJECT, "v1.0.0")
    world.configure()
    watcher = world.start()
    until(lambda: world.release() and world.dataset().lease_owner, world)
    watcher.terminate()
    assert watcher.wait(10) == 0
    assert world.dataset().lease_until <= world.ledger.clock.now()


def test_a_repository_that_never_answers_holds_up_neither_the_datasets_nor_the_stop(world: World) -> None:
    world.create_table()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        world.configure(repository=f"https://127.0.0.1:{silent.getsockname()[1]}/delays.git")
        watcher = world.start()
        connection, _ = silent.accept()  # git waits for an answer now
        with connection:
            world.insert(3)
            until(lambda: world.rows_seen() == 3, world)
            watcher.terminate()
            assert watcher.wait(10) == 0


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_loop_that_dies_takes_the_process_down(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.create_table()
    world.configure()
    settings = Settings.model_validate(world.settings(world.directory / "state"))
    watcher = Watcher(settings)

    def die() -> None:
        raise SystemExit  # nothing that a loop tries again

    with closing(watcher):
        monkeypatch.setattr(watcher._roster._posts["dataset", "flights"].loop.body, "step", die)
        assert watcher.run(threading.Event()) == 1


def test_a_watcher_that_finds_no_ledger_says_so_and_ends(world: World) -> None:
    world.ledger_url = f"sqlite:///{world.directory}/empty.db"
    watcher = world.start()
    assert watcher.wait(10) == 1
    waited, last = [json.loads(line) for line in world.said().splitlines()[-2:]]
    assert (waited["event"], last["event"]) == ("ledger.awaited", "watcher.cannot_start")
    assert "python -m stack migrate" in last["why"]


def test_a_missing_file_table_and_column_are_said_in_turn_and_each_is_healed_by_itself(world: World) -> None:
    world.configure()
    world.start()
    until(lambda: world.dataset() and "there is no file" in (world.dataset().error or ""), world)
    world.run("CREATE TABLE other (x)")
    until(lambda: "there is no table 'flights'" in world.dataset().error, world)
    world.run("CREATE TABLE flights (number INTEGER PRIMARY KEY)")
    until(lambda: "has no column 'id'; it has number" in world.dataset().error, world)
    world.run("DROP TABLE flights")
    world.create_table()
    world.insert(3)
    until(lambda: world.rows_seen() == 3, world)
    assert world.dataset().error is None


def test_a_reported_event_is_answered_by_the_arrival_that_the_look_finds(world: World) -> None:
    world.create_table()
    world.configure()
    told = Report(dataset="flights", source="loader", event_id="february", rows=3)
    with world.ledger.write() as tx:
        assert arrivals.receive(tx, told).nudged
    world.start()
    until(lambda: world.dataset().looked_at, world)
    world.insert(3)
    until(lambda: world.rows_seen() == 3, world)
    assert (world.arrivals()[0].source, world.arrivals()[0].event_id) == ("loader", "february")
    with world.ledger.write() as tx:
        assert arrivals.receive(tx, told).arrival == world.arrivals()[0].id


def test_a_new_tag_plans_a_run_without_new_data_and_a_lower_one_does_not(world: World) -> None:
    world.create_table()
    world.insert(10)
    first = world.commit(PYPROJECT, "v1.9.0")
    world.configure()
    world.start()
    until(lambda: world.rows_seen() and world.waiting(), world)
    assert world.release() == ("v1.9.0", first)
    with world.ledger.write() as tx:
        planning.cancel(tx, world.waiting().id, "makes room")
    second = world.commit(PYPROJECT, "v1.10.0")
    until(lambda: world.release() == ("v1.10.0", second), world)
    assert "new release v1.10.0" in world.waiting().reason
    assert world.waiting().due_at <= world.ledger.clock.now()


def test_a_refused_release_keeps_the_old_one_in_force_and_says_why(world: World) -> None:
    world.create_table()
    first = world.commit(PYPROJECT, "v1.0.0")
    world.configure()
    world.start()
    until(lambda: world.release() == ("v1.0.0", first), world)
    world.commit(PYPROJECT.replace("datasets.flights", "datasets.fligths"), "v1.1.0")
    until(lambda: "Release v1.1.0 was refused" in world.why(), world)
    assert 'no dataset "fligths"' in world.why()
    assert "v1.0.0 stays in force" in world.why()
    assert world.release() == ("v1.0.0", first)
    third = world.commit(PYPROJECT, "v1.2.0")
    until(lambda: world.release() == ("v1.2.0", third), world)
    assert "refused" not in world.why()


def test_a_refused_release_is_judged_again_when_the_operator_adds_what_it_asks_for(world: World) -> None:
    world.create_table()
    commit = world.commit(PYPROJECT + "[tool.headrace.datasets.weather]\n", "v1.0.0")
    world.configure()
    world.start()
    until(lambda: 'no dataset "weather"' in world.why(), world)
    world.configure(dataset='[datasets.weather]\nsource = { kind = "rest" }')
    until(lambda: world.release() == ("v1.0.0", commit), world)


@pytest.mark.parametrize(
    ("pyproject", "says"),
    [
        (None, "pyproject.toml is missing"),
        ("[project", "pyproject.toml:"),
        ("[project]\nname = 'x'", "[tool.headrace]"),
    ],
)
def test_a_release_that_cannot_be_read_says_what_it_lacks(world: World, pyproject: str | None, says: str) -> None:
    world.create_table()
    world.commit(pyproject, "v1.0.0")
    world.configure()
    world.start()
    until(lambda: "Release v1.0.0 was refused" in world.why(), world)
    assert says in world.why()


def test_a_moved_tag_is_a_new_release_and_its_move_is_told(world: World) -> None:
    world.create_table()
    first = world.commit(PYPROJECT, "v1.0.0")
    world.configure()
    world.start()
    until(lambda: world.release() == ("v1.0.0", first), world)
    second = world.commit(PYPROJECT, "v1.0.0")
    assert second != first
    until(lambda: world.release() == ("v1.0.0", second), world)
    assert f"Its tag v1.0.0 was moved from {first[:12]} to {second[:12]}" in world.why()


@pytest.mark.parametrize(
    ("act", "says"),
    [
        (("update-index", "--add", "--cacheinfo", f"160000,{'1' * 40},vendored"), "vendored is a submodule"),
        (("add", "--all"), "lfs_pointer_found: model.bin"),
    ],
)
def test_a_release_that_could_not_be_checked_out_is_refused_at_once(
    world: World, act: tuple[str, ...], says: str
) -> None:
    world.create_table()
    first = world.commit(PYPROJECT, "v1.0.0")
    world.configure()
    world.start()
    until(lambda: world.release() == ("v1.0.0", first), world)
    (world.repository / "model.bin").write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2\nsize 9\n"
    )
    world.git(*act)
    world.git("commit", "--quiet", "--message=change")
    world.git("tag", "v1.1.0")
    until(lambda: "Release v1.1.0 was refused; v1.0.0 stays in force" in world.why(), world)
    assert says in world.why()


def count_looks(directory: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that gets a line, the time, whenever git asks a server what it has."""
    looks, shim = directory / "looks", directory / "bin" / "git"
    shim.parent.mkdir()
    shim.write_text(
        f'#!/bin/sh\ncase " $* " in *" ls-remote "*) date +%s.%N >> {looks};; esac\nexec {shutil.which("git")} "$@"\n'
    )
    shim.chmod(0o755)
    monkeypatch.setenv("PATH", f"{shim.parent}:{os.environ['PATH']}")
    return looks


def test_models_of_one_repository_have_tags_of_their_own_and_ask_for_them_together(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.create_table()
    for name in ("delays", "prices"):
        (world.repository / "models" / name).mkdir(parents=True)
        (world.repository / "models" / name / "pyproject.toml").write_text(PYPROJECT)
    first = world.commit(None, "delays-v1.0.0")
    world.git("tag", "prices-v2.0.0rc1")
    world.configure(
        model='subdirectory = "models/delays"\ntags = "delays-*"',
        dataset=f'[models.prices]\nrepository = "{world.repository}"\nsubdirectory = "models/prices"\ntags = "prices-*"\n'
        'prereleases = true\nrelease_poll = "1s"',
    )
    looks = count_looks(world.directory, monkeypatch)
    world.start()
    until(lambda: world.release() and world.release("prices"), world)
    assert world.release() == ("delays-v1.0.0", first)
    assert world.release("prices") == ("prices-v2.0.0rc1", first)
    until(lambda: looks.read_text().count("\n") >= 4, world)
    at = [float(line) for line in looks.read_text().split()]
    assert at[3] - at[0] > 2.5, "four looks at one a second, for both models"
    world.configure(model='subdirectory = "models/weather"\ntags = "delays-*"')
    until(lambda: "has no directory models/weather" in world.why(), world)


def test_a_branch_is_followed_and_a_commit_stays(world: World) -> None:
    world.create_table()
    first = world.commit(PYPROJECT)
    world.configure(release="branch:main")
    world.start()
    until(lambda: world.release() == ("main", first), world)
    second = world.commit(PYPROJECT)
    until(lambda: world.release() == ("main", second), world)
    world.configure(release=first)
    until(lambda: world.release() == (first, first), world)


def test_a_repository_that_is_away_or_has_no_release_is_said_and_read_when_it_is_there(world: World) -> None:
    world.create_table()
    world.configure()
    world.start()
    until(lambda: "Its repository cannot be read: git ls-remote" in world.why(), world)
    world.commit(PYPROJECT)
    until(lambda: "tag a release (git tag v1.0.0)" in world.why(), world)
    world.git("tag", "v1.0.0")
    until(lambda: world.release(), world)
    until(lambda: "cannot be read" not in world.why(), world)


def test_a_dataset_that_is_added_later_is_watched_and_one_that_is_removed_is_left_alone(world: World) -> None:
    world.create_table()
    world.insert(3)
    world.start()
    put_config(world.ledger, '[datasets.other]\nsource = { kind = "rest" }')
    world.configure()
    until(lambda: world.rows_seen() == 3, world)
    put_config(world.ledger, '[datasets.other]\nsource = { kind = "rest" }')
    until(lambda: world.dataset().lease_until <= world.ledger.clock.now(), world)
    world.insert(3)
    world.configure()
    until(lambda: world.rows_seen() == 6, world)


def ready_to_ring(world: World) -> str:
    """A table with rows and a release for a compute class of this test's own."""
    compute_class = next(_queues) + f"-{os.getpid()}"
    world.create_table()
    world.insert(10)
    world.commit(PYPROJECT.replace("[tool.headrace]", f'[tool.headrace]\ncompute_class = "{compute_class}"'), "v1.0.0")
    world.configure(**{"class": compute_class})
    a_worker_is_free(world, compute_class)
    return compute_class


def a_worker_is_free(world: World, compute_class: str, slots: int = 9) -> None:
    with world.ledger.write() as tx:
        workers.seen(tx, f"trainer of {compute_class}", compute_class, slots, 0)


def messages(valkey: Valkey, compute_class: str) -> list[bytes]:
    return valkey.command("LRANGE", f"train.{compute_class}", "0", "-1").split(b'{"body"')[1:]


def rung_at(world: World) -> Any:
    run = world.waiting()
    return run and run.rung_at


def test_a_due_run_is_rung_once_on_the_queue_of_its_class(world: World, valkey: Valkey) -> None:
    world.redis_url = valkey.url
    compute_class = ready_to_ring(world)
    world.start()
    until(lambda: rung_at(world), world)
    first = rung_at(world)
    world.start()
    world.insert(10)  # joins the run, which stays due: nobody rings again
    until(lambda: world.rows_seen() == 20, world)
    with world.ledger.read() as tx:
        assert runs.unrung(tx, [compute_class]) == []
    assert (rung_at(world), len(messages(valkey, compute_class))) == (first, 1)


def test_the_bell_is_rung_when_the_broker_comes_back(world: World, tmp_path: Path) -> None:
    valkey = start_valkey(tmp_path / "valkey")
    try:
        valkey.kill()
        world.redis_url = valkey.url
        compute_class = ready_to_ring(world)
        world.start()
        until(lambda: b"broker.away" in world.log(0).read_bytes(), world)
        assert rung_at(world) is None
        valkey.restart()
        until(lambda: rung_at(world), world)
        assert len(messages(valkey, compute_class)) == 1
        valkey.restart()  # the connection that the watcher has is dead now, and the message is lost
        with world.ledger.write() as tx:
            planning.cancel(tx, world.waiting().id, "makes room")
            planning.ask(tx, "delays", "again")
        until(lambda: rung_at(world), world)
        assert len(messages(valkey, compute_class)) == 1
    finally:
        valkey.stop()


def test_a_run_whose_class_is_gone_is_passed_over_and_others_are_rung(world: World, valkey: Valkey) -> None:
    world.redis_url = valkey.url
    compute_class = ready_to_ring(world)
    world.start()
    until(lambda: rung_at(world), world)
    world.configure(**{"class": (other := f"{compute_class}-new")})
    a_worker_is_free(world, other)
    with world.ledger.write() as tx:
        planning.cancel(tx, world.waiting().id, "makes room")
        planning.ask(tx, "delays", "again")
    world.commit(PYPROJECT.replace("[tool.headrace]", f'[tool.headrace]\ncompute_class = "{other}"'), "v2.0.0")
    until(lambda: messages(valkey, other), world)
    assert (len(messages(valkey, compute_class)), len(messages(valkey, other))) == (1, 1)


def test_a_bell_is_rung_for_a_free_slot_and_not_for_a_queue(world: World, valkey: Valkey) -> None:
    world.redis_url = valkey.url
    compute_class = ready_to_ring(world)
    a_worker_is_free(world, compute_class, slots=0)
    world.start()
    until(lambda: world.waiting() and world.waiting().due_at, world)
    assert rung_at(world) is None
    a_worker_is_free(world, compute_class, slots=1)
    until(lambda: rung_at(world), world)
    assert len(messages(valkey, compute_class)) == 1


def send(valkey: Valkey, id: str, dataset: str) -> None:
    event = {"specversion": "1.0", "id": id, "source": "/loader", "type": "dataset.arrived", "subject": dataset}
    valkey.command("XADD", "headrace:arrivals", "*", "event", json.dumps(event))


def reported(world: World) -> list[str]:
    with world.ledger.read() as tx:
        return [row.event_id for row in arrivals.find_all(tx, dataset="reported", before=None, limit=1000)]


def test_the_watcher_starts_while_the_broker_is_away_and_takes_events_once_it_is_there(
    world: World, tmp_path: Path
) -> None:
    valkey = start_valkey(tmp_path / "valkey")
    try:
        valkey.kill()
        world.redis_url = valkey.url
        world.configure(dataset='[datasets.reported]\nsource = { kind = "stream" }')
        watcher = world.start()
        until(lambda: b"the broker does not answer" in world.log(0).read_bytes(), world)
        with world.ledger.write() as tx:
            arrivals.receive(tx, Report(dataset="reported", source="/loader", event_id="by REST"))
        valkey.restart()
        send(valkey, "by stream", "reported")
        until(lambda: reported(world) == ["by stream", "by REST"], world)
        valkey.command("FLUSHALL")
        send(valkey, "after all was lost", "reported")
        until(lambda: reported(world)[0] == "after all was lost", world)
        watcher.terminate()
        assert watcher.wait(10) == 0
        assert "loops.left_behind" not in world.said()
    finally:
        valkey.stop()


def test_an_event_over_the_stream_is_answered_by_the_look_that_it_causes(world: World, valkey: Valkey) -> None:
    world.redis_url = valkey.url
    world.create_table()
    world.configure(poll="1h")
    world.start()
    until(lambda: world.dataset() and world.dataset().looked_at, world)
    first = world.dataset().looked_at
    send(valkey, f"nudge {os.getpid()}", "flights")
    until(lambda: world.dataset().looked_at > first, world)
    world.insert(3)
    until(lambda: world.rows_seen() == 3, world)
    assert world.arrivals()[0].event_id == f"nudge {os.getpid()}"
