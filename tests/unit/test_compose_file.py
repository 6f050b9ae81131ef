"""What docker-compose.yml lets in from outside, read from its text; tests/compose tries it with an engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    found = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    assert len(found) >= 10
    return dict(found)


def test_api_mlflow_and_flower_alone_are_published_and_on_loopback_by_default(services: dict[str, Any]) -> None:
    published = {name: service["ports"] for name, service in services.items() if "ports" in service}
    assert published.keys() == {"api", "mlflow", "flower"}
    assert all(len(ports) == 1 and ":-127.0.0.1:" in ports[0] for ports in published.values())
    assert not [name for name, service in services.items() if "network_mode" in service]


def test_no_container_is_root_with_all_its_rights(services: dict[str, Any]) -> None:
    for name, service in services.items():
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["read_only"] is True, name
        assert not service.get("privileged"), name
        assert not [volume for volume in service.get("volumes", ()) if "docker.sock" in str(volume)], name


def test_no_trainer_reaches_mlflow(services: dict[str, Any]) -> None:
    """It asks nobody for a password, so a model's code must not get to it."""
    trainers = [name for name in services if name.startswith("trainer")]
    assert trainers
    for name in trainers:
        assert not set(services[name]["networks"]) & set(services["mlflow"]["networks"]), name
        assert not [key for key in services[name]["environment"] if "MLFLOW" in key], name


def test_a_password_is_a_variable_without_a_default(services: dict[str, Any]) -> None:
    for name, service in services.items():
        environment = service.get("environment") or {}
        for key, value in environment.items():
            if any(word in key for word in ("PASSWORD", "SECRET", "TOKEN")):
                assert ":?" in str(value), (name, key)
