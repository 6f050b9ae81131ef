"""The directory of a stack, its endpoints, its services' environment and the file that it starts an operator with."""

from __future__ import annotations

import json
import os
import re
import socket
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from shared import catalog
from shared.errors import ConfigurationError, Conflict
from shared.settings import Settings
from stack import endpoints
from stack.endpoints import Endpoints
from stack.servers import Servers
from stack.state import StateDirectory, write_private
from stack.up import TEMPLATE

ENDPOINTS = Endpoints(
    "http://a",
    "http://m",
    "http://f",
    "r:1",
    "/t",
    "headrace",
    "/p",
    {"api": 7},
    {"api": "/l"},
    6,
    "2026-01-01T00:00:00Z",
)
PORTS = {"api": None, "mlflow": None, "flower": None, "redis": None}


@pytest.fixture
def state(tmp_path: Path) -> StateDirectory:
    return StateDirectory(tmp_path / "state")


def test_a_second_stack_is_refused_and_told_who_has_the_directory(state: StateDirectory) -> None:
    held = state.lock()
    with pytest.raises(Conflict, match=rf"pid {os.getpid()}\)"):
        state.lock()
    os.close(held)
    os.close(state.lock())


def test_a_path_that_a_database_url_would_misread_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="without # \\?"):
        StateDirectory(tmp_path / "what?#")


def test_ports_are_kept_over_restarts_and_all_differ(state: StateDirectory) -> None:
    first = state.ports(PORTS)
    assert len(set(first.values())) == len(PORTS)
    assert state.ports(PORTS) == first


def test_a_kept_port_that_another_took_is_replaced(state: StateDirectory) -> None:
    first = state.ports(PORTS)
    with socket.socket() as taker:
        taker.bind(("127.0.0.1", first["api"]))
        taker.listen()
        second = state.ports(PORTS)
    assert second["api"] != first["api"]
    assert second["mlflow"] == first["mlflow"]


def test_a_kept_port_gives_way_to_a_configured_one(state: StateDirectory) -> None:
    first = state.ports(PORTS)
    second = state.ports({**PORTS, "api": first["mlflow"]})
    assert second["api"] == first["mlflow"]
    assert second["mlflow"] != first["mlflow"]


def test_a_configured_port_that_is_taken_is_refused_by_its_key(state: StateDirectory) -> None:
    with socket.socket() as taker:
        taker.bind(("127.0.0.1", 0))
        taker.listen()
        port = taker.getsockname()[1]
        with pytest.raises(ConfigurationError, match=rf"port {port} .*mlflow_port under \[stack\]"):
            state.ports({**PORTS, "mlflow": port})


@pytest.mark.parametrize("content", ["", "[]", "{", '{"api": "80"}', '{"api": 99999999}'])
def test_a_broken_file_of_ports_is_written_anew(state: StateDirectory, content: str) -> None:
    (state.folder() / "ports.json").write_text(content)
    ports = state.ports(PORTS)
    assert json.loads((state.root / "ports.json").read_text()) == ports


def test_threads_that_write_one_file_at_once_leave_it_whole(tmp_path: Path) -> None:
    path, texts = tmp_path / "told.json", [str(number) * 1000 for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(20):
            for written in [pool.submit(write_private, path, text) for text in texts]:
                written.result()
    assert path.read_text() in texts
    assert [each.name for each in tmp_path.iterdir()] == ["told.json"]


def test_secrets_are_kept_and_readable_by_their_owner_alone(state: StateDirectory) -> None:
    path = state.secret("flower.password")
    first = path.read_text()
    assert len(first) > 20
    assert state.secret("flower.password").read_text() == first
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(state.root.stat().st_mode) == 0o700


def test_endpoints_are_found_as_written_and_gone_when_removed(tmp_path: Path) -> None:
    assert endpoints.find(tmp_path) is None
    endpoints.write(ENDPOINTS, tmp_path)
    assert endpoints.find(tmp_path) == ENDPOINTS
    endpoints.remove(tmp_path)
    endpoints.remove(tmp_path)
    assert endpoints.find(tmp_path) is None


def test_each_process_gets_of_the_environment_what_it_needs(state: StateDirectory) -> None:
    indexes = {"HEADRACE_INDEX_URL": "https://a.example.com", "HEADRACE_EXTRA_INDEX_URLS": "https://b.example.com"}
    operators = {"PATH": "/bin", "FLIGHTS_URL": "secret", **indexes}
    bent = {
        "PYTHONDONTWRITEBYTECODE": "1",
        "CELERY_BROKER_URL": "x",
        "MLFLOW_TRACKING_URI": "x",
        "HEADRACE_LEDGER_URL": "x",
    }
    services = {service.name: service for service in _servers(state, {**operators, **bent})}
    assert operators.items() <= services["watcher"].environment.items()
    assert not bent.keys() & services["watcher"].environment.keys()
    for name in ("valkey", "mlflow", "flower"):
        assert "FLIGHTS_URL" not in services[name].environment, (
            "a server that is not ours needs no secret of the operator"
        )
    assert services["trainer-gpu"].environment["HEADRACE_COMPUTE_CLASS"] == "gpu"
    assert services["mlflow"].environment["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] == "false"


def test_a_trainer_may_take_as_long_to_stop_as_its_trainings_may_and_to_keep_what_they_left(
    state: StateDirectory,
) -> None:
    for told, grace_s in ({}, 5), ({"HEADRACE_GRACE_S": "120"}, 120):
        services = {service.name: service for service in _servers(state, told)}
        assert services["trainer-gpu"].grace_s >= grace_s + 20
        assert services["trainer-gpu"].environment.get("HEADRACE_GRACE_S") == told.get("HEADRACE_GRACE_S")
        assert services["watcher"].grace_s == 10
    with pytest.raises(ConfigurationError, match="grace_s: Input should be less than or equal to 3600"):
        _servers(state, {"HEADRACE_GRACE_S": "4000"})


def test_no_command_line_holds_a_secret_and_every_server_listens_on_loopback(state: StateDirectory) -> None:
    services = _servers(state, {"PATH": "/bin"})
    password = state.secret("flower.password").read_text().strip()
    assert not any("hidden" in word or password in word for service in services for word in service.argv)
    for name in ("redis/valkey.conf", "flower.conf"):
        assert "127.0.0.1" in (state.root / name).read_text()
        assert stat.S_IMODE((state.root / name).stat().st_mode) == 0o600
    for service in services:
        assert "--host" not in service.argv or service.argv[service.argv.index("--host") + 1] == "127.0.0.1"


def test_the_file_that_an_operator_starts_with_is_valid_as_it_is_and_with_everything_taken_in() -> None:
    template = TEMPLATE.read_bytes()
    assert catalog.parse(template) == catalog.parse(b"")
    everything = catalog.parse(re.sub(rb"(?m)^#(?=\S)", b"", template))
    assert everything.datasets
    assert everything.models
    assert everything.subscriptions
    assert everything.stack.api_port


def _servers(state: StateDirectory, environ: dict[str, str]) -> list:  # type: ignore[type-arg]
    settings = Settings(
        state_dir=state.root,
        ledger_url="sqlite://",
        redis_url="redis://:hidden@127.0.0.1:1/0",
        blobs_url="b",
        logs_url="l",
    )
    write_private(state.folder() / "settings.json", settings.model_dump_json())
    servers = Servers(state, settings, {"api": 1, "mlflow": 2, "flower": 3, "redis": 4}, environ)
    classes = catalog.parse(b"[compute_classes.gpu]\nslots = 2")
    return [*servers.foundations(), *servers.services(classes)]
