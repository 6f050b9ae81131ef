"""The container engine that this machine has, and one project of docker-compose.yml in it. Imports nothing of ours."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
LONGEST_S = 1500.0  # a first build downloads a gigabyte


class NoEngine(Exception):
    """Nothing here can run containers; the message says what is missing."""


def find_engine() -> tuple[str, list[str]]:
    """The engine's own command, and the one that reads compose files. Raises `NoEngine`."""
    if shutil.which("docker") and _answers("docker", "compose", "version"):
        return "docker", ["docker", "compose"]
    if shutil.which("podman") and shutil.which("podman-compose"):
        return "podman", ["podman-compose"]
    missing = [name for name in ("docker", "podman", "podman-compose") if not shutil.which(name)]
    raise NoEngine(
        f"no container engine: install docker with its compose plugin, or podman and podman-compose (missing: {', '.join(missing)})"
    )


def _answers(*argv: str) -> bool:
    return subprocess.run(argv, capture_output=True).returncode == 0


class Project:
    """One running copy of the compose file under its own name, with its own .env; `down` leaves nothing of it."""

    def __init__(self, name: str, env: Path, override: Path) -> None:
        self.engine, compose = find_engine()
        files = ["-f", str(ROOT / "docker-compose.yml"), "-f", str(override)]
        self._compose = [*compose, "-p", name, "--env-file", str(env), *files]
        self.name = name

    def compose(self, *arguments: str) -> str:
        return _run([*self._compose, *arguments])

    def build(self, *services: str) -> None:
        """One after the other: side by side, podman would make the layers that they share once for each."""
        for service in services:
            self.compose("build", service)

    def down(self) -> None:
        """podman-compose leaves volumes of services that were scaled, so what bears the project's label goes after it."""
        try:
            self.compose("down", "--volumes", "--timeout", "5")
        finally:
            label = f"label=com.docker.compose.project={self.name}"
            for kind, listing in (("rm", ["ps", "--all"]), ("volume rm", ["volume", "ls"])):
                if left := self.call(*listing, "--quiet", "--filter", label).split():
                    self.call(*kind.split(), "--force", *left)

    def call(self, *arguments: str, given: bytes = b"") -> str:
        """The engine's own command."""
        return _run([self.engine, *arguments], given)

    def containers(self, service: str) -> list[str]:
        """The ids of the containers of a service, running or not."""
        labels = {"project": self.name, "service": service}
        filters = [
            word for key, value in labels.items() for word in ("--filter", f"label=com.docker.compose.{key}={value}")
        ]
        return self.call("ps", "--all", "--no-trunc", "--quiet", *filters).split()

    def only(self, service: str) -> str:
        found = self.containers(service)
        assert len(found) == 1, f"{service} has {len(found)} containers"
        return found[0]

    def execute(self, container: str, *argv: str, given: bytes = b"") -> str:
        return self.call("exec", "--interactive", container, *argv, given=given)

    def inspect(self, container: str) -> dict[str, Any]:
        return dict(json.loads(self.call("inspect", container))[0])

    def is_healthy(self, container: str) -> bool:
        """By the health check of the compose file; podman without systemd runs none by itself, so it is run here."""
        if self.engine == "podman":
            return _answers("podman", "healthcheck", "run", container)
        return bool(self.inspect(container)["State"]["Health"]["Status"] == "healthy")

    def logs(self, container: str) -> str:
        done = subprocess.run([self.engine, "logs", "--tail", "40", container], capture_output=True, text=True)
        return done.stdout + done.stderr


def _run(argv: Sequence[str], given: bytes = b"") -> str:
    done = subprocess.run(argv, cwd=ROOT, input=given, capture_output=True, timeout=LONGEST_S)
    said = done.stderr.decode(errors="replace")[-4000:]
    assert done.returncode == 0, (
        f"{' '.join(argv)}: {done.returncode}\n{done.stdout.decode(errors='replace')[-4000:]}\n{said}"
    )
    return done.stdout.decode(errors="replace")
