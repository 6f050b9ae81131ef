"""A model's code in a sandbox: what it reaches, and that it is told, stopped, weighed and understood as without one."""

from __future__ import annotations

import json
import os
import shutil
import socket
import sqlite3
import subprocess
import threading
import uuid
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from services.trainer.attempt import Trainer
from services.trainer.checkout import Workshop
from services.trainer.claims import LedgerClaims
from services.trainer.evaluate import Evaluator
from services.trainer.failures import AttemptFailed, Leaving
from services.trainer.heart import Heart
from services.trainer.sandbox import Sandbox
from services.trainer.shares import Share, Shares, own_cpus
from services.trainer.usage import Meter
from services.trainer.users import Users
from shared import cuts
from shared.blobs import DiskBlobs
from shared.catalog import Limits
from shared.ledger import Ledger, attempts, configuration, runs
from shared.ledger.attempts import Failure
from shared.logs import DiskLogs
from shared.settings import Settings
from shared.values import Bytes
from tests import ledgers
from tests.children import train
from tests.contract.test_confined_child import UIDS, needs_root, processes, public_place, public_python

__all__ = ["public_place"]  # a fixture
MB = 1000**2
CLOSED = Sandbox()


def cannot() -> str | None:
    """Why no sandbox can be made here, if none can."""
    if shutil.which("bwrap") is None:
        return "there is no bwrap; apt-get install bubblewrap"
    words = [
        "bwrap",
        "--unshare-user",
        "--disable-userns",
        "--unshare-pid",
        "--ro-bind",
        "/",
        "/",
        "--proc",
        "/proc",
        "true",
    ]
    done = subprocess.run(words, capture_output=True, text=True)
    return f"no sandbox can be made here: {done.stderr.strip()}" if done.returncode else None


WHY = cannot()
pytestmark = pytest.mark.skipif(WHY is not None, reason=str(WHY))


def found(place: Path) -> dict[str, object]:
    return dict(json.loads((place / "scratch" / "work" / "found.json").read_text()))


def failure(place: Path, body: str, sandbox: Sandbox = CLOSED, **given: object) -> Failure:
    with pytest.raises(AttemptFailed) as failed:
        train(place, body, sandbox=sandbox, **given)  # type: ignore[arg-type]
    return failed.value.failure


REACHES = """
import signal
def reach(act):
    try:
        return act() or "done"
    except OSError as error:
        return type(error).__name__
write = lambda path: lambda: open(path, "a").close()
status = [line.split() for line in open("/proc/self/status")]
found = {
    "usr": reach(write("/usr/planted")), "etc": reach(write("/etc/planted")), "top": reach(write("/planted")), "dev": reach(write("/dev/planted")),
    "source": reach(write(__file__)), "python": reach(write(os.path.join(os.path.dirname(sys.executable), "planted"))),
    "core": reach(write("/proc/sys/kernel/core_pattern")), "proc": reach(write("/proc/self/comm")),
    "sys": reach(write("/sys/devices/system/cpu/uevent")), "descriptors": sorted(map(int, os.listdir("/proc/self/fd"))),
    "scratch": reach(write(str(job.scratch / "planted"))), "home": reach(write(os.path.expanduser("~/planted"))), "tmp": reach(write("/tmp/planted")),
    "shm": reach(write("/dev/shm/planted")), "secret": reach(lambda: open(SECRET).read()), "beside": reach(lambda: os.listdir(BESIDE)),
    "shadow": reach(lambda: open("/etc/shadow").read()), "homes": reach(lambda: os.listdir("/home")), "run": reach(lambda: os.listdir("/run")),
    "processes": [int(name) for name in os.listdir("/proc") if name.isdigit()], "variables": sorted(os.environ),
    "capabilities": [line[1] for line in status if line[0] in ("CapEff:", "CapPrm:", "CapBnd:")], "uid": os.getuid(),
    "sigterm": signal.getsignal(signal.SIGTERM) == signal.SIG_DFL,
}
import multiprocessing
with multiprocessing.get_context("fork").Pool(1) as pool:
    found["semaphores"] = pool.map(abs, [-1])
(job.scratch / "found.json").write_text(json.dumps(found))
return {"a": 1}
"""


