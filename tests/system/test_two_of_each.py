"""Several watchers, bridges and workers at once: they share the work, take over from one that is silent, and double nothing."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.machine import Machine
from tests.system.product import Product

pytestmark = pytest.mark.parametrize("stack", ["servers"], indirect=True)
SERVICES = {"watcher": "ingest_watcher", "bridge": "registry_bridge", "trainer-standard": "trainer"}


@pytest.fixture
def seconds(product: Product, tmp_path: Path) -> Iterator[list[Machine]]:
    """One more of each service, beside those of the stack."""
    machines = [Machine(product, tmp_path, f"second-{name}", name) for name in SERVICES.values()]
    for machine in machines:
        machine.start(compute_class="standard")
    yield machines
    for machine in machines:
        machine.stop()


def test_two_of_each_share_the_work_and_one_goes_on_alone(product: Product, seconds: list[Machine]) -> None:
    long = product.add_model("long-one")
    long.hold()
    long.insert()
    long.wait_for_state("running")
    models = [product.add_model(f"shared-{n}") for n in range(3)]
    for model in models:
        model.insert()
    for model in models:
        model.wait_for_champion(1)
    assert long.runs("running"), "the short ones did not wait behind the long one"
    long.go()
    long.wait_for_champion(1)
    firsts = [product.pid(name) for name in SERVICES]
    for pid in firsts:
        os.kill(pid, signal.SIGSTOP)
    try:
        for model in models:
            model.insert()
        for model in models:
            model.wait_for_champion(2)
    finally:
        for pid in firsts:
            os.kill(pid, signal.SIGCONT)
    product.audit()
    for model in models:
        assert [run["state"] for run in model.runs()] == ["trained"] * 2
        told = product.hook.of(model.name, "version.promoted")
        assert sorted(one["data"]["version"] for one in told) == [1, 2]
