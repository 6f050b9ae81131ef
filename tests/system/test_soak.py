"""Two minutes of steady work leave memory, descriptors, Redis and the WAL where they were; `make soak` looks for half an hour."""

from __future__ import annotations

import pytest

from bench import soak
from tests.system.product import Product

MINUTES, PAUSE_S = 2.0, 3.0
FOREIGN = ("mlflow", "flower")  # what they keep in memory is their affair; docs/reliability.md has it


@pytest.mark.parametrize("stack", ["embedded"], indirect=True)
def test_what_is_ours_stays_level_while_it_works(product: Product) -> None:
    model = product.add_model("soak", kind="rest")
    product.wait("the dataset to be known", lambda: product.post("/v1/events", soak.event("soak")))
    model.wait_for_champion(1)
    series = soak.work(product, [model], MINUTES, PAUSE_S)
    assert {one.kind for one in series} == set(soak.ALLOWED)
    grew = [f"{one.of}: {one.kind} {one.growth():+.1f}" for one in series if one.grew and one.of not in FOREIGN]
    assert not grew
    assert not model.runs("failed")
    assert len(model.runs("trained")) > MINUTES * 60 / PAUSE_S / 10, "it has worked"
