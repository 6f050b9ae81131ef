"""A steady stream of data for many models while faults of every kind strike; afterwards all is as if nothing had happened.

Each kind strikes once here, in the order of a printed seed; `make chaos MINUTES=… SEED=…` goes on for longer.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from stack.audit.look import audit
from tests.chaos.arena import Arena
from tests.chaos.storm import Storm
from tests.faulty_proxy import FaultyProxy
from tests.half_open import HalfOpen
from tests.postgres_server import Postgres
from tests.redis_server import start_valkey
from tests.s3_server import S3Server
from tests.servers import start_mlflow

MINUTES = float(os.environ.get("MINUTES", "0"))
SEED = int(os.environ.get("SEED") or random.randrange(10**6))
MODELS = 20
STATE_BYTES = 256 * 1024**2
SERVERS_ALONE = (
    "Redis held",
    "Redis connections reset",
    "Redis connections half open",
    "SIGKILL MLflow",
    "PostgreSQL",
    "the blob store",
)
"""What strikes the house on real servers; everything else strikes the embedded one, and in the long form everything both."""


@pytest.fixture
def shelter(tmp_path: Path) -> Iterator[ExitStack]:
    with ExitStack() as held:
        yield held


@pytest.mark.timeout(max(600, MINUTES * 60 + 600))
def test_nothing_is_lost_or_doubled_in_a_storm_over_the_embedded_house(
    tmp_path: Path, shelter: ExitStack, capsys: pytest.CaptureFixture[str]
) -> None:
    mlflow = start_mlflow(tmp_path / "mlflow")  # the audit of another house would find this one's versions
    shelter.callback(mlflow.stop)
    state = tmp_path / "state"
    state.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={STATE_BYTES}", "headrace-chaos", str(state)]
    if subprocess.run(mount, capture_output=True).returncode == 0:  # who may mount has a disk of its own that fills up
        shelter.callback(subprocess.run, ["umount", "--lazy", str(state)], check=True)
    storm = _build(tmp_path, mlflow.url, shelter)
    weather(storm, [name for name in storm.kinds() if MINUTES or not name.startswith(SERVERS_ALONE)], capsys)


@pytest.mark.timeout(max(600, MINUTES * 60 + 600))
def test_nothing_is_lost_or_doubled_in_a_storm_over_the_house_on_real_servers(
    postgres: Postgres, s3: S3Server, tmp_path: Path, shelter: ExitStack, capsys: pytest.CaptureFixture[str]
) -> None:
    mlflow = start_mlflow(tmp_path / "mlflow")
    store = shelter.enter_context(FaultyProxy(s3.url, keep_host=True))
    urls = {"ledger_url": postgres.new_database(), "blobs_url": s3.new_url("blobs"), "logs_url": s3.new_url("logs")}
    environment = {**s3.environment, "AWS_ENDPOINT_URL_S3": store.url}
    storm = _build(tmp_path, mlflow.url, shelter, urls=urls, environment=environment)
    storm.server, storm.postgres, storm.s3 = mlflow, postgres, store
    shelter.callback(lambda: storm.server and storm.server.stop())
    weather(storm, [name for name in storm.kinds() if MINUTES or name.startswith(SERVERS_ALONE)], capsys)


def _build(root: Path, mlflow_url: str, shelter: ExitStack, **elsewhere: dict[str, str]) -> Storm:
    valkey = start_valkey(root / "redis")
    shelter.callback(valkey.stop)
    line = shelter.enter_context(HalfOpen(valkey.port))
    proxy = shelter.enter_context(FaultyProxy(mlflow_url))
    url = f"redis://127.0.0.1:{line.port}/0"
    arena = Arena(root, proxy.url, url, armed=False, **elsewhere)  # type: ignore[arg-type]
    shelter.callback(arena.stop)
    storm = Storm(arena, valkey, line, proxy, random.Random(SEED))
    storm.people(MODELS)
    return storm


def weather(storm: Storm, kinds: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Let each kind strike, and more of them until the time is over; then everything must settle."""
    with capsys.disabled():
        print(f"\nSEED={SEED} {len(kinds)} kinds of fault")
    storm.arena.start()
    stream = threading.Thread(target=storm.blow, daemon=True)
    storm.insert(storm.canary)
    storm.arena.wait("the first version", lambda: storm.canary.get()["champion"])
    stream.start()
    ends_at = time.monotonic() + MINUTES * 60
    try:
        while True:
            for name in storm.rng.sample(kinds, len(kinds)):
                storm.strike(name)
            if time.monotonic() >= ends_at:
                break
    finally:
        storm.stop.set()
        stream.join(60)
    storm.arena.wait("everything to settle", storm.arena.settled)
    with capsys.disabled():
        print(table(storm))
    check(storm)
    assert {one.fault for one in storm.outcomes} == set(kinds)


def check(storm: Storm) -> None:
    arena = storm.arena
    report = audit(arena.settings, deep=True)
    assert report.exit_code == 0, json.dumps(report.to_json(), indent=1)
    kept = {one["id"] for one in every(arena, "/v1/arrivals?dataset=told")}
    assert {one["arrival"] for one in storm.accepted} <= kept, "what was answered with 202 is there"
    assert len({one["arrival"] for one in storm.accepted}) == len({one["key"] for one in storm.accepted})
    for model in [*storm.models, storm.canary]:
        if not storm.inserted.get(model.name):
            continue
        assert not model.processes(), f"a process of {model.name} has outlived its attempt"
        runs = model.runs()
        trained = [run["id"] for run in runs if run["state"] == "trained"]
        assert Counter(one["run"] for one in model.versions()) == Counter(trained), "each trained run is one version"
        assert {run["state"] for run in runs} <= {"trained", "waiting"}, f"{model.name}: {runs}"
        newest = max(trained)
        assert cut_rows(arena, newest, model.name) == storm.inserted[model.name], "the newest version saw every row"
        champion = next(one for one in model.versions() if one["version"] == model.get()["champion"]["version"])
        assert champion["run"] == newest
    sent = {one["sequence"]: one["id"] for one in every(arena, "/v1/deliveries")}
    told = set(zip((int(one["sequence"]) for one in arena.hook.received), arena.hook.ids, strict=True))
    assert told == set(sent.items()), "each notice has reached the consumer, under one id"
    assert sorted(sent) == list(range(1, len(sent) + 1)), "and no number is missing"


def cut_rows(arena: Arena, run: int, dataset: str) -> int:
    return int(arena.get(f"/v1/runs/{run}")["cut"][dataset]["rows"])


def every(arena: Arena, path: str) -> list[dict[str, object]]:
    """All items of a list, page by page."""
    joint, found, after = "&" if "?" in path else "?", [], ""
    while True:
        page = arena.get(f"{path}{joint}limit=200{after}")
        found += page["items"]
        if page["next"] is None:
            return found
        after = f"&after={page['next']}"


def table(storm: Storm) -> str:
    """Each kind of fault: how often, and how long after its end (at best, at worst) the data that came in it was served as a model."""
    lines = [f"{'fault':62} {'struck':>6} {'lasted':>8} {'well again after':>18}"]
    for kind in sorted({one.fault for one in storm.outcomes}):
        mine = [one for one in storm.outcomes if one.fault == kind]
        well = [one.well_after_s for one in mine]
        lasted = max(one.lasted_s for one in mine)
        lines.append(f"{kind:62} {len(mine):6} {lasted:6.1f} s {min(well):7.1f} to {max(well):.1f} s")
    return "\n".join(["", *lines, f"{len(storm.accepted)} reports, {sum(storm.inserted.values())} rows"])
