"""The started product as its users see it: a process, a configuration file, git repositories, tables and an address. Imports nothing of ours."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, TypeVar

ROOT = Path(__file__).parents[2]
PATIENCE_S = 90.0
SECRET = "whsec_" + base64.b64encode(b"s" * 32).decode()
T = TypeVar("T")

PYPROJECT = """\
[project]
name = "{name}"
version = "{version}"
requires-python = ">=3.11"
dependencies = []

[tool.headrace]
train = "small:train"
evaluate = "small:evaluate"
predict = "small:predict"
compute_class = "{compute_class}"

[tool.headrace.datasets.{name}]

[tool.headrace.gates]
auc = {{ min = 0.6, max_drop = 0.005 }}
"""
SOURCE = '''\
"""A model that is the mean of its rows, and as good as its author says."""

import os
import sqlite3
import time

QUALITY = {quality}


def train(job):
    held = os.environ["HOLD_FILES"] + "/" + job.model
    print("training on", job.datasets[job.model].train.sql, flush=True)
    while os.path.exists(held):
        job.checkpoint({{"held": True}}, 0.5, "held")
        time.sleep(0.02)
    rows = job.datasets[job.model].train
    with rows.connect() as connection:
        values = [row[1] for row in connection.execute(rows.sql, rows.params)]
    job.log_metric("loss", 0.5, step=1)
    return {{"mean": sum(values) / len(values), "rows": len(values)}}


def evaluate(job, model):
    time.sleep({evaluate_s})
    return {{"auc": QUALITY, "rows": float(model["rows"])}}


def predict(model, frame):
    return [model["mean"]] * len(frame)
'''
REPORTED = '''\
"""A model of data that is only told about: it knows the range, and where that lies."""


def train(job):
    rows = job.datasets[job.model].train
    return {"mean": float(rows.upto), "rows": rows.count}


def predict(model, frame):
    return [model["mean"]] * len(frame)
'''


class Product:
    """`python -m stack up` on a directory of its own, with models that a test adds. `elsewhere` names servers that run already."""

    release_poll = "1s"

    def __init__(
        self,
        root: Path,
        classes: str = "standard = {}\nremote = { slots = 0 }",
        elsewhere: Mapping[str, str] | None = None,
    ) -> None:
        self.root = root
        self.state = root / "state"
        self.config = root / "headrace.toml"
        self.held = root / "held"
        self.held.mkdir()
        self.hook = Hook()
        self._sections = [f"[compute_classes]\n{classes}\n", self._subscription()]
        self.elsewhere = dict(elsewhere or {})
        self._process: subprocess.Popen[bytes] | None = None
        self._write_config()

    def _subscription(self) -> str:
        url = f"http://127.0.0.1:{self.hook.port}/hook"
        return f'[[subscriptions]]\nname = "shop"\nurl = "{url}"\nsecret = "env:HOOK_SECRET"\ntypes = ["*"]\nallow_private = true\n'

    def start(self) -> None:
        environment = {**os.environ, "HOOK_SECRET": SECRET, "HOLD_FILES": str(self.held), **self.elsewhere}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        environment.pop("HEADRACE_STATE", None)
        argv = [sys.executable, "-m", "stack", "up", "--config", str(self.config), "--state", str(self.state)]
        with (self.root / "up.log").open("ab") as log:
            self._process = subprocess.Popen(
                argv, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        self.wait("the stack to be up", lambda: (self.state / "endpoints.json").exists() or self._check_alive())

    def _check_alive(self) -> None:
        assert self._process is not None
        assert self._process.poll() is None, (self.root / "up.log").read_text()

    def stop(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            assert self._process.wait(60) == 0, (self.root / "up.log").read_text()
        self.hook.close()

    @property
    def endpoints(self) -> dict[str, Any]:
        return dict(json.loads((self.state / "endpoints.json").read_text()))

    @property
    def token(self) -> str:
        return Path(self.endpoints["token_file"]).read_text().strip()

    def pid(self, process: str) -> int:
        return int(self.endpoints["pids"][process])

    def kill(self, process: str) -> None:
        """SIGKILL, and wait until the supervisor has another one up."""
        before = self.pid(process)
        os.kill(before, signal.SIGKILL)
        self.wait(f"{process} to be started again", lambda: self.pid(process) != before)

    def restart(self, process: str) -> None:
        """SIGTERM, as a rolling restart sends it, and wait until the supervisor has another one up."""
        before = self.pid(process)
        os.kill(before, signal.SIGTERM)
        self.wait(f"{process} to be started again", lambda: self.pid(process) != before)

    def redis(self, command: str) -> bytes:
        """One command to the broker, as redis-cli would send it."""
        import socket

        settings = json.loads((self.state / "settings.json").read_text())
        password = settings["redis_url"].split("@")[0].rsplit(":", 1)[1]
        host, port = self.endpoints["redis"].split(":")
        with socket.create_connection((host, int(port)), timeout=5) as connection:
            connection.sendall(f"AUTH {password}\r\n{command}\r\nQUIT\r\n".encode())
            with connection.makefile("rb") as answer:
                return answer.read()

    def call(self, method: str, path: str, body: object = None, token: str | None = None) -> Any:
        request = urllib.request.Request(self.endpoints["api"] + path, method=method)
        request.add_header("Authorization", f"Bearer {token or self.token}")
        if body is not None:
            request.data = json.dumps(body).encode()
            request.add_header("Content-Type", "application/json")
        with urllib.request.urlopen(request, timeout=40) as answer:
            return json.loads(answer.read())

    def get(self, path: str) -> Any:
        return self.call("GET", path)

    def post(self, path: str, body: object) -> Any:
        return self.call("POST", path, body)

    def in_mlflow(self, model: str) -> list[int]:
        """The versions that MLflow itself knows."""
        asked = urllib.parse.urlencode({"filter": f"name='{model}'", "max_results": 1000})
        url = f"{self.endpoints['mlflow']}/api/2.0/mlflow/model-versions/search?{asked}"
        with urllib.request.urlopen(url, timeout=40) as answer:
            return sorted(int(one["version"]) for one in json.loads(answer.read()).get("model_versions", []))

    def headrace(self, *arguments: str, cwd: Path | None = None) -> str:
        """The command line client, as an operator runs it beside the stack."""
        environment = {**os.environ, "HEADRACE_STATE": str(self.state)}
        done = subprocess.run(
            [str(Path(sys.executable).with_name("headrace")), *arguments],
            env=environment,
            cwd=cwd,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def audit(self) -> None:
        """Everything that is promised holds, on the stack as it runs: `make audit` as an operator would say it."""
        reached = {key: value for key, value in self.elsewhere.items() if not key.startswith("HEADRACE_")}
        environment = {**os.environ, **reached, "HEADRACE_SETTINGS": str(self.state / "settings.json")}
        argv = [sys.executable, "-m", "stack", "audit", "--state", str(self.state), "--json"]
        done = subprocess.run(argv, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr

    def add_model(
        self,
        name: str,
        *,
        quality: float | str = 0.7,
        policy: str = "{}",
        more: str = "",
        compute_class: str = "standard",
        kind: str = "sql",
    ) -> Model:
        model = Model(self, name, quality, compute_class, kind)
        look = f', url = "sqlite:///{model.database}", table = "rows", cursor = "id"' if kind == "sql" else ""
        self._sections.append(
            f'[datasets.{name}]\nsource = {{ kind = "{kind}"{look} }}\n'
            f"holdout = {{ min_rows = 1 }}\n\n"
            f'[models.{name}]\nrepository = "{model.repository.as_uri()}"\nrelease_poll = "{self.release_poll}"\npolicy = {policy}\npass_env = ["HOLD_FILES"]\n{more}\n'
        )
        self._write_config()
        return model

    def add_section(self, text: str) -> None:
        """More of the operator's file; it is put in force soon."""
        self._sections.append(text)
        self._write_config()

    def forget_models(self) -> None:
        """Take out of the configuration what tests have added: watching it costs the tests that follow."""
        del self._sections[2:]
        self._write_config()

    def _write_config(self) -> None:
        draft = self.config.with_suffix(".draft")
        draft.write_text("\n".join(self._sections))
        draft.replace(self.config)

    def wait(self, what: str, look: Callable[[], T | None], patience_s: float = PATIENCE_S, look_s: float = 0.1) -> T:
        deadline = time.monotonic() + patience_s
        while time.monotonic() < deadline:
            try:
                if found := look():
                    return found
            except (urllib.error.URLError, ConnectionError, FileNotFoundError, TimeoutError, json.JSONDecodeError):
                pass
            time.sleep(look_s)
        raise AssertionError(f"waited {patience_s:g} s for {what}\n{self._state_of_things()}")

    def _state_of_things(self) -> str:
        try:
            status = json.dumps(self.get("/v1/status"), indent=1)[:6000]
        except OSError as error:
            status = repr(error)
        logs = "".join(
            f"--- {path.name}\n{path.read_text(errors='replace')[-1500:]}\n"
            for path in sorted((self.state / "logs").glob("*.log"))
        )
        return f"{status}\n{logs}"


