"""One event in each form that HTTP carries it in, and keys that make sending again safe."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from httpx import Response

from shared.ledger import arrivals, deliveries, rejections
from shared.ledger.rejections import Rejected
from tests.apis import Api, serve
from tests.ledgers import adopt, grow

TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
STRUCTURED = "application/cloudevents+json"
EVENT: dict[str, Any] = {
    "specversion": "1.0",
    "id": "batch-1",
    "source": "/loader",
    "type": "dataset.arrived",
    "subject": "reported",
}
DATA = {"from": 10, "to": 20, "rows": 10}


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Api]:
    with serve(tmp_path) as running:
        adopt(running.ledger, dataset="reported")
        yield running


def structured(api: Api, **event: object) -> Response:
    return api.post("/v1/events", EVENT | event, headers={"Content-Type": STRUCTURED})


def binary(api: Api, data: object = None, **attributes: str) -> Response:
    headers = {f"ce-{name}": value for name, value in (EVENT | attributes).items()}
    return api.request("POST", "/v1/events", headers=headers, **({} if data is None else {"json": data}))


def stored(api: Api) -> list[Any]:
    with api.ledger.read() as tx:
        return arrivals.find_all(tx, dataset=None, before=None, limit=99)


def test_the_binary_mode_says_the_very_same(api: Api) -> None:
    first = structured(api, data=DATA)
    second = binary(api, DATA)
    assert (first.status_code, second.status_code) == (202, 202)
    assert second.json() == first.json() | {"repeated": True}
    third = binary(api, DATA, id="batch-2", time="2026-11-24T09:00:00Z", traceparent=TRACE, sequence="7").json()
    assert third["arrival"] == 2
    newest, oldest = stored(api)
    assert (newest.above, newest.upto, newest.rows, newest.source) == (10, 20, 10, "/loader")
    assert (oldest.above, oldest.upto, oldest.rows, oldest.source) == (10, 20, 10, "/loader")
    assert newest.traceparent == TRACE


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("Euro%20%E2%82%AC%20%F0%9F%98%80", "Euro € 😀"),
        ("100%25", "100%"),
        ("%2525", "%25"),
        ('"in quotes"', "in quotes"),
        (r'"a \"b\" \\ c%21"', 'a "b" \\ c!'),
        ('"', '"'),
        ("plain words", "plain words"),
    ],
)
def test_attributes_are_decoded_as_the_binding_says(api: Api, written: str, read: str) -> None:
    assert binary(api, DATA, source=written).status_code == 202
    assert stored(api)[0].source == read
    assert structured(api, data=DATA, source=read).json()["repeated"]


@pytest.mark.parametrize("content", [b"", b"null", b"{}"])
def test_an_event_may_have_no_data(api: Api, content: bytes) -> None:
    headers = {f"ce-{name}": value for name, value in EVENT.items()}
    headers |= {"Content-Type": "application/json"} if content else {}
    answer = api.request("POST", "/v1/events", content=content, headers=headers)
    assert answer.status_code == 202, answer.text
    assert (stored(api)[0].upto, stored(api)[0].rows) == (None, None)


def test_in_structured_mode_the_body_counts_and_headers_of_the_other_mode_do_not(api: Api) -> None:
    answer = api.post(
        "/v1/events", EVENT, headers={"Content-Type": STRUCTURED, "ce-id": "other", "ce-subject": "flights"}
    )
    assert (answer.status_code, stored(api)[0].event_id) == (202, "batch-1")


def test_what_is_wrong_is_said_by_attribute(api: Api) -> None:
    told = binary(api, {"rows": 0}, subject="Not/One", type="x").json()
    assert {remark["field"] for remark in told["errors"]} == {"subject", "type", "data.rows"}


def keyed(api: Api, key: str, report: object, token: str = "all", **headers: str) -> Response:
    return api.post("/v1/events", report, token=token, headers={"Idempotency-Key": key} | headers)


def test_the_same_key_and_report_get_the_first_answer_and_are_one_arrival(api: Api) -> None:
    first = keyed(api, "k 1", {"dataset": "reported", "rows": 7}).json()
    assert (first["arrival"], first["repeated"]) == (1, False)
    again = keyed(api, "k 1", {"rows": 7, "dataset": "reported"}, traceparent=TRACE)
    assert (again.status_code, again.json()) == (202, first | {"repeated": True})
    assert len(stored(api)) == 1
    with api.ledger.read() as tx:
        assert len(deliveries.read(tx, 0, 9)) == 1


def test_the_same_key_with_another_report_is_refused_and_the_first_is_kept(api: Api) -> None:
    first = keyed(api, "k", {"dataset": "reported", "rows": 7}).json()
    for other in (
        {"dataset": "reported", "rows": 8},
        {"dataset": "flights"},
        {"dataset": "reported", "rows": 7, "id": "x"},
    ):
        refused = keyed(api, "k", other)
        assert (refused.status_code, refused.headers["Content-Type"]) == (422, "application/problem+json")
        assert "take a key of its own" in refused.text
    assert keyed(api, "k", {"dataset": "reported", "rows": 7}).json() == first | {"repeated": True}
    assert len(stored(api)) == 1


def test_a_key_belongs_to_its_caller(api: Api) -> None:
    told = [keyed(api, "k", {"dataset": "reported"}, token=name).json() for name in ("all", "submit", "all")]
    assert [one["arrival"] for one in told] == [1, 2, 1]


def test_a_key_and_the_events_own_id_each_make_it_one_arrival(api: Api) -> None:
    report = {"dataset": "reported", "rows": 7, "id": "batch-1"}
    told = [keyed(api, "a", report), keyed(api, "b", report), api.post("/v1/events", report), keyed(api, "b", report)]
    assert [one.json()["arrival"] for one in told] == [1, 1, 1, 1]
    assert [one.json()["repeated"] for one in told] == [False, True, True, True]


def test_no_sender_can_take_the_place_of_a_key(api: Api) -> None:
    keyed(api, "k", {"dataset": "reported"})
    assert structured(api, source="\tidempotency-key alice", id="k").status_code == 422
    assert not structured(api, source="idempotency-key alice", id="k").json()["repeated"]


def test_a_nudge_with_a_key_is_answered_by_the_look_and_lends_it_no_name(api: Api) -> None:
    first = keyed(api, "k", {"dataset": "flights"}).json()
    assert (first["arrival"], first["nudged"], first["repeated"]) == (None, True, False)
    assert keyed(api, "k", {"dataset": "flights"}).json() == first | {"repeated": True}
    seen = grow(api.ledger)
    again = keyed(api, "k", {"dataset": "flights"}).json()
    assert (again["arrival"], again["nudged"], again["repeated"]) == (seen, True, True)
    assert (stored(api)[0].source, stored(api)[0].event_id) == (None, None)


def test_what_the_stream_could_not_bring_is_listed_and_counted(api: Api) -> None:
    with api.ledger.write() as tx:
        for number in range(3):
            rejections.note(tx, Rejected(f"1-{number}", "/loader", f"reason {number}", "{}"))
    status = api.get("/v1/status").json()["rejections"]
    assert status == {"count": 3, "last_reason": "reason 2", "last_at": "2026-01-01T00:00:00Z"}
    first = api.get("/v1/rejections", limit=2).json()
    rest = api.get("/v1/rejections", limit=2, after=first["next"]).json()
    assert [one["entry"] for one in first["items"] + rest["items"]] == ["1-2", "1-1", "1-0"]
    assert (rest["next"], set(rest["items"][0])) == (None, {"entry", "source", "reason", "excerpt", "at"})
