"""What is tidied away, from outside: however little is kept, what serves, served or is pinned can still be had, byte for byte."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.error
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.product import ROOT, Model, Product

TWO_DAYS_S = 2 * 24 * 3600


@pytest.fixture(scope="module")
def product_alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Product]:
    """A product of its own, since what is kept is the whole stack's; on directories, where a test can make files old."""
    started = Product(tmp_path_factory.mktemp("tidied"))
    try:
        started.start()
        yield started
        started.audit()  # what was tidied away is not missed
    finally:
        started.stop()


def tidy(product: Product, *words: str) -> str | None:
    """What the command prints; None while the bridge's own janitor has the turn."""
    argv = [sys.executable, "-m", "stack", "tidy", "--state", str(product.state), *words]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=60)
    if "another janitor" in done.stderr:
        return None
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def answer(model: Model, path: str) -> int:
    try:
        model.get(path)
    except urllib.error.HTTPError as error:
        return error.code
    except json.JSONDecodeError:
        return 200
    return 200


def pull(product: Product, model: str, version: int, into: Path) -> None:
    product.headrace("pull", model, "--version", str(version), "--into", str(into), cwd=into)


def test_after_an_aggressive_tidy_every_champion_is_whole_and_the_flow_goes_on(
    product_alone: Product, tmp_path: Path
) -> None:
    product = product_alone
    model = product.add_model("kept")
    model.insert()
    model.wait_for_champion(1)
    for number, (release, quality) in enumerate((("1.1.0", 0.65), ("1.2.0", 0.64), ("1.3.0", 0.75)), 2):
        model.release(release, quality)
        assert model.wait_for_verdict(number)["state"] == ("promoted" if quality > 0.7 else "rejected")
    model.wait_for_champion(4)
    product.headrace("pin", "kept", "3", "--reason", "the storefront compares with it")
    files = {number: model.get(f"/versions/{number}")["files"] for number in (1, 2, 3, 4)}

    at = time.time() - TWO_DAYS_S  # what is younger than a day may belong to an upload
    for folder in ("blobs", "runs"):
        for path in (product.state / folder).rglob("*"):
            if path.is_file():
                os.utime(path, (at, at))
    said = tidy(product, "--dry-run")
    assert said is not None
    assert "would be taken" in said
    assert "it was promoted" in said
    product.add_section('[keep]\nruns = "1s"\nrejected = 0\nlogs = "1s"\nenvironments = "1MB"\n')
    product.wait("the janitor to hear of it", lambda: product.get("/v1/status")["tidied"])
    product.wait("the version to be taken", lambda: tidy(product) and model.get("/versions/2")["tidied_at"])

    assert answer(model, f"/versions/2/files/{files[2][0]['path']}") == 410
    assert model.get("/versions/2")["state"] == "rejected", "its row stays"
    assert product.in_mlflow("kept") == [1, 3, 4]
    for number in (1, 3, 4):
        pull(product, "kept", number, tmp_path)
        assert model.get(f"/versions/{number}")["files"] == files[number]
    with pytest.raises(AssertionError, match="tidied away"):
        pull(product, "kept", 2, tmp_path)
    taken = product.get("/v1/status")["tidied"]
    assert taken["error"] is None
    assert "Tidied" in product.headrace("status")
    assert "the storefront compares with it" in product.headrace("version", "kept", "3")

    product.headrace("rollback", "kept", "--to", "1", "--reason", "to see whether it can be had")
    model.wait_for_champion(1)
    model.release("1.4.0", 0.8)
    model.wait_for_champion(5)  # its environment is made again, and champion 1 is scored beside it
    assert model.get("/versions/5")["verdict"]["champion"] == 1
