"""Trainers on machines of their own: with Redis, the ledger and the blob store in common, and no file system."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.postgres_server import Postgres
from tests.s3_server import S3Server
from tests.system.conftest import servers
from tests.system.product import ROOT, Product

CLASSES = "standard = {}\nremote = { slots = 0 }"


class Machine:
    """A trainer with a state directory, a home and an environment of its own; what it is told is what the documentation says."""

    def __init__(self, product: Product, root: Path, name: str) -> None:
        self.product, self.root, self.name = product, root / name, name
        self.root.mkdir(mode=0o700)
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        settings = json.loads((self.product.state / "settings.json").read_text())
        shared = {
            f"HEADRACE_{key.upper()}": settings[key] for key in ("ledger_url", "redis_url", "blobs_url", "logs_url")
        }
        own = {
            "HEADRACE_STATE_DIR": str(self.root / "state"),
            "HEADRACE_COMPUTE_CLASS": "remote",
            "HEADRACE_PROCESS": self.name,
            "HEADRACE_LEASE_S": "6",
            "HEADRACE_HEARTBEAT_S": "2",
            "HOME": str(self.root),
            "TMPDIR": str(self.root),
            "HOLD_FILES": str(self.product.held),
        }
        kept = {
            key: value for key, value in os.environ.items() if key == "PATH" or key.startswith(("SSL_", "PIP_", "UV_"))
        }
        aws = {key: value for key, value in self.product.elsewhere.items() if key.startswith("AWS_")}
        with (self.root / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "services.trainer"],
                cwd=ROOT,
                env=kept | shared | own | aws,
                stdout=log,
                stderr=log,
            )

    def kill(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(20)

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            assert self.process.wait(30) == 0, (self.root / "log").read_text()[-3000:]

    @property
    def environments(self) -> list[Path]:
        return [path.parent for path in self.root.glob("state/trainer/environments/*/headrace-environment.json")]


@pytest.fixture(scope="module")
def apart(postgres: Postgres, s3: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Product]:
    started = Product(tmp_path_factory.mktemp("apart"), CLASSES, servers(postgres, s3))
    try:
        started.start()
        yield started
    finally:
        started.stop()


@pytest.fixture
def machines(apart: Product, tmp_path: Path) -> Iterator[tuple[Machine, Machine]]:
    both = Machine(apart, tmp_path, "first"), Machine(apart, tmp_path, "second")
    yield both
    for one in both:
        one.stop()


def test_a_machine_that_dies_in_mid_training_is_replaced_by_one_that_has_nothing_of_it(
    apart: Product, machines: tuple[Machine, Machine]
) -> None:
    first, second = machines
    model = apart.add_model("roaming", compute_class="remote")
    model.hold()
    model.insert()
    apart.wait(
        "a run that no worker serves", lambda: "no worker serves train.remote" in apart.headrace("why", "roaming")
    )
    first.start()
    run = model.wait_for_state("running")
    path = f"/v1/runs/{run['id']}"
    apart.wait("the author's code to run", lambda: "training on" in apart.get(f"{path}/log")["text"])
    assert first.environments
    assert not second.environments
    second.start()
    first.kill()
    apart.wait("a second attempt", lambda: len(apart.get(path)["attempts"]) == 2)
    model.go()
    model.wait_for_champion(1)
    ended = apart.get(path)
    assert [attempt["outcome"] for attempt in ended["attempts"]] == ["lost", "trained"]
    assert [attempt["worker"].partition("@")[0] for attempt in ended["attempts"]] == ["first", "second"]
    assert [path.name for path in first.environments] == [path.name for path in second.environments]
    for attempt in (1, 2):
        assert "training on" in apart.get(f"{path}/log?attempt={attempt}")["text"]
    assert not model.processes()


def test_a_machine_scores_a_champion_that_another_has_trained(
    apart: Product, machines: tuple[Machine, Machine]
) -> None:
    first, second = machines
    model = apart.add_model("handed-on", compute_class="remote")
    first.start()
    model.insert()
    model.wait_for_champion(1)
    first.stop()
    second.start()
    model.release("1.1.0", 0.75)
    model.wait_for_champion(2)
    verdict = model.get("/versions/2")["verdict"]
    assert verdict["champion"] == 1
    assert any("0.75" in reason and "0.7" in reason for reason in verdict["reasons"])
    assert apart.get("/v1/status")["datasets"]
