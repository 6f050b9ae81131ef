"""Redis is the doorbell and no more: rings are lost, it is deaf, full or gone, and every run is trained all the same ."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.redis_server import Valkey, start_valkey
from tests.swallowing import Swallowing
from tests.system.product import Model, Product

GONE_S = 60.0
MANY = 50
WAITING = """
[models.many-{n}]
repository = "{repository}"
release_poll = "1h"
"""


@pytest.fixture(scope="module")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    server = start_valkey(tmp_path_factory.mktemp("valkey"))
    yield server
    server.stop()


@pytest.fixture(scope="module")
def proxy(valkey: Valkey) -> Iterator[Swallowing]:
    with Swallowing(valkey.port) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def product(proxy: Swallowing, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Product]:
    """A stack of one slot that reaches its broker by the proxy."""
    url = f"redis://127.0.0.1:{proxy.port}/0"
    started = Product(tmp_path_factory.mktemp("product"), elsewhere={"HEADRACE_REDIS_URL": url})
    try:
        started.start()
        yield started
        started.audit()
    finally:
        started.stop()


def serves_once(model: Model) -> None:
    model.wait_for_champion(1)
    assert len(model.versions()) == 1
    model.product.wait("its consumer to be told", lambda: model.product.hook.of(model.name, "version.promoted"))
    assert len(model.product.hook.of(model.name, "version.promoted")) == 1


def test_the_flow_goes_on_while_every_second_message_is_swallowed(
    product: Product, proxy: Swallowing, valkey: Valkey
) -> None:
    valkey.command("SET", "unacked_mutex", "left by a worker that died")  # without a time to live: nobody waits for it
    proxy.every = 2
    models = [product.add_model(f"swallowed-{n}") for n in range(3)]
    for model in models:
        model.insert()
    for model in models:
        serves_once(model)
    assert proxy.swallowed >= 2
    proxy.every = None


def test_fifty_runs_behind_a_long_one_leave_redis_empty(product: Product, valkey: Valkey) -> None:
    long = product.add_model("long")
    long.hold()
    long.insert()
    long.wait_for_state("running")
    try:
        many_wait_and_none_in_redis(product, valkey)
    finally:
        product.forget_models()
        long.go()
    product.wait("the waiting ones to be called off", lambda: not waiting(product))


def many_wait_and_none_in_redis(product: Product, valkey: Valkey) -> None:
    lost = unacknowledged(valkey)  # by a worker that died with one in its hand
    many = product.add_model("many")
    for n in range(1, MANY):  # its releases, under as many names
        product.add_section(WAITING.format(n=n, repository=many.repository.as_uri()))
    product.wait("a run of each", lambda: len(waiting(product)) == MANY)
    many.insert()
    product.wait("all to be due", lambda: all(run["due_at"] for run in waiting(product)))
    left = int(valkey.command("LLEN", "train.standard")[1:])
    assert left <= 2, "at most the bells of a worker that has just died, and not one for each run"
    product.wait("what is being taken to be acknowledged", lambda: unacknowledged(valkey) <= lost)


def unacknowledged(valkey: Valkey) -> int:
    return int(valkey.command("HLEN", "unacked")[1:])


def waiting(product: Product) -> list[dict[str, Any]]:
    return list(product.get("/v1/runs?state=waiting&limit=100")["items"])


def test_a_connection_that_is_half_open_costs_seconds_and_the_deaf_worker_is_replaced(
    product: Product, proxy: Swallowing
) -> None:
    before = product.pid("trainer-standard")
    proxy.cut()
    model = product.add_model("deaf")
    model.insert()
    serves_once(model)

    def hears_again() -> bool:
        model.insert()
        time.sleep(3)  # the pace of the condition: each look is a run of its own
        said = Path(product.endpoints["logs"]["trainer-standard"]).read_text()
        return product.pid("trainer-standard") != before or "Connection to broker lost" in said

    product.wait("the worker to be replaced, or to have noticed", hears_again)


def test_reports_are_taken_and_trained_while_redis_is_full(product: Product, valkey: Valkey) -> None:
    model = product.add_model("full", kind="rest")
    product.wait("a release", lambda: model.get()["release"])
    valkey.command("CONFIG", "SET", "maxmemory", "1")
    try:
        told = product.post("/v1/events", {"dataset": "full", "from": 0, "to": 5, "rows": 5})
        assert told["runs"]
        serves_once(model)
    finally:
        valkey.command("CONFIG", "SET", "maxmemory", "0")


def test_three_restarts_in_three_seconds_leave_nobody_deaf(product: Product, valkey: Valkey) -> None:
    model = product.add_model("restarted")
    for _ in range(3):
        valkey.restart()  # empty each time
        model.insert()
    model.wait_for_state("trained")

    def rests() -> bool:
        return {run["state"] for run in model.runs()} == {"trained"} and len(model.versions()) == len(model.runs())

    product.wait("all to be trained", rests)


def test_the_flow_goes_on_while_redis_is_gone_for_a_minute(product: Product, valkey: Valkey) -> None:
    valkey.kill()
    gone_at = time.monotonic()
    model = product.add_model("gone")
    model.insert()
    serves_once(model)
    product.wait("the minute to be over", lambda: time.monotonic() - gone_at > GONE_S, GONE_S + 10)
    valkey.restart()
    model.insert()
    product.wait("the second version", lambda: len(model.versions()) == 2)
    keys = int(valkey.command("DBSIZE")[1:].split(b"\r")[0])
    assert keys < 100, "workers that die leave nothing behind"
