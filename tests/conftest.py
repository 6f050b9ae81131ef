"""What every tier may ask for; a server is started once a session, at its first use."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shared.ledger import Ledger
from shared.ledger.schema import create_all, migrate
from tests import ways
from tests.guard import GUARD
from tests.ledgers import CONFIG, HandClock, empty, put_config
from tests.postgres_server import Postgres, start_postgres
from tests.redis_server import Valkey, start_valkey
from tests.s3_server import S3Server, start_s3
from tests.servers import Server, start_mlflow


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    from tests.scheduling import ByStack

    return ByStack(config, log)


@pytest.fixture(scope="session", autouse=True)
def _guarded() -> Iterator[None]:
    with GUARD.watching():
        yield


@pytest.fixture(autouse=True)
def _nothing_broken(_guarded: None) -> Iterator[None]:
    """What the guard has found fails the test, also where an edge has swallowed the error."""
    GUARD.found.clear()
    yield
    assert not GUARD.found, "\n".join(GUARD.found)


@pytest.fixture(params=[ways.EXECUTED, ways.FORKED])
def way(request: pytest.FixtureRequest) -> Iterator[str]:
    """For modules whose tests run both ways."""
    ways.choose(request.param)
    yield request.param
    ways.choose(ways.EXECUTED)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes longest begins first, so that short tests fill the end of the run."""
    longest = ("tests/chaos", "tests/system")
    items.sort(key=lambda item: not item.nodeid.startswith(longest))


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One MLflow server for all: take a model name of your own, and do not stop it."""
    server = start_mlflow(tmp_path_factory.mktemp("mlflow"))
    yield server
    server.stop()


@pytest.fixture(scope="session")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    """One Redis protocol server for all: take queues of your own, and do not stop it."""
    server = start_valkey(tmp_path_factory.mktemp("valkey"))
    yield server
    server.stop()


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """One PostgreSQL server for all: take a database of your own, and do not stop it."""
    server = start_postgres()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """One S3 server for all: take a place of your own with `new_url`, and do not stop it."""
    server = start_s3(tmp_path_factory.mktemp("s3"))
    yield server
    server.stop()


@pytest.fixture
def s3(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    """The S3 server, and this process's environment as boto3 needs it to reach it."""
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    return s3_server


@pytest.fixture(scope="session")
def postgres_template(postgres: Postgres) -> str:
    """The name of a database with the ledger's tables, to be copied with `new_database`."""
    postgres.execute("CREATE DATABASE ledger_template")
    migrate(postgres.database_url("ledger_template"))
    return "ledger_template"


@pytest.fixture
def clock() -> HandClock:
    """The clock of `ledger`; it stands still until a test moves it."""
    return HandClock()


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty SQLite ledger that `migrate` has made; copied, not used."""
    path = tmp_path_factory.mktemp("ledger") / "ledger.db"
    migrate(f"sqlite:///{path}")
    return path


@pytest.fixture
def ledger_file(migrated: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(migrated, tmp_path / "ledger.db"))


@pytest.fixture(scope="session", params=["memory", "sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ledger]:
    """Each database that the ledger stands on, with its tables; opened once, for statements compile only once an engine."""
    if request.param == "memory":
        opened = Ledger("sqlite://")
        create_all(opened)
    elif request.param == "postgresql":
        server: Postgres = request.getfixturevalue("postgres")
        opened = Ledger(server.new_database(request.getfixturevalue("postgres_template")))
    else:
        copy = shutil.copy(request.getfixturevalue("migrated"), tmp_path_factory.mktemp("database") / "ledger.db")
        opened = Ledger(f"sqlite:///{copy}")
    yield opened
    opened.close()


@pytest.fixture
def ledger(database: Ledger, clock: HandClock) -> Ledger:
    """A ledger with CONFIG in force and nothing else; what it says must be the same on every database."""
    empty(database)
    database.go_by(clock)
    put_config(database, CONFIG)
    return database
