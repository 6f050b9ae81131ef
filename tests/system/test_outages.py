"""What dies, and what goes on all the same."""

from __future__ import annotations

import contextlib
import os
import signal
import urllib.request

import pytest

from tests.system.product import Model, Product


def test_a_killed_trainers_run_is_finished_by_another_and_registered_once(product: Product) -> None:
    model = product.add_model("killed")
    model.hold()
    model.insert()
    run = model.wait_for_state("running")
    before = product.wait("the child to run", model.processes)
    product.kill("trainer-standard")
    product.wait("the first attempt's processes to be gone", lambda: not set(before) & set(model.processes()))
    product.wait("a second attempt", lambda: len(product.get(f"/v1/runs/{run['id']}")["attempts"]) == 2)
    model.go()
    model.wait_for_champion(1)
    ended = product.get(f"/v1/runs/{run['id']}")
    assert [attempt["outcome"] for attempt in ended["attempts"]] == ["lost", "trained"]
    assert len(model.versions()) == 1
    assert len(product.in_mlflow("killed")) == 1
    assert not model.processes()


@pytest.mark.parametrize("stack", ["embedded"], indirect=True)
def test_a_run_that_loses_three_workers_is_parked_and_the_others_go_on(product: Product) -> None:
    poison = product.add_model("poison")
    poison.hold()
    poison.insert()

    def attempts() -> int:
        running = poison.runs("running")
        return len(product.get(f"/v1/runs/{running[0]['id']}")["attempts"]) if running else 0

    for attempt in (1, 2, 3):
        product.wait(f"attempt {attempt} to run", lambda expected=attempt: attempts() == expected)  # type: ignore[misc]
        product.kill("trainer-standard")
    failed = poison.wait_for_state("failed")
    assert failed["error"]["message"] == "3 workers were lost while they trained it"
    assert "3 workers were lost" in product.headrace("why", "poison")
    other = product.add_model("after-the-poison")
    other.insert()
    other.wait_for_champion(1)
    assert not poison.processes()
    poison.go()


def test_flushall_with_runs_waiting_loses_nothing(product: Product) -> None:
    models = [product.add_model(f"flushed-{n}") for n in range(4)]
    for model in models:
        model.hold()
        model.insert()
    product.wait("one run to hold the only slot", lambda: any(model.runs("running") for model in models))
    product.wait("the others to be due", lambda: sum(bool(model.runs()) for model in models) == 4)
    product.redis("FLUSHALL")
    for model in models:
        model.go()
    for model in models:
        model.wait_for_champion(1)
        assert len(model.versions()) == 1


def test_a_run_that_ends_while_mlflow_is_down_is_registered_when_it_is_back(product: Product) -> None:
    model = product.add_model("unregistered")
    model.hold()
    model.insert()
    model.wait_for_state("running")
    os.killpg(product.pid("mlflow"), signal.SIGSTOP)  # the command line's process and the server below it
    try:
        with pytest.raises(OSError, match="timed out"):
            urllib.request.urlopen(product.endpoints["mlflow"] + "/health", timeout=1)
        model.go()
        run = model.wait_for_state("trained")
        product.wait("the bridge to have tried", lambda: "MLflow" in product.headrace("why", "unregistered"), 60)
        assert product.get(f"/v1/runs/{run['id']}")["version"] is None
    finally:
        product.kill("mlflow")
    model.wait_for_champion(1)
    assert len(product.in_mlflow("unregistered")) == 1


@pytest.mark.parametrize("process", ["api", "watcher", "bridge", "valkey"])
@pytest.mark.parametrize("stack", ["servers"], indirect=True)  # the storm strikes them on the embedded one
def test_the_flow_goes_on_after_the_death_of(product: Product, process: str) -> None:
    model = product.add_model(f"after-{process}")
    model.hold()
    model.insert()
    model.wait_for_state("running")
    product.kill(process)
    model.go()
    model.wait_for_champion(1)
    assert len(model.versions()) == 1
    product.wait("the consumer to be told once", lambda: len(product.hook.of(model.name, "version.promoted")) == 1)


@pytest.mark.parametrize("stack", ["servers"], indirect=True)
def test_a_rolling_restart_of_every_service_under_load_loses_and_doubles_nothing(product: Product) -> None:
    busy, others = product.add_model("rolling"), [product.add_model(f"beside-{n}") for n in range(3)]
    busy.hold()
    busy.insert()
    run = busy.wait_for_state("running")
    for process in ("trainer-standard", "watcher", "bridge", "api", "valkey", "mlflow"):
        for model in others:
            model.insert()
        product.restart(process)
    busy.go()
    for model in (busy, *others):
        comes_to_rest_with_each_run_registered_and_told_once(model)
    outcomes = [attempt["outcome"] for attempt in product.get(f"/v1/runs/{run['id']}")["attempts"]]
    assert set(outcomes[:-1]) == {"handed_back"}
    assert outcomes[-1] == "trained"
    assert len(product.hook.ids) == len(set(product.hook.ids))


def comes_to_rest_with_each_run_registered_and_told_once(model: Model) -> None:
    def serves_the_last() -> bool:
        states = {run["state"] for run in model.runs()}
        return states == {"trained"} and (model.get()["champion"] or {}).get("version") == len(model.runs())

    product, hook = model.product, model.product.hook
    product.wait(f"every run of {model.name} to be trained and the last to serve", serves_the_last)
    assert len(model.versions()) == len(model.runs()) == len(product.in_mlflow(model.name))
    promoted = [version["version"] for version in model.versions() if version["state"] == "promoted"]
    product.wait("its consumer to be told", lambda: len(hook.of(model.name, "version.promoted")) >= len(promoted))
    assert sorted(one["data"]["version"] for one in hook.of(model.name, "version.promoted")) == sorted(promoted)


def test_a_training_that_is_killed_is_tried_again(product: Product) -> None:
    model = product.add_model("shot")
    model.hold()
    model.insert()
    run = model.wait_for_state("running")
    log = f"/v1/runs/{run['id']}/log"
    product.wait("the author's code to run", lambda: "training on" in product.get(log)["text"])
    for pid in model.processes():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    retried = model.wait_for_state("retrying")
    assert retried["id"] == run["id"]
    assert "tries again after killed" in product.headrace("why", "shot")
    model.go()
    model.wait_for_champion(1)
    outcomes = [attempt["outcome"] for attempt in product.get(f"/v1/runs/{run['id']}")["attempts"]]
    assert outcomes == ["failed", "trained"]


def test_a_training_that_takes_too_long_is_stopped_with_all_that_it_started(product: Product) -> None:
    model = product.add_model("endless", more='time_limit = "1s"')
    model.hold()
    model.insert()
    failed = model.wait_for_state("failed")
    assert failed["error"]["kind"] == "time_limit"
    assert not model.processes()
    model.go()
