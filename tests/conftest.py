"""What every tier may ask for; a server is started once a session, at its first use."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.redis_server import Valkey, start_valkey
from tests.servers import Server, start_mlflow


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