class Model:
    """A model of a test: its repository, its table."""

    def __init__(
        self, product: Product, name: str, quality: float | str, compute_class: str, kind: str = "sql"
    ) -> None:
        self.evaluate_s = 0.0
        self.product, self.name, self._class, self._kind = product, name, compute_class, kind
        self.repository = product.root / f"{name}.git"
        self.database = product.root / f"{name}.db"
        self._connect().execute("CREATE TABLE rows (id INTEGER PRIMARY KEY, value REAL)")
        self.repository.mkdir()
        self._git("init", "--quiet", "--initial-branch=main")
        self.release("1.0.0", quality)

    def release(self, version: str, quality: float | str) -> None:
        """`quality` is an expression; one that raises makes a model whose training fails."""
        declared = PYPROJECT.format(name=self.name, version=version, compute_class=self._class)
        source = SOURCE.format(quality=quality, evaluate_s=self.evaluate_s)
        if self._kind != "sql":  # whose rows nobody can hold out and score on
            declared = declared.partition("[tool.headrace.gates]")[0].replace('evaluate = "small:evaluate"\n', "")
            source = REPORTED
        self.push(version, declared, source)

    def push(self, version: str, declared: str, source: str) -> None:
        (self.repository / "pyproject.toml").write_text(declared)
        (self.repository / "small.py").write_text(source)
        self._git("add", "--all")
        self._git("commit", "--quiet", "--allow-empty", "-m", f"Release {version}")
        self._git("tag", f"v{version}")

    def insert(self, rows: int = 100) -> None:
        connection = self._connect()
        with connection:
            connection.executemany("INSERT INTO rows (value) VALUES (?)", [(float(n),) for n in range(rows)])
        connection.close()

    def hold(self) -> None:
        """Let trainings stand still until `go`."""
        (self.product.held / self.name).touch()

    def go(self) -> None:
        (self.product.held / self.name).unlink(missing_ok=True)

    def get(self, path: str = "") -> Any:
        return self.product.get(f"/v1/models/{self.name}{path}")

    def runs(self, state: str | None = None) -> list[dict[str, Any]]:
        found = self.product.get(f"/v1/runs?model={self.name}&limit=200")["items"]
        return [run for run in found if state is None or run["state"] == state]

    def versions(self) -> list[dict[str, Any]]:
        return list(self.get("/versions?limit=200")["items"])

    def wait_for_state(self, state: str) -> dict[str, Any]:
        return self.product.wait(f"a run of {self.name} to be {state}", lambda: next(iter(self.runs(state)), None))

    def wait_for_champion(self, version: int) -> None:
        self.product.wait(
            f"version {version} of {self.name} to serve",
            lambda: (self.get()["champion"] or {}).get("version") == version,
        )

    def wait_for_verdict(self, version: int) -> dict[str, Any]:
        def settled() -> dict[str, Any] | None:
            found = (
                self.get(f"/versions/{version}") if any(one["version"] == version for one in self.versions()) else None
            )
            return found if found and found["state"] != "candidate" else None

        return self.product.wait(f"a verdict on version {version} of {self.name}", settled)

    def processes(self) -> list[int]:
        """Processes of its attempts, by the variables that they carry."""
        marks = {f"HEADRACE_RUN_ID={run['id']}".encode() for run in self.runs()}
        found = []
        for environ in Path("/proc").glob("[0-9]*/environ"):
            try:
                variables = set(environ.read_bytes().split(b"\0"))
            except OSError:
                continue
            if marks & variables and any(str(self.product.state).encode() in variable for variable in variables):
                found.append(int(environ.parent.name))
        return found

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.database)
        connection.execute("PRAGMA journal_mode=WAL")
        return connection

    def _git(self, *arguments: str) -> None:
        names = {
            f"GIT_{who}_{what}": value
            for who in ("AUTHOR", "COMMITTER")
            for what, value in (("NAME", "A"), ("EMAIL", "a@example.com"))
        }
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.product.root),
            "GIT_CONFIG_GLOBAL": os.devnull,
            **names,
        }
        subprocess.run(["git", "-C", str(self.repository), *arguments], check=True, env=environment)


