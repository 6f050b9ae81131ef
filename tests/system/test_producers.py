"""What producers say, over the stream and over REST, and the page that tells them how: its examples are run."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.system.product import ROOT, Product

PAGE = ROOT / "docs" / "how-to" / "producer.md"
REDIS_CLI = '''\
#!{python}
"""As much of redis-cli as the page uses, where there is none."""
import sys
from redis import Redis
words, url, last = sys.argv[1:], "", []
while words[0].startswith("-"):
    option = words.pop(0)
    if option == "-u":
        url = words.pop(0)
    elif option == "-x":
        last = [sys.stdin.read()]
    else:
        assert option == "--raw"
def show(answer):
    for one in answer if isinstance(answer, list) else [answer]:
        show(one) if isinstance(one, list) else print(one.decode() if isinstance(one, bytes) else one)
client = Redis.from_url(url, protocol=2)
client.response_callbacks.clear()
show(client.execute_command(*words, *last))
'''


def redis_url(product: Product) -> str:
    return str(json.loads((product.state / "settings.json").read_text())["redis_url"])


def arrivals(product: Product, dataset: str) -> list[dict[str, Any]]:
    return list(product.get(f"/v1/arrivals?dataset={dataset}&limit=200")["items"])


def test_an_event_over_the_stream_trains_a_model_that_then_serves(product: Product) -> None:
    model = product.add_model("streamed", kind="stream")
    model.wait_for_state("waiting")
    said = product.headrace("send", "streamed", "--from", "0", "--to", "500", "--rows", "500", "--stream")
    assert "of headrace:arrivals" in said
    model.wait_for_champion(1)
    (arrival,) = arrivals(product, "streamed")
    assert (arrival["origin"], arrival["to"], arrival["rows"]) == ("stream", 500, 500)
    (fate,) = product.get(f"/v1/arrivals/{arrival['id']}")["fates"]
    assert (fate["fate"], fate["version"]) == ("trained", 1)
    status = {one["name"]: one for one in product.get("/v1/status")["datasets"]}["streamed"]
    assert (status["kind"], status["cursor"], status["error"]) == ("stream", 500, None)


def test_an_event_over_the_stream_makes_the_watcher_look_at_a_table(product: Product) -> None:
    model = product.add_model("nudged")
    product.wait("the first look", lambda: looked_at(product, "nudged"))
    first = looked_at(product, "nudged")
    product.headrace("send", "nudged", "--id", "n1", "--stream")
    product.wait("a look", lambda: looked_at(product, "nudged") > first)
    assert arrivals(product, "nudged") == []
    model.insert()
    model.wait_for_champion(1)
    assert arrivals(product, "nudged")[0]["event_id"] == "n1"


def looked_at(product: Product, dataset: str) -> str:
    known = {one["name"]: one for one in product.get("/v1/status")["datasets"]}
    return (known.get(dataset) or {}).get("looked_at") or ""


@pytest.fixture
def producer(product: Product, tmp_path: Path) -> dict[str, str]:
    """The variables of the page, and a PATH on which there is a redis-cli."""
    (tool := tmp_path / "redis-cli").write_text(REDIS_CLI.format(python=sys.executable))
    tool.chmod(0o755)
    path = os.environ["PATH"] if shutil.which("redis-cli") else f"{tmp_path}:{os.environ['PATH']}"
    operators = redis_url(product).replace("://:", "://default:")
    return {
        **os.environ,
        "PATH": path,
        "HEADRACE_URL": product.endpoints["api"],
        "HEADRACE_TOKEN": product.token,
        "OPERATOR_REDIS_URL": operators,
        "HEADRACE_REDIS_URL": "redis://loader:a-long-password@" + operators.partition("@")[2],
    }


def run(name: str, producer: dict[str, str], directory: Path, **more: str) -> str:
    found = re.search(rf"<!-- tested: {name} -->\n```(\w+)\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert found, name
    argv = [sys.executable, "-c"] if found[1] == "python" else ["bash", "-euo", "pipefail", "-c"]
    done = subprocess.run(
        [*argv, found[2]], env=producer | more, cwd=directory, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
    refused = re.search(r"^(ERR|NOAUTH|NOPERM|WRONGTYPE)\b|AUTH failed", done.stdout + done.stderr, re.MULTILINE)
    assert not refused, "redis-cli says so and exits with 0: " + done.stdout + done.stderr
    return done.stdout


def test_the_page_for_producers_does_what_it_says(product: Product, producer: dict[str, str], tmp_path: Path) -> None:
    run("user", producer, tmp_path)
    run("redis-cli", producer, tmp_path)
    rejected = product.wait("the rejection", lambda: product.get("/v1/rejections")["items"])[0]
    assert "there is no dataset 'clicks'" in rejected["reason"]
    assert "Rejected from the stream: " in product.headrace("status")
    product.add_model("clicks", kind="rest")
    product.wait("the dataset", lambda: "clicks" in {one["name"] for one in product.get("/v1/status")["datasets"]})
    aside = run("look", producer, tmp_path)
    assert rejected["entry"] in aside
    entry = re.search(r"[0-9]+-[0-9]+", aside)
    assert entry
    run("again", producer, tmp_path, ID=entry[0])
    run("python", producer, tmp_path)
    product.wait("both arrivals", lambda: len(arrivals(product, "clicks")) == 2)
    assert [one["to"] for one in arrivals(product, "clicks")] == [3000, 2000]
    structured, binary, short = map(json.loads, run("rest", producer, tmp_path).replace("}{", "}\n{").splitlines())
    first = arrivals(product, "clicks")[-1]["id"]
    assert [(one["arrival"], one["repeated"]) for one in (structured, binary)] == [(first, True), (first, True)]
    assert (short["arrival"], short["repeated"]) == (arrivals(product, "clicks")[0]["id"], False)
