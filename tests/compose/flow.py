"""docker-compose.yml from `up` to `down`, as its users see it: addresses, containers, MLflow's own client. `make compose-test`; not part of `make test`.

Imports nothing of ours. Each test leaves the stack as the next expects it: they run in this order.
"""

from __future__ import annotations

import io
import json
import os
import secrets
import subprocess
import sys
import tarfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from tests.compose.engine import ROOT, Project
from tests.servers import free_port

T = TypeVar("T")
PATIENCE_S = 420.0
MODELS = Path(__file__).with_name("models")
OURS = ("api", "watcher", "trainer-standard", "trainer-compute-optimized", "bridge", "flower", "mlflow", "s3", "redis")
PUBLISHED = ("api", "mlflow", "flower")
CONFIG = """
[compute_classes.standard]
[compute_classes.compute-optimized]

[datasets.readings]
source = { kind = "sql", url = "env:METER_URL", table = "readings", cursor = "id", poll = "1h" }
holdout = { min_rows = 1 }

[datasets.clicks]
source = { kind = "stream" }
holdout = { min_rows = 1 }

[models.meter]
repository = "/srv/repositories/meter"
release_poll = "2s"
pass_env = ["METER_URL"]

[models.clicks]
repository = "/srv/repositories/clicks"
release_poll = "2s"
"""
METER = """
CREATE ROLE meter LOGIN PASSWORD '{password}';
CREATE DATABASE meter OWNER meter TEMPLATE template0 ENCODING 'UTF8' LOCALE 'C.UTF-8';
\\connect meter
CREATE TABLE readings (id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY, kwh DOUBLE PRECISION, pause_s INTEGER);
ALTER TABLE readings OWNER TO meter;
"""
CHAMPION = """
import json, sys, mlflow
mlflow.set_tracking_uri(sys.argv[1])
client = mlflow.MlflowClient()
version = client.get_model_version_by_alias(sys.argv[2], "champion")
model = mlflow.pyfunc.load_model(f"models:/{sys.argv[2]}@champion")
metrics = client.get_run(version.run_id).data.metrics
print(json.dumps({"version": int(version.version), "metrics": metrics, "predicted": list(model.predict([0]))}))
"""


