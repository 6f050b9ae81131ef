"""The main job from outside: rows in a table, a better model in a consumer's hands."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

from tests.system.product import Product


def test_new_rows_become_a_promoted_version_that_a_consumer_holds(product: Product, tmp_path: Path) -> None:
    model = product.add_model("delays")
    model.insert(1000)
    model.wait_for_champion(1)
    version = model.get("/versions/champion")
    assert version["metrics"]["auc"] == 0.7
    assert version["verdict"]["decision"] == "promote"
    assert version["lineage"]["cut"]["delays"]["rows"] == 1000
    assert version["metrics"]["rows"] == 900  # a tenth is the holdout, which nobody trains on
    (told,) = product.wait("the consumer to be told", lambda: product.hook.of("delays", "version.promoted"))
    assert told["data"]["version"] == 1
    assert told["data"]["digest"] == version["digest"]
    assert product.hook.forged == 0

    (tmp_path / "models.toml").write_text('[models.delays]\nversion = "champion"\n')
    product.headrace("pull", cwd=tmp_path)
    code = "import mlflow.pyfunc, sys; print(*[mlflow.pyfunc.load_model(model).predict([[1], [2]]) for model in sys.argv[1:]])"
    loaded = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "models/delays/1"), "models:/delays@champion"],
        env={**os.environ, "MLFLOW_TRACKING_URI": product.endpoints["mlflow"]}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert loaded.stdout.splitlines()[-1] == "[449.5, 449.5] [449.5, 449.5]", "pulled, and from MLflow under its alias"


def test_consumers_have_a_version_to_build_against_before_the_model_is_trained(
    product: Product, tmp_path: Path
) -> None:
    model = product.add_model("early", policy='{ min_rows = 1, quiet = "1h" }')
    model.wait_for_state("waiting")
    product.headrace("retrain", "early", "--sample", "10%")
    model.insert(100)
    version = product.wait(
        "the sample", lambda: next(iter(v for v in model.versions() if v["state"] == "sample"), None)
    )
    assert (version["sample"], version["verdict"], version["lineage"]["arrivals"]) == ("10%", None, [])
    assert version["metrics"]["rows"] == 9  # the newest of the ninety that are not held out
    number = str(version["version"])
    said = product.headrace("pull", "early", "--version", number, cwd=tmp_path)
    assert "trained on a sample of 10% of the rows: build against it" in said
    assert (tmp_path / "models" / "early" / number / "MLmodel").is_file()
    assert f"Version {number} (run {version['run']}) is a sample" in product.headrace("why", "early")
    real = 3 - version["version"]  # of the run that was planned with the release, beside it
    model.wait_for_champion(real)
    assert model.get("/versions/champion")["sample"] is None
    product.wait("the news", lambda: product.hook.of("early", "version.promoted"))
    assert [told["data"]["version"] for told in product.hook.of("early", "version.promoted")] == [real]
    campaign = product.headrace("retrain", "--dataset", "early", "--again")
    assert re.search(r"^early: run \d+ waiting$.*^early: run \d+ promoted \(version 3\)$", campaign, re.S | re.M)
    assert campaign.endswith("1 of 1: 1 promoted\n")


def test_a_worse_release_is_rejected_and_the_champion_stays(product: Product) -> None:
    model = product.add_model("worse")
    model.insert()
    model.wait_for_champion(1)
    model.release("1.1.0", 0.65)
    rejected = model.wait_for_verdict(2)
    assert rejected["state"] == "rejected"
    assert rejected["verdict"]["champion"] == 1
    assert any("0.65 against 0.7 of champion 1" in reason for reason in rejected["verdict"]["reasons"])
    assert model.get()["champion"]["version"] == 1
    assert model.runs()[0]["cut_digest"] == model.runs()[1]["cut_digest"]  # no row was new
    product.wait("the news", lambda: product.hook.of("worse", "version.rejected"))


def test_an_arrival_joins_the_run_that_waits_and_the_next_one_does_not(product: Product) -> None:
    model = product.add_model("joined", policy='{ min_rows = 150, quiet = "1s" }')
    model.insert(100)
    model.wait_for_champion(1)  # the first run was asked for by the release
    model.insert(100)
    waiting = model.wait_for_state("waiting")
    sentences = product.headrace("why", "joined")
    assert "100 new rows and waits for 150" in sentences
    model.insert(100)
    model.wait_for_champion(2)
    version = model.get("/versions/2")
    assert version["run"] == waiting["id"]
    assert len(version["lineage"]["arrivals"]) == 2
    for arrival in version["lineage"]["arrivals"]:
        (fate,) = product.get(f"/v1/arrivals/{arrival}")["fates"]
        assert (fate["fate"], fate["run"], fate["version"]) == ("trained", waiting["id"], 2)


def test_a_person_retrains_cancels_and_rolls_back(product: Product) -> None:
    model = product.add_model("handled")
    model.insert()
    model.wait_for_champion(1)
    product.headrace("retrain", "handled", "--again")
    model.wait_for_champion(2)
    product.headrace("rollback", "handled", "--reason", "the shop says so")
    model.wait_for_champion(1)
    (told,) = product.wait("the news", lambda: product.hook.of("handled", "version.rolled_back"))
    assert (told["data"]["version"], told["data"]["replaces"]) == (1, 2)
    model.hold()
    product.headrace("retrain", "handled", "--again")
    run = model.wait_for_state("running")
    product.wait("the child to run", model.processes)
    product.headrace("cancel", str(run["id"]))
    model.wait_for_state("cancelled")
    assert not model.processes()
    model.go()
    assert json.loads(product.headrace("status", "--json"))["runs"].get("running", 0) == 0


def test_an_authors_error_fails_the_run_with_its_traceback_and_is_not_tried_again(product: Product) -> None:
    model = product.add_model("broken")
    source = model.repository / "small.py"
    model.wait_for_state("waiting")  # v1.0.0 is known; its data is not there yet
    source.write_text(
        source.read_text().replace(
            "rows = job.datasets", "raise RuntimeError('no such thing')\n    rows = job.datasets"
        )
    )
    model._git("commit", "--quiet", "--all", "-m", "Break it")
    model._git("tag", "v1.0.1")
    product.wait("the release", lambda: model.get()["release"]["name"] == "v1.0.1")
    model.insert()
    failed = model.wait_for_state("failed")
    assert failed["error"]["kind"] == "author_error"
    assert "RuntimeError: no such thing" in failed["error"]["message"]
    assert "small.py" in failed["error"]["message"]
    run = product.get(f"/v1/runs/{failed['id']}")
    assert len(run["attempts"]) == 1
    assert "training on" in product.headrace("logs", str(failed["id"]))
    product.wait("the news", lambda: product.hook.of("broken", "run.failed"))


def test_too_few_rows_to_judge_on_leave_the_version_awaiting_with_what_is_missing(product: Product) -> None:
    model = product.add_model("scarce")
    model.insert(5)
    version = model.wait_for_verdict(1)
    assert (version["state"], version["verdict"]["decision"]) == ("awaiting", "undecided")
    assert version["verdict"]["reasons"] == ["the candidate has no scores: the holdout has no rows yet"]
    assert "Version 1 (run" in product.headrace("why", "scarce")
    product.headrace("promote", "scarce", "1", "--reason", "better than nothing")
    model.wait_for_champion(1)
    model.insert(95)
    model.wait_for_champion(2)
