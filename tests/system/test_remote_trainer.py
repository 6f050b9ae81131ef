"""Trainers on machines of their own: with Redis, the ledger and the blob store in common, and no file system."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.machine import Machine
from tests.system.product import Product

pytestmark = pytest.mark.parametrize("stack", ["servers"], indirect=True)


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
