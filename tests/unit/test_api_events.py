"""Reports over REST and what the API tells about the arrivals that they became."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from shared.arrivals import example_cloudevent
from shared.gates import Decision
from shared.ledger import datasets, deliveries
from tests.apis import Api, follow_alias, judge, register, serve, train
from tests.ledgers import adopt, claim, grow

CLOUD = example_cloudevent() | {"subject": "reported"}
HEADERS = {"Content-Type": "application/cloudevents+json"}
TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Api]:
    with serve(tmp_path) as running:
        yield running


def test_a_cloudevent_becomes_an_arrival_and_makes_a_run_wait(api: Api) -> None:
    adopt(api.ledger, dataset="reported")
    answer = api.post("/v1/events", CLOUD, headers=HEADERS)
    assert answer.status_code == 202
    assert answer.json() == {"arrival": 1, "dataset": "reported", "repeated": False, "nudged": False, "runs": [1]}
    arrival = api.get("/v1/arrivals/1").json()
    fate = arrival.pop("fates")[0]
    assert arrival == {
        "id": 1, "dataset": "reported", "from": 27004, "to": 51955, "rows": 24951, "origin": "rest",
        "source": "/airport/loader", "event_id": "batch-2013-02", "observed_at": "2026-01-01T00:00:00Z",
    }  # fmt: skip
    assert (fate["model"], fate["fate"], fate["run"], fate["version"], fate["deliveries"]) == (
        "delays",
        "waits",
        1,
        None,
        [],
    )
    assert "waits in run 1" in fate["sentence"]


def test_the_same_report_again_is_the_same_arrival_and_gets_the_same_answer(api: Api) -> None:
    adopt(api.ledger, dataset="reported")
    report = {"dataset": "reported", "rows": 7, "id": "batch-1"}
    first, second = api.post("/v1/events", report).json(), api.post("/v1/events", report).json()
    assert second == first | {"repeated": True}
    assert len(api.get("/v1/arrivals").json()["items"]) == 1


def test_a_shorthand_without_an_id_is_a_new_arrival_each_time(api: Api) -> None:
    told = [api.post("/v1/events", {"dataset": "reported"}).json()["arrival"] for _ in range(2)]
    assert told == [1, 2]


def test_a_report_about_a_source_that_can_be_looked_at_is_a_nudge(api: Api) -> None:
    told = api.post("/v1/events", {"dataset": "flights", "rows": 10, "id": "n"}).json()
    assert told == {"arrival": None, "dataset": "flights", "repeated": False, "nudged": True, "runs": []}
    with api.ledger.read() as tx:
        assert datasets.find_all(tx)[0].nudged_at is not None
    grow(api.ledger)
    again = api.post("/v1/events", {"dataset": "flights", "rows": 10, "id": "n"}).json()
    assert (again["arrival"], again["repeated"]) == (1, True)


def test_a_trace_context_comes_in_the_event_or_as_a_header(api: Api) -> None:
    api.post("/v1/events", {"dataset": "reported"}, headers={"traceparent": TRACE})
    api.post(
        "/v1/events", CLOUD | {"traceparent": TRACE.replace("4bf9", "aaaa")}, headers=HEADERS | {"traceparent": TRACE}
    )
    api.post("/v1/events", {"dataset": "reported"}, headers={"traceparent": "nonsense"})
    with api.ledger.read() as tx:
        assert [one.traceparent for one in deliveries.read(tx, 0, 9)] == [TRACE, TRACE.replace("4bf9", "aaaa"), None]


def test_arrivals_are_listed_page_by_page_newest_first(api: Api) -> None:
    for _ in range(5):
        api.post("/v1/events", {"dataset": "reported"})
    grow(api.ledger)
    seen, after = [], {}
    while after is not None:
        page = api.get("/v1/arrivals", dataset="reported", limit=2, **after).json()
        seen.append([item["id"] for item in page["items"]])
        after = {"after": page["next"]} if page["next"] else None
    assert seen == [[5, 4], [3, 2], [1]]


def test_the_fate_of_an_arrival_goes_all_the_way_to_the_deliveries(api: Api, tmp_path: Path) -> None:
    run = train(api)
    register(api, run, 1, tmp_path / "v1")
    judge(api, 1, Decision.PROMOTE)
    follow_alias(api, 1)
    register(api, train(api), 2, tmp_path / "v2")  # whose deliveries are none of this arrival's
    judge(api, 2, Decision.REJECT)
    fate = api.get("/v1/arrivals/1").json()["fates"][0]
    assert (fate["fate"], fate["run"], fate["version"], fate["verdict"]) == ("trained", run, 1, "promote")
    assert fate["sentence"] == f"was trained in run {run}; version 1 was promoted"
    with api.ledger.read() as tx:
        promoted = next(row for row in deliveries.of_run(tx, run) if row.type == "version.promoted")
    assert fate["deliveries"] == [{"id": promoted.id, "subscription": "shop", "state": "pending", "attempts": 0}]


def test_an_arrival_that_comes_while_a_run_trains_waits_in_the_next_one(api: Api) -> None:
    adopt(api.ledger)
    grow(api.ledger)
    assert claim(api.ledger, 1) is not None
    grow(api.ledger)
    fates = [api.get(f"/v1/arrivals/{id}").json()["fates"][0] for id in (1, 2)]
    assert [(fate["fate"], fate["run"]) for fate in fates] == [("waits", 1), ("waits", 2)]
    assert "is training on w1" in fates[0]["sentence"]