class Hook:
    """A consumer's endpoint: keeps what is sent, and checks each signature by the Standard Webhooks rule, written out here."""

    def __init__(self) -> None:
        hook, self.received, self.forged = self, [], 0
        self.ids: list[str] = []
        self.hang = threading.Event()  # while it is clear, nobody is answered
        self.hang.set()
        self.refusals: list[int] = []  # answers to the next posts that are refused, and not kept

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                hook.hang.wait()
                if hook.refusals:
                    self.send_response(hook.refusals.pop())
                    self.end_headers()
                    return
                if hook._is_signed(self.headers, body):
                    hook.received.append(json.loads(body))
                    hook.ids.append(self.headers["webhook-id"])
                else:
                    hook.forged += 1
                self.send_response(204)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.received: list[dict[str, Any]]
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def of(self, model: str, kind: str) -> list[dict[str, Any]]:
        return [notice for notice in self.received if notice["subject"] == model and notice["type"] == kind]

    def close(self) -> None:
        self.hang.set()
        self._server.shutdown()
        self._server.server_close()

    def _is_signed(self, headers: Any, body: bytes) -> bool:
        signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
        expected = base64.b64encode(
            hmac.new(base64.b64decode(SECRET.removeprefix("whsec_")), signed, hashlib.sha256).digest()
        ).decode()
        return f"v1,{expected}" in headers["webhook-signature"].split(" ")
