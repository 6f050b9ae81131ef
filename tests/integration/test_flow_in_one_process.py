"""From rows to a consumer in this one process, so that the guard sees every transaction of it: none is open while anything else is done (P6, P8)."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import pytest

from services.ingest_watcher.app import Watcher
from services.registry_bridge.deliver import Deliverer
from services.registry_bridge.mlflow_registry import MlflowRegistry
from services.registry_bridge.promote import Promoter
from services.registry_bridge.register import Registrar
from services.registry_bridge.sweep import Sweep
from services.trainer.attempt import Trainer
from services.trainer.checkout import Workshop
from services.trainer.claims import LedgerClaims, LedgerWork
from services.trainer.evaluate import Evaluator
from services.trainer.shares import Shares, own_cpus
from shared.blobs import make_blobs
from shared.ledger import Ledger, attempts, runs, versions
from shared.logs import make_logs
from shared.settings import Settings
from tests.guard import GUARD
from tests.ledgers import put_config
from tests.postgres_server import Postgres
from tests.s3_server import S3Server
from tests.servers import Server
from tests.system.product import PYPROJECT, SECRET, Hook

DEADLINE_S = 90.0
Found = TypeVar("Found")
SOURCE = """
def train(job):
    rows = job.datasets[job.model].train
    with rows.connect() as connection:
        return {"rows": len(connection.execute(rows.sql, rows.params).fetchall())}


def evaluate(job, model):
    return {"auc": 0.7}


def predict(model, frame):
    return [model["rows"]] * len(frame)
"""
CONFIG = """
[datasets.{name}]
source = {{ kind = "sql", url = "sqlite:///{table}", table = "rows", cursor = "id", poll = "200ms" }}
holdout = {{ min_rows = 1 }}

[models.{name}]
repository = "{repository}"
release_poll = "1s"

[[subscriptions]]
name = "shop"
url = "http://127.0.0.1:{port}/hook"
secret = "env:HOOK_SECRET"
types = ["*"]
allow_private = true
"""


@pytest.fixture
def hook(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hook]:
    monkeypatch.setenv("HOOK_SECRET", SECRET)
    hook = Hook()
    yield hook
    hook.close()


@pytest.fixture
def settings(
    tmp_path: Path, postgres: Postgres, postgres_template: str, s3: S3Server, mlflow_server: Server
) -> Settings:
    return Settings(
        state_dir=tmp_path / "state",
        ledger_url=postgres.new_database(postgres_template),
        redis_url="redis://127.0.0.1:9/0",  # nobody listens: the bell is not heard, and the slot looks by itself
        mlflow_url=mlflow_server.url,
        blobs_url=s3.new_url("blobs"),
        logs_url=s3.new_url("logs"),
        lease_s=30,
        heartbeat_s=1,
    )


def test_no_transaction_is_open_while_anything_but_the_ledger_is_asked(
    settings: Settings, hook: Hook, tmp_path: Path
) -> None:
    name = f"guarded-{os.getpid()}"
    table, repository = tmp_path / "rows.db", tmp_path / "repository"
    with closing(sqlite3.connect(table)) as connection, connection:
        connection.execute("CREATE TABLE rows (id INTEGER PRIMARY KEY, value REAL)")
        connection.executemany("INSERT INTO rows (value) VALUES (?)", [(float(n),) for n in range(100)])
    publish(repository, name)
    ledger = Ledger(settings.ledger_url)
    where = {"table": table, "repository": repository.as_uri(), "port": hook.port}
    put_config(ledger, CONFIG.format(name=name, **where))
    GUARD.passed.clear()
    with watching(settings), sweeping(settings, ledger):
        work = LedgerWork(ledger, "guarded", "standard", 1)
        run = wait_for(lambda: work.due(timedelta(0)))
        assert isinstance(run, int)
        assert trainer(settings, ledger).attempt(run)
        wait_for(lambda: hook.of(name, "version.promoted"))
    with ledger.read() as tx:
        assert runs.find(tx, run).state == "trained"
        assert "test" in attempts.of_run(tx, run)[0].seconds
        assert versions.champion(tx, name).number == 1
    ledger.close()
    assert {"subprocess.Popen", "http.client.send", "socket.connect"} <= GUARD.passed
    assert GUARD.found == []


def publish(repository: Path, name: str) -> None:
    repository.mkdir()
    declared = PYPROJECT.format(name=name, version="1.0.0", compute_class="standard")
    own_tests = "[tool.headrace]\ntest = \"python -c 'import small; print(1 + 1, small.__name__)'\"\n"
    (repository / "pyproject.toml").write_text(declared.replace("[tool.headrace]\n", own_tests, 1))
    (repository / "small.py").write_text(SOURCE)
    who = {f"GIT_{role}_{fact}": "a@example.com" for role in ("AUTHOR", "COMMITTER") for fact in ("NAME", "EMAIL")}
    environ = {"PATH": os.environ["PATH"], "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_NOSYSTEM": "1", **who}
    for words in ("init --quiet --initial-branch=main", "add --all", "commit --quiet -m first", "tag v1.0.0"):
        subprocess.run(["git", *words.split()], cwd=repository, env=environ, check=True)


def trainer(settings: Settings, ledger: Ledger) -> Trainer:
    home, blobs, logs = settings.state_dir / "trainer", make_blobs(settings.blobs_url), make_logs(settings.logs_url)
    workshop = Workshop(settings)
    claims = LedgerClaims(ledger, "guarded", timedelta(seconds=settings.lease_s))
    evaluator = Evaluator(workshop, blobs, logs, home)
    return Trainer(
        claims,
        workshop,
        evaluator,
        blobs,
        logs,
        home,
        Shares(1, own_cpus(), (), home / "gpus"),
        settings.heartbeat_s,
        threading.Event(),
    )


def watching(settings: Settings) -> closing[Watcher]:
    return closing(Watcher(settings))


@contextmanager
def sweeping(settings: Settings, ledger: Ledger) -> Iterator[None]:
    """The bridge's loops, without a broker."""
    registry = MlflowRegistry(settings.mlflow_url)
    blobs, home = make_blobs(settings.blobs_url), settings.state_dir / "bridge"
    promoter = Promoter(ledger, registry, lambda _wanted: None)
    sweep = Sweep(ledger, Registrar(ledger, registry, blobs, home), promoter, Deliverer(ledger))
    sweep.start()
    try:
        yield
    finally:
        sweep.stop(10)


def wait_for(look: Callable[[], Found | None]) -> Found:
    deadline = time.monotonic() + DEADLINE_S
    while not (found := look()):
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.05)
    return found
