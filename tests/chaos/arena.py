"""A product whose services are forks of one warm process, and die at every point that they reach for the first time."""

from __future__ import annotations

import http.client
import json
import os
import queue
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from shared.ledger import Ledger, tokens
from shared.ledger.schema import migrate
from shared.settings import Settings
from stack.apply import put_in_force
from tests.chaos.strikes import Board
from tests.redis_server import start_valkey
from tests.servers import free_port
from tests.system.product import PATIENCE_S, ROOT, SECRET, Product

TRAINERS, BRIDGES = 3, 2
T = TypeVar("T")
OPEN = (
    "SELECT count(*) FROM run WHERE state IN ('running', 'retrying') OR (state = 'waiting' AND due_at IS NOT NULL)",
    "SELECT count(*) FROM run LEFT JOIN version ON version.run_id = run.id WHERE run.state = 'trained' AND version.id IS NULL",
    "SELECT count(*) FROM version WHERE state = 'candidate'",
    "SELECT count(*) FROM promotion WHERE served_at IS NULL",
    "SELECT count(*) FROM delivery WHERE state = 'pending'",
)
GONE = (urllib.error.URLError, ConnectionError, http.client.HTTPException, TimeoutError)


class Arena(Product):
    """`api`, `watcher`, three trainers of one slot and two bridges on SQLite, beside an MLflow server that runs already."""

    release_poll = "3s"

    def __init__(
        self,
        root: Path,
        mlflow_url: str,
        redis_url: str | None = None,
        *,
        armed: bool = True,
        everywhere: bool = False,
        urls: Mapping[str, str] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """`urls` are settings that name other places than directories of our own; `environment` is every service's."""
        self._valkey = start_valkey(root / "valkey") if redis_url is None else None
        self.redis_url = redis_url or (self._valkey.url if self._valkey else "")
        self.mlflow_url = mlflow_url
        self._armed, self._everywhere = armed, everywhere
        self._urls, self._environment = dict(urls or {}), dict(environment or {})
        self.api_port = free_port()
        self._answers: queue.Queue[dict[str, Any]] = queue.Queue()
        self._warm: subprocess.Popen[str] | None = None
        self._applying = threading.Lock()
        super().__init__(root, classes="standard = {}")
        for folder in ("board", "logs"):
            (root / folder).mkdir()
        self.state.mkdir(exist_ok=True)
        self.board = Board(root / "board")
        self.ledger_file = self.state / "ledger.db"
        self.settings = self._write_settings()

    def _write_settings(self) -> Settings:
        urls = {
            "ledger_url": f"sqlite:///{self.ledger_file}",
            "blobs_url": (self.state / "blobs").as_uri(),
            "logs_url": (self.state / "runs").as_uri(),
        }
        told = Settings(
            state_dir=self.state,
            redis_url=self.redis_url,
            mlflow_url=self.mlflow_url,
            **(urls | self._urls),  # type: ignore[arg-type]
            api_port=self.api_port,
            lease_s=3,
            heartbeat_s=0.6,
            look_s=0.3,
        )
        (self.state / "settings.json").write_text(told.model_dump_json())
        return told

    def start(self) -> None:
        migrate(self.settings.ledger_url)
        self.ledger = Ledger(self.settings.ledger_url)
        with self.ledger.write() as tx:
            self._token = tokens.create(tx, "tester", tuple(tokens.Scope))
        put_in_force(self.config, self.settings)
        plan = self.root / "plan.json"
        plan.write_text(json.dumps(self._plan()))
        argv = [sys.executable, "-m", "tests.chaos.warm", str(plan)]
        environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
        with (self.root / "warm.log").open("ab") as log:
            self._warm = subprocess.Popen(
                argv, cwd=ROOT, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log
            )
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()
        self.wait("the api", lambda: self._warm_is_there() and self.get("/readyz"))

    def _warm_is_there(self) -> bool:
        assert self._warm is not None
        assert self._warm.poll() is None, (self.root / "warm.log").read_text()
        return True

    def _plan(self) -> dict[str, Any]:
        """Of each kind of service so many."""
        services: dict[str, Any] = {"api": {"kind": "api", "environment": {"API_PORT": str(self.api_port)}}}
        services["watcher"] = {"kind": "watcher", "environment": {}}
        services |= {f"trainer-{n}": {"kind": "trainer", "environment": {}} for n in range(TRAINERS)}
        services |= {f"bridge-{n}": {"kind": "bridge", "environment": {}} for n in range(BRIDGES)}
        told = {
            "HEADRACE_SETTINGS": str(self.state / "settings.json"),
            "HOOK_SECRET": SECRET,
            "HOLD_FILES": str(self.held),
            **self._environment,
        }
        return {
            "directory": str(self.root),
            "ledger": str(self.ledger_file),
            "environment": told,
            "services": services,
            "armed": self._armed,
            "everywhere": self._everywhere,
        }

    def _listen(self) -> None:
        assert self._warm is not None
        assert self._warm.stdout is not None
        for line in self._warm.stdout:
            self._answers.put(json.loads(line))

    def stop(self) -> None:
        if self._warm is not None:
            assert self._warm.stdin is not None
            self._warm.stdin.close()
            self._warm.wait(30)
            self._listener.join(5)
            assert self._warm.stdout is not None
            self._warm.stdout.close()
            self.ledger.close()
        if self._valkey is not None:
            self._valkey.stop()
        self.hook.close()

    @property
    def endpoints(self) -> dict[str, Any]:
        return {"api": f"http://127.0.0.1:{self.api_port}", "mlflow": self.mlflow_url}

    @property
    def token(self) -> str:
        return self._token

    @property
    def points(self) -> dict[str, str]:
        return dict(json.loads((self.root / "points.json").read_text()))

    def settled(self) -> bool:
        """Nothing is left to do: no run, no registration, no verdict, no promotion, no delivery."""
        with self.ledger.read() as tx:
            return not any(tx.connection.exec_driver_sql(open_ones).scalar() for open_ones in OPEN)

    def pid(self, process: str) -> int:
        return int(json.loads((self.root / "pids.json").read_text())[process])

    def stack(self, *words: str, environment: Mapping[str, str] | None = None) -> int:
        """`python -m stack WORDS`, killed and run again until it ends by itself; its exit code."""
        with self._applying:
            assert self._warm is not None
            assert self._warm.stdin is not None
            self._warm.stdin.write(json.dumps({"run": words, "environment": dict(environment or {})}) + "\n")
            self._warm.stdin.flush()
            return int(self._answers.get(timeout=PATIENCE_S)["code"])

    def wait(self, what: str, look: Callable[[], T | None], patience_s: float = 2 * PATIENCE_S) -> T:
        return super().wait(what, look, patience_s, look_s=0.4)

    def _write_config(self) -> None:
        super()._write_config()
        if self._warm is not None:
            assert self.stack("apply", "--config", str(self.config)) == 0

    def call(self, method: str, path: str, body: object = None, token: str | None = None) -> Any:
        return self.send(method, path, body)

    def send(self, method: str, path: str, body: object = None, **headers: str) -> Any:
        """Asked again while nobody answers, as every client must."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                return self._ask(method, path, body, headers)
            except urllib.error.HTTPError as error:
                if error.code not in (500, 503) or time.monotonic() > deadline:
                    raise
            except GONE:
                if time.monotonic() > deadline:
                    raise
            time.sleep(0.05)

    def _ask(self, method: str, path: str, body: object, headers: Mapping[str, str]) -> Any:
        request = urllib.request.Request(self.endpoints["api"] + path, method=method)
        request.add_header("Authorization", f"Bearer {self.token}")
        if body is not None:
            request.data = json.dumps(body).encode()
            request.add_header("Content-Type", "application/json")
        for name, value in headers.items():
            request.add_header(name.replace("_", "-"), value)
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.loads(answer.read())