def test_code_reads_the_system_writes_its_scratch_and_sees_nothing_else(tmp_path: Path) -> None:
    secret, beside = tmp_path / "settings.json", tmp_path / "ledger"
    secret.write_text("the password")
    beside.mkdir()
    planted = Path("/tmp/planted")
    assert not planted.exists()
    train(
        tmp_path, f"SECRET, BESIDE = {str(secret)!r}, {str(beside)!r}\n{REACHES}", sandbox=CLOSED, env={"LISTED": "x"}
    )
    seen = found(tmp_path)
    tried = {key: seen[key] for key in ("usr", "etc", "top", "dev", "source", "python", "core", "proc", "sys")}
    assert set(tried.values()) <= {"OSError", "PermissionError"}, tried
    assert [seen[key] for key in ("scratch", "home", "tmp", "shm")] == ["done"] * 4
    assert [seen[key] for key in ("secret", "beside", "shadow", "homes", "run")] == ["FileNotFoundError"] * 5
    assert max(seen["processes"]) < 50  # type: ignore[call-overload]
    assert set(seen["capabilities"]) == {"0" * 16}  # type: ignore[call-overload]
    assert "LISTED" in seen["variables"]  # type: ignore[operator]
    assert "PWD" not in seen["variables"]  # type: ignore[operator]
    assert seen["descriptors"] == [0, 1, 2, 3]  # 3 reads the list
    assert (seen["semaphores"], seen["sigterm"]) == ([1], True)
    assert not planted.exists()


@needs_root
def test_a_user_of_its_own_has_a_sandbox_too(public_place: Path) -> None:
    users = Users(UIDS, public_place / "users")
    body = f"SECRET, BESIDE = '/etc/shadow', '/root'\n{REACHES}"
    train(public_place, body, sandbox=CLOSED, users=users, python=public_python())
    seen = found(public_place)
    assert (seen["uid"], seen["scratch"], seen["tmp"], seen["beside"]) == (293000, "done", "done", "FileNotFoundError")


@pytest.fixture
def server() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening.getsockname()[1]


CALLS = "import socket\nsocket.create_connection(('127.0.0.1', {port}), 5).close()\nreturn {{'a': 1}}"


def test_there_is_no_network_unless_it_is_asked_for(tmp_path: Path, server: int) -> None:
    (tmp_path / "open").mkdir()
    train(tmp_path / "open", CALLS.format(port=server), sandbox=Sandbox(network=True))
    failed = failure(tmp_path, CALLS.format(port=server))
    assert (failed.kind, "ConnectionRefusedError" in failed.message) == ("author_error", True)


def test_a_server_as_source_without_a_network_is_told_before_anything_runs(tmp_path: Path) -> None:
    told = {"flights": {"kind": "sql", "url_variable": "FLIGHTS_URL", "url": None}}
    failed = failure(tmp_path, "", env={"FLIGHTS_URL": "postgresql://u:secret@db.example.com/d"}, datasets=told)
    assert failed.kind == "configuration"
    assert "the dataset flights is on a server (postgresql)" in failed.message
    assert "network = true" in failed.advice
    assert "secret" not in failed.message


