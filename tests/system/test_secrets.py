"""Secrets of every kind are planted, all kinds of runs are made, and then each is looked for wherever somebody could read."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.postgres_server import Postgres
from tests.s3_server import S3Server
from tests.servers import Server
from tests.system.product import ROOT, SECRET, Product

NOSY = '''\
"""A model that looks for whatever of the platform its own user may read, and prints it."""

import os


def train(job):
    parents = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open("/proc/%s/stat" % name, "rb") as stream:
                    parents[int(name)] = int(stream.read().rpartition(b")")[2].split()[1])
            except OSError:
                continue
    top = os.getpid()
    for _ in range(4):  # our warden, the worker, its warden, the supervisor
        top = parents[top]
    tree = {top}
    while True:
        below = {pid for pid, parent in parents.items() if parent in tree} - tree
        if not below:
            break
        tree |= below
    print("looked at", len(tree), "processes", flush=True)
    for pid in sorted(tree):
        for name in ("environ", "cmdline"):
            try:
                with open("/proc/%d/%s" % (pid, name), "rb") as stream:
                    print(pid, name, stream.read())
            except OSError as error:
                print(pid, name, error)
    print(sorted(os.environ.items()), os.listdir("/proc/self/fd"), flush=True)
    if os.path.exists(os.environ["HOLD_FILES"] + "/" + job.model + "-fails"):
        raise ValueError("a failure that tells all it knows: %r" % dict(os.environ))
    rows = job.datasets[job.model].train
    with rows.connect() as connection:
        return {"mean": 1.0, "rows": len(connection.execute(rows.sql, rows.params).fetchall())}


def evaluate(job, model):
    return {"auc": 0.7, "rows": float(model["rows"])}


def predict(model, frame):
    return [model["mean"]] * len(frame)
'''
ASKED = (
    "/v1/status",
    "/v1/models",
    "/v1/runs?limit=200",
    "/v1/arrivals",
    "/v1/notices",
    "/v1/deliveries",
    "/v1/rejections",
    "/v1/history",
    "/openapi.json",
)
MAY_HOLD = {"settings.json", "operator.token", "flower.password", "flower.conf", "valkey.conf", ".netrc"}
"""Files that are there to hold a secret, readable by their owner alone."""


@dataclass
class Planted:
    product: Product
    marks: dict[str, str]
    elsewhere: tuple[Path, ...]
    ledger: str

    def found_in(self, text: bytes) -> set[str]:
        return {name for name, mark in self.marks.items() if mark.encode() in text}


def closed_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.fixture
def planted(
    postgres: Postgres, s3_server: S3Server, mlflow_server: Server, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Planted]:
    names = ("ledger", "mlflow", "source", "unread", "index", "extra", "git", "token")
    marks = {name: f"planted-{name}-{uuid.uuid4().hex}" for name in names}
    role = f"marked_{uuid.uuid4().hex[:8]}"
    postgres.execute(f"CREATE ROLE {role} LOGIN SUPERUSER PASSWORD '{marks['ledger']}'")
    database = postgres.new_database()
    address = database.rpartition("@")[2]
    blobs, logs = s3_server.new_url("blobs"), s3_server.new_url("logs")
    root = tmp_path_factory.mktemp("secrets")
    home = root / "home"
    home.mkdir()
    (home / ".netrc").write_text(f"machine 127.0.0.1 login ci password {marks['git']}\n")
    environment = {
        "HEADRACE_LEDGER_URL": f"postgresql://{role}:{marks['ledger']}@{address}",
        "HEADRACE_BLOBS_URL": blobs,
        "HEADRACE_LOGS_URL": logs,
        "HEADRACE_MLFLOW_URL": mlflow_server.url.replace("://", f"://bridge:{marks['mlflow']}@"),
        "HEADRACE_INDEX_URL": f"http://ci:{marks['index']}@127.0.0.1:{closed_port()}/simple",
        "HEADRACE_EXTRA_INDEX_URLS": f"http://ci:{marks['extra']}@127.0.0.1:{closed_port()}/simple",
        "SOURCE_URL": f"postgresql://reader:{marks['source']}@127.0.0.1:{closed_port()}/warehouse",
        "UNREAD_TOKEN": marks["unread"],
        "HOME": str(home),
        **s3_server.environment,
    }
    product = Product(root, elsewhere=environment)
    try:
        product.start()
        marks["webhook"] = SECRET.removeprefix("whsec_")
        marks["s3"] = s3_server.secret
        marks["operator"] = product.token
        settings = (product.state / "settings.json").read_text()
        marks["redis"] = settings.split('"redis_url": "redis://:')[1].split("@")[0]
        places = (s3_server.files(blobs), s3_server.files(logs), Path(mlflow_server.log).parent, root)
        yield Planted(product, marks, places, environment["HEADRACE_LEDGER_URL"])
    finally:
        product.stop()


def test_no_secret_is_found_where_somebody_could_read_it(planted: Planted) -> None:
    product = planted.product
    good = product.add_model("nosy")
    (good.repository / "small.py").write_text(NOSY)
    good._git("commit", "--quiet", "--all", "-m", "Look around")
    good._git("tag", "v1.1.0")
    needy = product.add_model("needy")
    declared = (needy.repository / "pyproject.toml").read_text().replace("dependencies = []", 'dependencies = ["six"]')
    (needy.repository / "pyproject.toml").write_text(declared)
    needy._git("commit", "--quiet", "--all", "-m", "Depend on something")
    needy._git("tag", "v1.1.0")
    away = f"https://127.0.0.1:{closed_port()}/team/away.git"
    product.add_section(
        '[datasets.warehouse]\nsource = { kind = "sql", url = "env:SOURCE_URL", table = "rows", cursor = "id", poll = "1s" }\n'
        f'[models.away]\nrepository = "{away}"\nrelease_poll = "1s"\n'
    )
    _released(planted, "nosy", "v1.1.0")
    _released(planted, "needy", "v1.1.0")
    good.insert()
    needy.insert()
    good.wait_for_champion(1)
    product.wait(
        "the index to be asked in vain", lambda: any(run["state"] in ("retrying", "failed") for run in needy.runs())
    )
    product.wait("the warehouse to be found away", lambda: "warehouse" in _troubled(planted))
    (product.held / "nosy-fails").touch()
    good.insert()
    good.wait_for_state("failed")
    product.wait("the failure to be told", lambda: bool(product.hook.of("nosy", "run.failed")))
    text = _log(planted, good.wait_for_state("failed")["id"])
    assert "looked at" in text
    assert "a failure that tells all it knows" in text

    found = {
        "what a model's code could read, in its log": planted.found_in(text.encode()),
        "processes": _in_processes(planted),
        "files": _in_files(planted),
        "the ledger": _in_ledger(planted),
        "answers": _in_answers(planted),
        "the command line": planted.found_in(_said_by_commands(planted)),
        "notices": planted.found_in(repr(product.hook.received).encode()),
    }
    assert {place: names for place, names in found.items() if names} == {}


def _released(planted: Planted, model: str, tag: str) -> None:
    planted.product.wait(
        f"{tag} of {model} to be taken", lambda: tag in str(planted.product.get(f"/v1/models/{model}"))
    )


def _troubled(planted: Planted) -> set[str]:
    return {one["name"] for one in planted.product.get("/v1/status")["datasets"] if one.get("error")}


def _log(planted: Planted, run: int) -> str:
    import urllib.request

    request = urllib.request.Request(f"{planted.product.endpoints['api']}/v1/runs/{run}/log")
    request.add_header("Authorization", f"Bearer {planted.product.token}")
    with urllib.request.urlopen(request, timeout=30) as answer:
        return str(answer.read().decode(errors="replace"))


def _in_processes(planted: Planted) -> set[str]:
    """Of the whole stack, its wardens and its supervisor: what `ps` shows, and the environment, which root reads of everybody.

    But for the index in the environment of a uv that is at work: it is told in no other way, and its own user alone can read that.
    """
    tree, found = {int(planted.product.endpoints["supervisor"])}, set()
    for _ in range(6):
        for path in Path("/proc").glob("[0-9]*/stat"):
            try:
                parent = int(path.read_bytes().rpartition(b")")[2].split()[1])
            except OSError:
                continue
            if parent in tree:
                tree.add(int(path.parent.name))
    assert len(tree) > 12
    for pid in tree:
        for name in ("cmdline", "environ"):
            try:
                said = Path(f"/proc/{pid}/cmdline").read_bytes()[:150]
                marks = planted.found_in(Path(f"/proc/{pid}/{name}").read_bytes())
                if name == "environ" and said.partition(b"\0")[0].endswith(b"/uv"):
                    marks -= {"index"}
                found |= {f"{mark} in {name} of {said!r}" for mark in marks}
            except OSError:
                continue
    return found


def _in_files(planted: Planted) -> set[str]:
    found = set()
    for root in planted.elsewhere:
        for path in root.rglob("*"):
            plain = path.is_file() and not path.is_symlink()
            if plain and path.name not in MAY_HOLD and "environments" not in path.parts:
                found |= {f"{mark} in {path}" for mark in planted.found_in(path.read_bytes())}
    return found


def _in_ledger(planted: Planted) -> set[str]:
    found = set()
    with psycopg.connect(planted.ledger) as connection:
        tables = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
        assert len(tables) > 10
        for (table,) in tables:
            for (row,) in connection.execute(f'SELECT to_jsonb(t)::text FROM "{table}" t').fetchall():  # type: ignore[arg-type]
                found |= {f"{mark} in {table}" for mark in planted.found_in(row.encode())}
    return found


def _in_answers(planted: Planted) -> set[str]:
    product, found = planted.product, set()
    runs: list[dict[str, Any]] = product.get("/v1/runs?limit=200")["items"]
    paths = [*ASKED, *(f"/v1/runs/{run['id']}" for run in runs)]
    paths += [f"/v1/models/{name}{more}" for name in ("nosy", "needy", "away") for more in ("", "/why", "/versions")]
    for path in paths:
        found |= {f"{mark} in {path}" for mark in planted.found_in(repr(product.get(path)).encode())}
    return found


def _said_by_commands(planted: Planted) -> bytes:
    product = planted.product
    words = (("status", "--json"), ("why", "needy", "--json"), ("runs", "--json"), ("history", "--json"), ("status",))
    argv = [sys.executable, "-m", "stack", "audit", "--json", "--state", str(product.state)]
    stores = {name: value for name, value in product.elsewhere.items() if name.startswith("AWS_")}
    audit = subprocess.run(argv, cwd=ROOT, env={**os.environ, **stores}, capture_output=True, timeout=120)
    assert audit.returncode in (0, 1), audit.stderr
    return "".join(product.headrace(*said) for said in words).encode() + audit.stdout + audit.stderr
