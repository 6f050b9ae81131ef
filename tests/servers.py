"""Real servers for the tests: started as processes on loopback, stopped by pid."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.forks import Fork

TEMPLATES = Path(__file__).parents[1] / ".pytest_cache" / "templates"
START_S = 180.0
SOURCES = "^models:/m-[0-9a-f]{32}$"


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@dataclass
class Server:
    """A started server; its processes are one group, so `kill` leaves no child behind."""

    url: str
    process: subprocess.Popen[bytes] | Fork
    log: Path

    @property
    def pid(self) -> int:
        return self.process.pid

    def stop(self) -> None:
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        self._end(signal.SIGKILL)

    def _end(self, number: signal.Signals) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, number)
        try:
            self.process.wait(timeout=15)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)


def start_mlflow(
    directory: Path, port: int | None = None, artifacts: str | None = None, extra: Mapping[str, str] | None = None
) -> Server:
    """Start MLflow's server as the stack does, on SQLite and local artifacts under `directory`; started again there, it has kept everything.

    `artifacts` puts those elsewhere (`s3://…`), and `extra` are the variables that the server needs for it.
    """
    directory.mkdir(parents=True, exist_ok=True)
    database = directory / "mlflow.db"
    if not database.exists():
        shutil.copy(_migrated_template(), database)
    port = port or free_port()
    log = directory / "mlflow.log"
    argv = [
        sys.executable,
        "-m",
        "uvicorn",
        "mlflow.server.fastapi_app:app",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
    ]
    environment = _mlflow_environment(extra) | {
        "_MLFLOW_SERVER_FILE_STORE": f"sqlite:///{database}",
        "_MLFLOW_SERVER_ARTIFACT_ROOT": "mlflow-artifacts:/",
        "_MLFLOW_SERVER_ARTIFACT_DESTINATION": artifacts or str(directory / "artifacts"),
        "_MLFLOW_SERVER_SERVE_ARTIFACTS": "true",
        "_MLFLOW_SGI_NAME": "uvicorn",
    }
    with log.open("ab") as output:
        process = subprocess.Popen(argv, env=environment, stdout=output, stderr=output, start_new_session=True)
    server = Server(f"http://127.0.0.1:{port}", process, log)
    wait_for_http(server, "/health")
    return server


def wait_for_http(server: Server, path: str) -> None:
    """Return when `path` answers; raise with the end of the server's log when it ended or START_S is over."""
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and server.process.poll() is None:
        try:
            with urllib.request.urlopen(server.url + path, timeout=2):
                return
        except OSError:
            time.sleep(0.05)  # the condition's own pace, not a guess at how long the start takes
    server.kill()
    raise RuntimeError(f"{server.url} did not come up:\n" + server.log.read_text(errors="replace")[-2000:])


def _mlflow_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    environment = {
        key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW_", "PYTHONDONTWRITE"))
    }
    return environment | {
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_CREATE_MODEL_VERSION_SOURCE_VALIDATION_REGEX": SOURCES,
        "MLFLOW_DISABLE_TELEMETRY": "true",
        **(extra or {}),
    }


def _migrated_template() -> Path:
    """An empty database at this MLflow's schema; the migrations take five seconds, a copy none. Made by one worker for all."""
    from importlib.metadata import version

    template = TEMPLATES / f"mlflow-{version('mlflow')}.db"
    TEMPLATES.mkdir(parents=True, exist_ok=True)
    with template.with_suffix(".lock").open("ab") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        if not template.exists():
            fresh = template.with_suffix(".fresh")
            fresh.unlink(missing_ok=True)
            argv = [sys.executable, "-m", "mlflow", "db", "upgrade", f"sqlite:///{fresh}"]
            subprocess.run(argv, env=_mlflow_environment(), check=True, capture_output=True, timeout=START_S)
            fresh.replace(template)
    return template
