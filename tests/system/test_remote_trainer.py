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

from tests.system.product import ROOT, Product

pytestmark = pytest.mark.parametrize("stack", ["servers"], indirect=True)


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


@pytest.fixture
def machines(product: Product, tmp_path: Path) -> Iterator[tuple[Machine, Machine]]:
    both = Machine(product, tmp_path, "first"), Machine(product, tmp_path, "second")
    yield both
    for one in both:
        one.stop()


def test_a_machine_that_dies_in_mid_training_is_replaced_by_one_that_has_nothing_of_it(
    product: Product, machines: tuple[Machine, Machine]
) -> None:
    first, second = machines
    model = product.add_model("roaming", compute_class="remote")
    model.hold()
    model.insert()
    product.wait(
        "a run that no worker serves",
        lambda: any("no worker serves train.remote" in run["sentence"] for run in model.runs()),
    )
    first.start()
    run = model.wait_for_state("running")
    path = f"/v1/runs/{run['id']}"
    product.wait("the author's code to run", lambda: "training on" in product.get(f"{path}/log")["text"])
    assert first.environments
    assert not second.environments
    second.start()
    first.kill()
    product.wait("a second attempt", lambda: len(product.get(path)["attempts"]) == 2)
    model.go()
    model.wait_for_champion(1)
    ended = product.get(path)
    assert [attempt["outcome"] for attempt in ended["attempts"]] == ["lost", "trained"]
    assert [attempt["worker"].partition("@")[0] for attempt in ended["attempts"]] == ["first", "second"]
    assert [path.name for path in first.environments] == [path.name for path in second.environments]
    for attempt in (1, 2):
        assert "training on" in product.get(f"{path}/log?attempt={attempt}")["text"]
    assert not model.processes()


def test_a_machine_scores_a_champion_that_another_has_trained(
    product: Product, machines: tuple[Machine, Machine]
) -> None:
    first, second = machines
    model = product.add_model("handed-on", compute_class="remote")
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