class Stack:
    """The project with what a user of it knows: its addresses and the operator's token."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.ports = {name: free_port() for name in PUBLISHED}
        self.variables = self._write_env()
        self._write("headrace.toml", CONFIG)
        address = f"postgresql+psycopg://meter:{self.variables['METER_PASSWORD']}@postgres:5432/meter"
        self._write(
            "headrace.env", f"METER_URL={address}\nHEADRACE_LEASE_S=9\nHEADRACE_HEARTBEAT_S=3\nHEADRACE_LOOK_S=1\n"
        )
        reads = {"volumes": ["repositories:/srv/repositories:ro"]}
        readers = ("watcher", "trainer-standard", "trainer-compute-optimized")
        override = {"services": dict.fromkeys(readers, reads), "volumes": {"repositories": {}}}
        name = f"headrace-test-{os.getpid()}"
        self.project = Project(name, root / ".env", self._write("override.yml", json.dumps(override)))

    def _write(self, name: str, text: str) -> Path:
        path = self.root / name
        path.write_text(text)
        path.chmod(0o644)  # the containers' user is another one
        return path

    def _write_env(self) -> dict[str, str]:
        """What `make env` writes, with this test's files, ports and images."""
        path = self.root / ".env"
        subprocess.run(["sh", "deploy/env.sh", ".env.example", str(path)], cwd=ROOT, check=True)
        lines = [line for line in path.read_text().splitlines() if "=" in line and not line.startswith("#")]
        variables = dict(line.split("=", 1) for line in lines)
        variables |= {f"{name.upper()}_PUBLISH": f"127.0.0.1:{port}" for name, port in self.ports.items()}
        variables |= {"HEADRACE_VERSION": "test", "METER_PASSWORD": secrets.token_hex(12)}
        variables |= {
            "HEADRACE_CONFIG": f"{self.root}/headrace.toml",
            "HEADRACE_VARIABLES": f"{self.root}/headrace.env",
        }
        path.write_text("".join(f"{name}={value}\n" for name, value in variables.items()))
        return variables

    def up(self) -> None:
        """All at once, in whatever order it comes; then the meter's table, then the models."""
        self.project.build("watcher", "trainer-standard", "api", "bridge", "flower", "mlflow", "s3", "redis")
        self.project.compose("up", "-d", "--scale", "trainer-standard=2")
        self.wait("postgres", lambda: self.project.is_healthy(self.project.only("postgres")))
        self.psql("postgres", METER.format(password=self.variables["METER_PASSWORD"]))
        self.read_meter(100)
        self._publish_repositories()

    def psql(self, database: str, text: str) -> None:
        argv = ["psql", "-q", "-v", "ON_ERROR_STOP=1", "-U", "postgres", "-d", database]
        self.project.execute(self.project.only("postgres"), *argv, given=text.encode())

    def read_meter(self, rows: int, pause_s: int = 0) -> None:
        insert = f"INSERT INTO readings (kwh, pause_s) SELECT random(), {pause_s} FROM generate_series(1, {rows});"
        self.psql("meter", insert)

    def _publish_repositories(self) -> None:
        """Into the volume that watcher and trainers read, owned by their user: git reads no stranger's repository."""
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as archive:
            for model in sorted(MODELS.iterdir()):
                archive.add(self._make_repository(model), model.name)
        volume = f"{self.project.name}_repositories:/srv/repositories"
        into = "tar -x --no-same-owner -C /srv/repositories && chown -R 10001:10001 /srv/repositories"
        run = ["run", "--rm", "--interactive", "--user", "0", "--network", "none", "--volume", volume]
        self.project.call(*run, "--entrypoint", "sh", "headrace-watcher:test", "-c", into, given=packed.getvalue())

    def _make_repository(self, model: Path) -> Path:
        into = self.root / "repositories" / model.name
        into.mkdir(parents=True)
        for file in model.glob("*.*"):
            (into / file.name).write_bytes(file.read_bytes())
        who = ["-c", "user.name=a", "-c", "user.email=a@example.com"]
        for words in (
            ["init", "-q", "-b", "main"],
            ["add", "."],
            [*who, "commit", "-q", "-m", "Release"],
            ["tag", "v1.0.0"],
        ):
            subprocess.run(["git", "-C", str(into), *words], check=True)
        return into

    def call(self, path: str, body: object = None) -> Any:
        request = urllib.request.Request(f"http://127.0.0.1:{self.ports['api']}{path}")
        request.add_header("Authorization", f"Bearer {self.variables['HEADRACE_OPERATOR_TOKEN']}")
        if body is not None:
            request.data = json.dumps(body).encode()
            request.add_header("Content-Type", "application/cloudevents+json")
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.loads(answer.read())

    def runs(self, model: str) -> list[dict[str, Any]]:
        return list(self.call(f"/v1/runs?model={model}")["items"])

    def champion(self, model: str) -> dict[str, Any]:
        """What MLflow's own client says of the version that serves, and what that predicts."""
        # the server hands out addresses within the S3 store, which is out of this machine's reach
        told = {**os.environ, "MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD": "false"}
        argv = [sys.executable, "-W", "ignore", "-c", CHAMPION, f"http://127.0.0.1:{self.ports['mlflow']}", model]
        done = subprocess.run(argv, env=told, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return dict(json.loads(done.stdout.splitlines()[-1]))

    def wait(self, what: str, look: Callable[[], T | None]) -> T:
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            try:
                if found := look():
                    return found
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                pass
            time.sleep(0.5)
        raise AssertionError(f"waited {PATIENCE_S:g} s for {what}\n{self.state_of_things()}")

    def wait_for_metric(self, model: str, metric: str, value: float) -> None:
        def serves() -> bool:
            serving = [one for one in self.call(f"/v1/models/{model}/versions")["items"] if one["champion"]]
            return bool(serving) and serving[0]["metrics"].get(metric) == value

        self.wait(f"a champion of {model} with {metric} = {value:g}", serves)

    def state_of_things(self) -> str:
        try:
            said = json.dumps(self.call("/v1/status"), indent=1)
        except OSError as error:
            said = repr(error)
        services = ("migrate", *OURS)
        return said + "".join(
            f"--- {service}\n{self.project.logs(one)[-3000:]}\n"
            for service in services
            for one in self.project.containers(service)
        )


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    root = tmp_path_factory.mktemp("compose")
    for folder in (root, *root.parents[:2]):
        folder.chmod(0o755)  # what is mounted from here is read by the containers' user
    stack = Stack(root)
    try:
        stack.up()
        yield stack
    finally:
        stack.project.down()


def event(id: str, dataset: str, **data: int) -> dict[str, Any]:
    said = {"specversion": "1.0", "id": id, "source": "/compose-test", "type": "dataset.arrived", "subject": dataset}
    return said | ({"data": data} if data else {})


def test_every_service_becomes_healthy(stack: Stack) -> None:
    for service in ("postgres", *OURS):
        for container in stack.project.containers(service):
            stack.wait(f"{service} to be healthy", lambda it=container: stack.project.is_healthy(it))
    assert stack.project.inspect(stack.project.only("migrate"))["State"]["ExitCode"] == 0


def test_nothing_runs_as_root_nor_writes_to_its_root_nor_listens_outside(stack: Stack) -> None:
    for service in ("postgres", *OURS):
        for container in stack.project.containers(service):
            told = stack.project.inspect(container)
            uid = stack.project.execute(container, "sh", "-c", "grep ^Uid: /proc/1/status").split()[1]
            assert uid != "0", f"{service} runs as root"
            assert told["HostConfig"]["ReadonlyRootfs"], service
            published = [port for port, where in (told["HostConfig"]["PortBindings"] or {}).items() if where]
            assert bool(published) is (service in PUBLISHED), (service, published)


def test_a_models_code_finds_no_password_and_no_mlflow(stack: Stack) -> None:
    """It runs as the worker's user in the worker's container; what it could see there is looked at."""
    for container in stack.project.containers("trainer-standard"):
        seen = stack.project.execute(
            container, "sh", "-c", "cat /proc/[0-9]*/cmdline; cat /proc/1/environ || echo nobody may look"
        )
        assert "nobody may look" in seen
        for name in ("LEDGER_PASSWORD", "REDIS_PASSWORD", "S3_SECRET_KEY"):
            assert stack.variables[name] not in seen, name
        reach = "import socket\ntry: socket.gethostbyname('mlflow')\nexcept OSError: print('out of reach')"
        assert stack.project.execute(container, "python", "-c", reach).strip() == "out of reach"


def test_the_first_release_is_trained_and_serves(stack: Stack) -> None:
    stack.call("/v1/events", event("rest-0", "readings"))  # the table is looked at once an hour without it
    stack.wait_for_metric("meter", "rows", 90)  # a tenth is held out


def test_an_event_over_rest_leads_to_a_version_in_mlflow(stack: Stack) -> None:
    stack.read_meter(100)
    stack.call("/v1/events", event("rest-1", "readings"))
    stack.wait_for_metric("meter", "rows", 180)
    found = stack.champion("meter")
    assert found["metrics"]["rows"] == 180
    assert 0 < found["predicted"][0] < 1


def test_an_event_over_the_stream_leads_to_a_version_in_mlflow(stack: Stack) -> None:
    said = json.dumps(event("stream-1", "clicks", **{"from": 0, "to": 700, "rows": 700}))
    send = 'REDISCLI_AUTH="$REDIS_PASSWORD" redis-cli -x XADD headrace:arrivals "*" event'
    stack.project.execute(stack.project.only("redis"), "sh", "-c", send, given=said.encode())
    stack.wait_for_metric("clicks", "upto", 700)
    assert stack.champion("clicks")["predicted"] == [700]


def test_a_run_whose_trainer_is_killed_is_finished_by_another(stack: Stack) -> None:
    stack.read_meter(100, pause_s=15)
    stack.call("/v1/events", event("rest-2", "readings"))

    def in_training() -> dict[str, Any] | None:
        running = [run for run in stack.runs("meter") if run["state"] == "running" and run["progress"]]
        return next((run for run in running if run["progress"]["fraction"] > 0), None)

    run = stack.wait("the meter to be in training", in_training)
    host = run["attempts"][-1]["worker"].partition("@")[2].partition(":")[0]
    trainers = stack.project.containers("trainer-standard")
    killed = next(one for one in trainers if stack.project.inspect(one)["Config"]["Hostname"] == host)
    stack.project.call("kill", "--signal", "KILL", killed)
    stack.project.call("rm", "--force", killed)
    stack.wait_for_metric("meter", "rows", 270)
    attempts = stack.call(f"/v1/runs/{run['id']}")["attempts"]
    assert len(attempts) == 2
    assert host not in attempts[-1]["worker"]


def test_what_runs_before_the_others_may_run_again(stack: Stack) -> None:
    versions = stack.call("/v1/models/meter/versions")
    stack.project.compose("run", "--rm", "--no-deps", "migrate")
    assert stack.call("/v1/models/meter/versions") == versions
