"""What a sender may try, and the answer that each gets: never a 500, and nothing is stored."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path

import pytest

from shared import http
from shared.http import MAX_BODY_BYTES
from shared.ledger import arrivals, deliveries, runs
from tests.apis import Api, serve
from tests.ledgers import adopt

PLAIN = "application/json"
EVENT = "application/cloudevents+json"
CLOUD = {"specversion": "1.0", "id": "1", "source": "/s", "type": "dataset.arrived", "subject": "reported"}


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """One for all: nothing that comes in here is stored."""
    with serve(tmp_path_factory.mktemp("api")) as running:
        adopt(running.ledger, dataset="reported")
        yield running


def plain(**changes: object) -> bytes:
    return json.dumps({"dataset": "reported", **changes}).encode()


def cloud(**changes: object) -> bytes:
    return json.dumps(CLOUD | changes).encode()


BODIES = {
    "100,000 levels": (PLAIN, b"[" * 100_000, 400),
    "100,000 levels of objects": (PLAIN, b'{"a":' * 100_000, 400),
    "a number of 5,000 digits": (PLAIN, b'{"dataset":"reported","rows":' + b"9" * 5000 + b"}", 400),
    "NaN": (PLAIN, b'{"dataset":"reported","rows":NaN}', 400),
    "an infinity": (PLAIN, b'{"dataset":"reported","rows":-Infinity}', 400),
    "1e999": (PLAIN, b'{"dataset":"reported","rows":1e999}', 400),
    "a key twice": (PLAIN, b'{"dataset":"reported","dataset":"flights"}', 400),
    "not UTF-8": (PLAIN, b'{"dataset":"reported\xff"}', 400),
    "UTF-16": (PLAIN, '{"dataset":"reported"}'.encode("utf-16"), 400),
    "half a character": (PLAIN, b'{"dataset":"reported","id":"\\ud800"}', 400),
    "NUL in text": (PLAIN, b'{"dataset":"reported","id":"a\\u0000b"}', 400),
    "no JSON": (PLAIN, b"dataset=reported", 400),
    "nothing": (PLAIN, b"", 400),
    "gzip": (PLAIN, b"\x1f\x8b\x08\x00", 400),
    "a list": (PLAIN, b"[]", 422),
    "null": (PLAIN, b"null", 422),
    "a form": ("application/x-www-form-urlencoded", b"dataset=reported", 415),
    "multipart": ("multipart/form-data; boundary=x", b"--x--", 415),
    "plain text": ("text/plain", plain(), 415),
    "a batch": ("application/cloudevents-batch+json", b"[]", 415),
    "another charset": ("application/json; charset=utf-16", plain(), 415),
    "no media type": ("", plain(), 415),
    "a CloudEvent as plain JSON": (PLAIN, cloud(), 415),
    "too large": (PLAIN, b" " * (MAX_BODY_BYTES + 1), 413),
    "no dataset": (PLAIN, b"{}", 422),
    "a path for a name": (PLAIN, plain(dataset="../../etc/passwd"), 422),
    "a slash in a name": (PLAIN, plain(dataset="a/b"), 422),
    "an encoded path": (PLAIN, plain(dataset="a%2e%2e"), 422),
    "full-width letters": (PLAIN, plain(dataset="Ａ"), 422),
    "a name of 10 kB": (PLAIN, plain(dataset="a" * 10_000), 422),
    "a name with a line end": (PLAIN, plain(dataset="reported\n"), 422),
    "a number for a name": (PLAIN, plain(dataset=7), 422),
    "an unknown dataset": (PLAIN, plain(dataset="unknown"), 404),
    "text for a number": (PLAIN, plain(rows="5"), 422),
    "a fraction of a row": (PLAIN, plain(rows=1.5), 422),
    "true for a number": (PLAIN, plain(rows=True), 422),
    "minus one row": (PLAIN, plain(rows=-1), 422),
    "a command": (PLAIN, plain(command="rm -rf /"), 422),
    "an environment": (PLAIN, plain(env={"LD_PRELOAD": "x"}), 422),
    "a queue": (PLAIN, plain(queue="train.gpu"), 422),
    "a range that falls": (PLAIN, plain(**{"from": 9, "to": 3}), 422),
    "an id of 10 kB": (PLAIN, plain(id="x" * 10_000), 422),
    "an object for an id": (PLAIN, plain(id={"$ne": None}), 422),
    "another version of CloudEvents": (EVENT, cloud(specversion="0.3"), 422),
    "another type of event": (EVENT, cloud(type="model.promote"), 422),
    "the year 9999": (EVENT, cloud(time="9999-01-01T00:00:00Z"), 422),
    "a time without a zone": (EVENT, cloud(time="2026-11-23T18:00:00"), 422),
    "seconds for a time": (EVENT, cloud(time="1700000000"), 422),
    "data of another media type": (EVENT, cloud(datacontenttype="text/xml", data="<a/>"), 422),
    "no source": (EVENT, json.dumps({key: CLOUD[key] for key in CLOUD if key != "source"}).encode(), 422),
}


@pytest.mark.parametrize("name", BODIES)
def test_a_bad_report_is_refused_with_a_problem_and_stores_nothing(api: Api, name: str) -> None:
    kind, body, status = BODIES[name]
    answer = api.request("POST", "/v1/events", content=body, headers={"Content-Type": kind} if kind else {})
    assert (answer.status_code, answer.headers["Content-Type"]) == (status, "application/problem+json"), answer.text
    assert answer.json()["detail"]
    with api.ledger.read() as tx:
        assert arrivals.find_all(tx, dataset=None, before=None, limit=5) == []
        assert deliveries.read(tx, 0, 5) == []


CE = {"ce-specversion": "1.0", "ce-id": "1", "ce-source": "/s", "ce-type": "dataset.arrived", "ce-subject": "reported"}
HEADERS: dict[str, tuple[list[tuple[str, str | bytes]], int]] = {
    "no id": ([("ce-id", "")], 422),
    "no ce-id at all": ([("-ce-id", "")], 422),
    "the id twice": ([("ce-id", "2")], 400),
    "raw UTF-8": ([("ce-source", "Zürich".encode())], 400),
    "a tab": ([("ce-source", "a\tb")], 400),
    "latin-1 in percent": ([("ce-source", "Z%FCrich")], 400),
    "half a code": ([("ce-source", "100%")], 400),
    "NUL in percent": ([("ce-source", "a%00b")], 422),
    "a line end in percent": ([("ce-subject", "reported%0A")], 422),
    "half a character in percent": ([("ce-source", "%ED%A0%80")], 400),
    "an id of 300": ([("ce-id", "x" * 300)], 422),
    "an extension of 10 kB": ([("ce-broker", "x" * 10_000)], 400),
    "a name that is none": ([("ce-a-b", "x")], 422),
    "an empty name": ([("ce-", "x")], 422),
    "data as a header": ([("ce-data", "{}")], 400),
    "the media type as an attribute": ([("ce-datacontenttype", "application/json")], 400),
    "a command": ([("ce-command", "rm")], 422),
    "a queue": ([("ce-queue", "train.gpu")], 422),
    "another version": ([("ce-specversion", "0.3")], 422),
    "another type": ([("ce-type", "model.promote")], 422),
    "an unknown dataset": ([("ce-subject", "unknown")], 404),
    "XML": ([("Content-Type", "text/xml")], 415),
    "a key of 257": ([("Idempotency-Key", "k" * 257)], 422),
    "an empty key": ([("Idempotency-Key", "")], 422),
    "a key in UTF-8": ([("Idempotency-Key", "ß".encode())], 422),
    "a key with a tab": ([("Idempotency-Key", "a\tb")], 422),
    "two keys": ([("Idempotency-Key", "a"), ("Idempotency-Key", "b")], 400),
}
TWICE = {"the id twice", "two keys"}


@pytest.mark.parametrize("name", HEADERS)
def test_hostile_headers_are_refused_with_a_problem_and_store_nothing(api: Api, name: str) -> None:
    changes, status = HEADERS[name]
    changed = {key.lower() for key, _ in changes} if name not in TWICE else set()
    changed |= {key[1:].lower() for key, _ in changes if key.startswith("-")}
    kept = [(key, value) for key, value in {**CE, "content-type": PLAIN}.items() if key not in changed]
    token = ("Authorization", f"Bearer {api.secrets['all']}")
    sent = [token, *kept, *((key, value) for key, value in changes if not key.startswith("-"))]
    raw = [(key.encode(), value if isinstance(value, bytes) else value.encode()) for key, value in sent]
    answer = api.portal.call(partial(api.client.post, "/v1/events", content=b"{}", headers=raw))
    assert (answer.status_code, answer.headers["Content-Type"]) == (status, "application/problem+json"), answer.text
    with api.ledger.read() as tx:
        assert arrivals.find_all(tx, dataset=None, before=None, limit=5) == []


def test_a_batch_is_refused_with_advice(api: Api) -> None:
    headers = {"Content-Type": "application/cloudevents-batch+json"}
    answer = api.request("POST", "/v1/events", content=b"[]", headers=headers)
    assert (answer.status_code, "each event by itself" in answer.json()["advice"]) == (415, True)


HUGE = "9" * 30
ADDRESSES = {
    "/v1/runs?limit=-1": 422,
    "/v1/runs?limit=0": 422,
    "/v1/runs?limit=1000000000": 422,
    f"/v1/runs?limit={HUGE}": 422,
    "/v1/runs?after=garbage": 422,
    "/v1/runs?after=%00%ff": 422,
    "/v1/runs?after=" + "A" * 5000: 422,
    "/v1/runs?state=exploded": 422,
    "/v1/runs?model=a%00b": 422,
    "/v1/runs?model=' OR 1=1 --": 422,
    f"/v1/runs/{HUGE}": 422,
    "/v1/runs/-1": 422,
    "/v1/runs/abc": 422,
    "/v1/runs/1/log?offset=-1": 422,
    f"/v1/runs/1/log?offset={HUGE}": 422,
    "/v1/runs/1/log?wait=1e9": 422,
    "/v1/runs/1/log?wait=nan": 422,
    "/v1/runs/1/log?attempt=0": 422,
    "/v1/runs/99/log": 404,
    f"/v1/arrivals/{HUGE}": 422,
    "/v1/arrivals/7": 404,
    "/v1/arrivals?dataset=" + "a" * 100: 422,
    "/v1/models/Ａ": 422,
    "/v1/models/unknown": 404,
    "/v1/models/" + "a" * 10_000: 422,
    "/v1/models/a%00b": 422,
    "/v1/models/unknown/why": 404,
    "/v1/models/unknown/versions": 404,
    "/v1/models/delays/versions/0": 422,
    f"/v1/models/delays/versions/{HUGE}": 422,
    "/v1/models/delays/versions/latest": 422,
    "/v1/models/delays/versions/7": 404,
    "/v1/models/delays/versions/champion": 404,
    "/v1/models/delays/versions/1/files/..%2f..%2fetc%2fpasswd": 422,
    "/v1/models/delays/versions/1/files/%2fetc%2fpasswd": 422,
    "/v1/models/delays/versions/1/files/a%5c..%5cb": 422,
    "/v1/models/delays/versions/1/files/a%00b": 422,
    "/v1/models/delays/versions/1/files/MLmodel": 404,
    "/v1/rejections?after=garbage": 422,
    "/v1/rejections?limit=0": 422,
    "/v1/notices?after=-1": 422,
    f"/v1/notices?after={HUGE}": 422,
    "/v1/notices?after='; DROP TABLE notice": 422,
    "/v1/notices?types=model.exploded": 422,
    "/v1/notices?models=a%00b": 422,
    "/v1/notices?wait=31": 422,
    "/v1/deliveries?state=lost": 422,
    "/v1/deliveries?subject=" + "a" * 100: 422,
}


@pytest.mark.parametrize("address", ADDRESSES, ids=lambda address: address[:60])
def test_a_bad_address_is_refused_with_a_problem(api: Api, address: str) -> None:
    answer = api.get(address)
    assert (answer.status_code, answer.headers["Content-Type"]) == (ADDRESSES[address], "application/problem+json")


ACTS = {
    "text for a version": ("/v1/models/delays/promote", {"version": "3", "reason": "r"}, 422),
    "no reason": ("/v1/models/delays/promote", {"version": 3}, 422),
    "an empty reason": ("/v1/models/delays/promote", {"version": 3, "reason": ""}, 422),
    "a reason of 10 kB": ("/v1/models/delays/rollback", {"reason": "r" * 10_000}, 422),
    "a version that is not there": ("/v1/models/delays/promote", {"version": 3, "reason": "r"}, 404),
    "a rollback to nothing": ("/v1/models/delays/rollback", {"reason": "r"}, 409),
    "a rollback of an unknown model": ("/v1/models/unknown/rollback", {"reason": "r"}, 404),
    "an unknown model": ("/v1/runs", {"model": "unknown"}, 404),
    "a path for a model": ("/v1/runs", {"model": "../x"}, 422),
    "a model and a queue": ("/v1/runs", {"model": "delays", "queue": "train.gpu"}, 422),
    "a run that is not there": ("/v1/runs/99/cancel", {}, 404),
    "a list for a body": ("/v1/runs/1/cancel", [], 422),
    "a retry of what waits": ("/v1/runs/1/retry", {}, 409),
    "an unknown delivery": ("/v1/deliveries/msg_" + "0" * 32 + "/replay", None, 404),
    "a bad id of a delivery": ("/v1/deliveries/msg_1/replay", None, 422),
}


@pytest.mark.parametrize("name", ACTS)
def test_a_bad_act_is_refused_with_a_problem(api: Api, name: str) -> None:
    path, body, status = ACTS[name]
    answer = api.post(path, body)
    assert (answer.status_code, answer.headers["Content-Type"]) == (status, "application/problem+json"), answer.text
    with api.ledger.read() as tx:
        assert [row.id for row in runs.find_all(tx)] == [1]


def test_a_refusal_names_each_field_that_is_wrong(api: Api) -> None:
    told = api.post("/v1/events", {"dataset": "Reported", "rows": "5", "command": "x"}).json()
    assert {remark["field"] for remark in told["errors"]} == {"dataset", "rows", "command"}
    told = api.post("/v1/runs", {"model": 7, "queue": "x"}).json()
    assert {remark["field"] for remark in told["errors"]} == {"model", "queue"}
    told = api.get("/v1/runs", limit=0).json()
    assert [remark["field"] for remark in told["errors"]] == ["limit"]


def test_a_body_without_a_length_is_cut_off_at_the_limit(api: Api) -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while sent < 50 * MAX_BODY_BYTES:
            sent += 65536
            yield b" " * 65536

    answer = api.request("POST", "/v1/events", content=endless(), headers={"Content-Type": PLAIN})
    assert (answer.status_code, answer.headers["Connection"]) == (413, "close")
    assert sent <= MAX_BODY_BYTES + 2 * 65536


def test_a_body_that_says_it_is_too_large_is_not_read_at_all(api: Api) -> None:
    read = []

    async def large() -> AsyncIterator[bytes]:
        read.append(b" ")
        yield b" " * 5 * MAX_BODY_BYTES

    headers = {"Content-Type": PLAIN, "Content-Length": str(5 * MAX_BODY_BYTES)}
    assert api.request("POST", "/v1/events", content=large(), headers=headers).status_code == 413
    assert read == []


def test_a_body_that_does_not_come_is_not_waited_for(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "BODY_S", 0.1)

    async def trickle() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.Event().wait()

    began = time.monotonic()
    answer = api.request("POST", "/v1/events", content=trickle(), headers={"Content-Type": PLAIN})
    assert time.monotonic() - began < 5
    assert (answer.status_code, answer.headers["Connection"]) == (408, "close")


def test_a_body_of_a_negative_length_is_refused(api: Api) -> None:
    headers = {"Content-Type": PLAIN, "Content-Length": "-1"}
    assert api.request("POST", "/v1/events", content=plain(), headers=headers).status_code == 400


def test_a_cursor_of_another_list_is_refused(tmp_path: Path) -> None:
    with serve(tmp_path) as api:
        for _ in range(3):
            api.post("/v1/events", {"dataset": "reported"})
        cursor = api.get("/v1/arrivals", limit=1).json()["next"]
        assert api.get("/v1/arrivals", after=cursor).status_code == 200
        assert api.get("/v1/runs", after=cursor).status_code == 422