def test_what_the_operator_lists_can_be_read_and_not_written(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    image = tmp_path / "images" / "1.png"
    image.write_text("pixels")
    assert (
        failure(
            tmp_path,
            f"print(open({str(image)!r}).read(), flush=True)\nopen({str(image)!r}, 'a')",
            Sandbox(readable=(image.parent,)),
        ).kind
        == "author_error"
    )
    assert "pixels" in DiskLogs(tmp_path / "logs").read("runs/1/1", 0, 10_000)[0].decode()
    assert "Read-only file system" in DiskLogs(tmp_path / "logs").read("runs/1/1", 0, 10_000)[0].decode()


def test_what_is_listed_and_is_not_there_is_a_fault_of_the_configuration(tmp_path: Path) -> None:
    failed = failure(tmp_path, "return 1", Sandbox(readable=(tmp_path / "gone",)))
    assert (failed.kind, failed.transient) == ("configuration", False)
    assert str(tmp_path / "gone") in failed.message
    assert "readable" in failed.advice


def test_without_bubblewrap_the_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    failed = failure(tmp_path, "return 1")
    assert (failed.kind, "bwrap" in failed.message, "package bubblewrap" in failed.advice) == (
        "configuration",
        True,
        True,
    )


def test_where_no_namespace_may_be_made_that_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bwrap as it speaks where the kernel refuses."""
    (tmp_path / "bin").mkdir()
    refusing = tmp_path / "bin" / "bwrap"
    refusing.write_text("#!/bin/sh\necho 'bwrap: setting up uid map: Permission denied' >&2\nexit 1\n")
    refusing.chmod(0o755)
    monkeypatch.setenv("PATH", f"{refusing.parent}:{os.environ['PATH']}")
    failed = failure(tmp_path, "return 1")
    assert (failed.kind, "setting up uid map" in failed.message, "user namespaces" in failed.advice) == (
        "configuration",
        True,
        True,
    )


ROWS = """
rows = job.datasets["flights"].train
connection = rows.connect()
(job.scratch / "found.json").write_text(json.dumps({"rows": connection.execute(rows.query("qmark")[0], rows.query("qmark")[1]).fetchall(), "there": sorted(os.listdir(os.path.dirname(PATH)))}))
return {"a": 1}
"""


@pytest.mark.parametrize(("mode", "written_meanwhile"), [("wal", True), ("wal", False), ("delete", False)])
@pytest.mark.parametrize("listed", [True, False])
def test_a_sqlite_source_is_read_and_what_lies_beside_it_is_not_seen(
    tmp_path: Path, mode: str, written_meanwhile: bool, listed: bool
) -> None:
    database = tmp_path / "data" / "flights.db"
    database.parent.mkdir()
    (database.parent / "other.db").touch()
    writer = sqlite3.connect(database, isolation_level=None)
    writer.execute(f"PRAGMA journal_mode = {mode}")
    writer.execute("CREATE TABLE flights (id INTEGER PRIMARY KEY)")
    writer.execute("INSERT INTO flights VALUES (1), (2), (3)")
    if not written_meanwhile:
        writer.close()
    rows = {
        "table": "flights",
        "cursor": "id",
        "above": None,
        "upto": 2,
        "newest": None,
        "time_column": None,
        "since": None,
        "rows": 2,
    }
    told = {
        "flights": {"kind": "sql", "url_variable": None, "url": f"sqlite:///{database}", "train": rows, "holdout": None}
    }
    sandbox = Sandbox(readable=(database.parent,)) if listed else CLOSED  # then nothing can be made beside it
    train(tmp_path, f"PATH = {str(database)!r}\n{ROWS}", sandbox=sandbox, datasets=told)
    writer.close()
    seen = found(tmp_path)
    assert seen["rows"] == [[1], [2]]
    assert ("other.db" in seen["there"]) == listed  # type: ignore[operator]


ENDS = {
    "a signal that nobody may catch": ("os.kill(os.getpid(), 9)", "killed", "SIGKILL"),
    "a crash": ("import ctypes\nctypes.string_at(0)", "killed", "SIGSEGV"),
    "an exit code": ("os._exit(3)", "bad_exit", "exit code 3"),
    "an exception": ("raise ValueError('no rows')", "author_error", "no rows"),
}


@pytest.mark.parametrize("name", ENDS)
def test_an_end_is_told_as_without_a_sandbox(tmp_path: Path, name: str) -> None:
    body, kind, message = ENDS[name]
    failed = failure(tmp_path, body)
    assert (failed.kind, message in failed.message) == (kind, True), failed


DAEMONS = """
import time
for _ in range(3):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            taken = bytearray(TAKEN)
            time.sleep(60)
        os._exit(0)
"""


def test_memory_is_weighed_from_outside_and_nothing_is_left(tmp_path: Path) -> None:
    mark = f"HEADRACE_TEST={uuid.uuid4()}"
    body = f"TAKEN = 90_000_000\n{DAEMONS}\ntime.sleep(60)"
    failed = failure(tmp_path, body, limits=Limits(memory=Bytes(200 * MB)), env=dict([mark.split("=")]))
    assert failed.kind == "memory_limit"
    assert processes(mark) == []


def test_what_has_left_its_session_ends_with_the_training_and_what_it_used_is_counted(tmp_path: Path) -> None:
    mark, meter = f"HEADRACE_TEST={uuid.uuid4()}", Meter()
    body = f"TAKEN = 1\n{DAEMONS}\nend = time.process_time() + 0.3\nwhile time.process_time() < end:\n    pass\nreturn {{'a': 1}}"
    train(tmp_path, body, sandbox=CLOSED, env=dict([mark.split("=")]), meter=meter)
    assert processes(mark) == []
    assert meter.used().cpu_s >= 0.3


@pytest.mark.parametrize(
    "waits",
    [
        "import signal\nsignal.signal(15, lambda *_: told.append(1))\nready()\nwhile not told:\n    time.sleep(0.01)\n(job.scratch / 'told').touch()",
        "job.stopping\nready()\nwhile not job.stopping:\n    time.sleep(0.01)\n(job.scratch / 'told').touch()",
    ],
    ids=["by SIGTERM", "by job.stopping"],
)
def test_a_stop_reaches_the_code_in_time(tmp_path: Path, waits: str) -> None:
    leaving, ready = threading.Event(), tmp_path / "scratch" / "work" / "ready"
    body = (
        f"import time\ntold = []\nready = (job.scratch / 'ready').touch\n{waits}\ntime.sleep(0.05)\nreturn {{'a': 1}}"
    )
    watch = threading.Thread(target=lambda: (wait_for(ready), leaving.set()))
    watch.start()
    with pytest.raises(Leaving):
        train(tmp_path, body, sandbox=CLOSED, leaving=leaving)
    watch.join()
    assert ready.with_name("told").exists()


def wait_for(path: Path) -> None:
    for _ in range(2000):
        if path.exists():
            return
        threading.Event().wait(0.01)


def test_a_stop_that_is_not_heeded_ends_it(tmp_path: Path) -> None:
    mark, leaving, ready = f"HEADRACE_TEST={uuid.uuid4()}", threading.Event(), tmp_path / "scratch" / "work" / "ready"
    body = "import signal, time\nsignal.signal(15, signal.SIG_IGN)\n(job.scratch / 'ready').touch()\ntime.sleep(60)"
    watch = threading.Thread(target=lambda: (wait_for(ready), leaving.set()))
    watch.start()
    with pytest.raises(Leaving):
        train(tmp_path, body, sandbox=CLOSED, leaving=leaving, grace_s=0.2, env=dict([mark.split("=")]))
    watch.join()
    assert processes(mark) == []


SMALL = """
import os

def train(job):
    with job.datasets["flights"].train.connect() as connection:
        return {"rows": len(connection.execute("SELECT * FROM flights").fetchall()), "train": os.getpid()}

def evaluate(job, model):
    return {"rows": model["rows"], "train": model["train"], "evaluate": os.getpid()}
"""
PROJECT = """
[project]
name = "small"
version = "1.0.0"
dependencies = []
"""


def test_training_scoring_and_the_models_own_tests_all_run_in_it(tmp_path: Path) -> None:
    """A process that counts from 1 has a namespace of its own."""
    database, repository = tmp_path / "flights.db", tmp_path / "small.git"
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("CREATE TABLE flights (id INTEGER PRIMARY KEY)")
        connection.executemany("INSERT INTO flights VALUES (?)", [(number,) for number in range(1000)])
    config = ledgers.CONFIG.replace("/nowhere/flights.db", str(database)).replace(
        "/nowhere/delays.git", str(repository)
    )
    config = config.replace("policy =", 'sandbox = "bubblewrap"\npolicy =')
    ledger, _ = ledgers.in_memory(config)
    tests = ["python", "-c", "import os; assert os.getpid() < 50"]
    commit = publish(repository, {"pyproject.toml": PROJECT, "delays.py": SMALL})
    ledgers.adopt(ledger, commit=commit, test=tests, predict="builtins:id", gates={})
    ledgers.grow(ledger)
    trainer = machine(tmp_path, ledger)
    assert trainer.attempt(1)
    with ledger.read() as tx:
        run = runs.find(tx, 1)
        assert run.state == "trained", attempts.of_run(tx, 1)
        assert "test" in attempts.of_run(tx, 1)[0].seconds
        subject = attempts.trained(tx, 1)
        catalog = configuration.in_force(tx).catalog
    model, holdout = catalog.models["delays"], cuts.comparison(subject.cut, None)
    with Heart(lambda _: None, 60.0, threading.Event()) as heart:
        scored = trainer.evaluator.score(
            subject, model, catalog.datasets, holdout, heart, by="later", say=print, share=Share(), meter=Meter()
        )
    assert scored is not None
    assert scored.metrics is not None, scored.error
    assert scored.metrics["rows"] == 1000
    assert max(scored.metrics["train"], scored.metrics["evaluate"]) < 50


def publish(repository: Path, files: dict[str, str]) -> str:
    repository.mkdir()
    for name, text in files.items():
        (repository / name).write_text(text)
    git = ["git", "-C", str(repository), "-c", "user.name=a", "-c", "user.email=a@example.com"]
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "x"]):
        subprocess.run([*git, *words], check=True)
    return subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()


def machine(place: Path, ledger: Ledger) -> Trainer:
    urls = {"ledger_url": "sqlite://", "redis_url": "r", "blobs_url": "b", "logs_url": "l"}
    workshop, blobs = Workshop(Settings(state_dir=place / "state", **urls)), DiskBlobs(place / "blobs")
    logs, home = DiskLogs(place / "logs"), place / "state" / "trainer"
    claims, evaluator = LedgerClaims(ledger, "w", ledgers.LEASE), Evaluator(workshop, blobs, logs, home)
    shares = Shares(1, own_cpus(), (), home / "gpus")
    return Trainer(claims, workshop, evaluator, blobs, logs, home, shares, 1.0, threading.Event())
