"""What a deployment does before its processes start: on a real PostgreSQL, twice, and on one that comes up late."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import func, select

from shared.errors import Refused, Unavailable
from shared.ledger import Ledger, configuration, tokens
from shared.ledger.schema import check_schema
from shared.ledger.tables import configuration as configurations
from shared.settings import Settings
from stack.prepare import prepare
from tests.ledgers import CONFIG
from tests.postgres_server import Postgres, start_postgres

ROOT = Path(__file__).parents[2]
SECRET = "a" * 32


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "headrace.toml"
    path.write_text(CONFIG)
    return path


@pytest.fixture
def own_postgres() -> Iterator[Postgres]:
    server = start_postgres()
    yield server
    server.stop()


def away(server: Postgres) -> None:
    os.kill(server.pid, signal.SIGINT)
    server.process.wait(30)


def settings(url: str, tmp_path: Path) -> Settings:
    store = tmp_path.as_uri()
    return Settings(state_dir=tmp_path, ledger_url=url, redis_url="redis://nowhere", blobs_url=store, logs_url=store)


def test_it_makes_the_tables_the_token_and_the_configuration_and_again_changes_nothing(
    postgres: Postgres, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEADRACE_OPERATOR_TOKEN", SECRET)
    told = settings(postgres.new_database(), tmp_path)
    for _ in range(2):
        prepare(config, told, patience_s=0)
    ledger = Ledger(told.ledger_url)
    check_schema(ledger)
    with ledger.read() as tx:
        assert tokens.find(tx, SECRET) == ("operator", frozenset(tokens.Scope))
        assert "delays" in configuration.in_force(tx).catalog.models
        assert tx.execute(select(func.count()).select_from(configurations)).scalar_one() == 1
    ledger.close()


def test_a_token_that_could_be_guessed_is_refused(
    postgres: Postgres, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEADRACE_OPERATOR_TOKEN", SECRET[1:])
    with pytest.raises(Refused, match="has 31 characters: 32 random ones are the least"):
        prepare(config, settings(postgres.new_database(), tmp_path), patience_s=0)


def test_a_new_token_of_the_operator_voids_the_old_one(
    postgres: Postgres, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = settings(postgres.new_database(), tmp_path)
    for secret in (SECRET, SECRET.upper()):
        monkeypatch.setenv("HEADRACE_OPERATOR_TOKEN", secret)
        prepare(config, told, patience_s=0)
    ledger = Ledger(told.ledger_url)
    with ledger.read() as tx:
        assert tokens.find(tx, SECRET) is None
        assert tokens.find(tx, SECRET.upper()) is not None
    ledger.close()


def test_it_waits_for_a_database_that_comes_up_late(own_postgres: Postgres, config: Path, tmp_path: Path) -> None:
    told = settings(own_postgres.new_database(), tmp_path)
    away(own_postgres)
    names = ("state_dir", "ledger_url", "redis_url", "blobs_url", "logs_url")
    environment = {**os.environ, **{f"HEADRACE_{name.upper()}": str(getattr(told, name)) for name in names}}
    argv = [sys.executable, "-m", "stack", "prepare", "--config", str(config), "--patience", "90"]
    with subprocess.Popen(argv, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert "did not answer" in process.stderr.readline()
        own_postgres.restart()
        assert process.wait(60) == 0


def test_it_says_so_when_the_database_does_not_come(own_postgres: Postgres, config: Path, tmp_path: Path) -> None:
    told = settings(own_postgres.new_database(), tmp_path)
    away(own_postgres)
    with pytest.raises(Unavailable, match="did not answer"):
        prepare(config, told, patience_s=0)
