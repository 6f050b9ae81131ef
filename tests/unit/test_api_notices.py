"""Notices and deliveries over REST."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from headrace.webhooks import parse

from shared.ledger import deliveries, planning
from shared.notices import Notice
from tests.apis import Api, serve
from tests.ledgers import adopt, grow


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Api]:
    with serve(tmp_path) as running:
        yield running


def test_notices_come_in_order_as_cloudevents_and_go_on_where_one_was(api: Api) -> None:
    for _ in range(3):
        grow(api.ledger)
    first = api.get("/v1/notices", limit=2).json()
    rest = api.get("/v1/notices", limit=2, after=first["next"]).json()
    assert [event["sequence"] for event in first["items"] + rest["items"]] == ["1", "2", "3"]
    assert (first["next"], first["newest"], rest["next"]) == (2, 3, 3)
    assert api.get("/v1/notices", after=3).json() == {"items": [], "next": 3, "newest": 3}
    assert parse(first["items"][0]).type == "arrival.observed"  # the client's own reading
    with api.ledger.read() as tx:
        assert first["items"][0] == deliveries.read(tx, 0, 1)[0].to_cloudevent()
    assert Notice.from_cloudevent(rest["items"][0]).data["arrival"] == 3


def test_notices_are_chosen_by_type_and_model(api: Api) -> None:
    adopt(api.ledger)
    grow(api.ledger)
    with api.ledger.write() as tx:
        planning.cancel(tx, 1, "enough")
    assert [event["type"] for event in api.get("/v1/notices", models="delays").json()["items"]] == ["run.cancelled"]
    both = api.get("/v1/notices", types="arrival.observed,run.cancelled").json()["items"]
    assert [event["sequence"] for event in both] == ["1", "2"]
    assert api.get("/v1/notices", types="run.failed", models="delays,other").json()["items"] == []


def test_a_long_poll_on_notices_wakes_on_the_commit(api: Api) -> None:
    with api.waiting("/v1/notices") as answer:
        grow(api.ledger)
        told = answer.result(timeout=10)
    assert ([event["data"]["arrival"] for event in told["items"]], told["next"]) == ([1], 1)


def test_a_long_poll_sleeps_on_over_commits_that_are_not_for_it(api: Api) -> None:
    adopt(api.ledger)
    with api.waiting("/v1/notices", types="run.cancelled") as answer:
        grow(api.ledger)
        assert not answer.done()
        with api.ledger.write() as tx:
            planning.cancel(tx, 1, "enough")
        assert [event["type"] for event in answer.result(timeout=10)["items"]] == ["run.cancelled"]


def test_a_long_poll_on_notices_ends_when_its_time_is_over(api: Api) -> None:
    assert api.get("/v1/notices", after=7, wait=0.1).json() == {"items": [], "next": 7, "newest": 0}


def give_up(api: Api) -> str:
    """The oldest pending delivery is given up."""
    with api.ledger.write() as tx:
        sending = deliveries.claim_due(tx, timedelta(seconds=30), 1)[0]
        deliveries.undelivered(tx, sending.id, 500, "the receiver answered 500", None)
        return sending.id


def test_a_delivery_that_was_given_up_is_listed_and_replayed_with_its_id(api: Api) -> None:
    grow(api.ledger)
    grow(api.ledger)
    id = give_up(api)
    told = api.get("/v1/deliveries", state="failed").json()["items"]
    assert told == [
        {
            "id": id, "sequence": 1, "type": "arrival.observed", "subscription": "shop", "state": "failed", "attempts": 1,
            "due_at": None, "ended_at": "2026-01-01T00:00:00Z", "answer": 500, "error": "the receiver answered 500",
        }
    ]  # fmt: skip
    assert api.post(f"/v1/deliveries/{id}/replay", token="read").status_code == 403
    replayed = api.post(f"/v1/deliveries/{id}/replay")
    assert (replayed.status_code, replayed.json()["id"], replayed.json()["state"]) == (202, id, "pending")
    assert api.post(f"/v1/deliveries/{id}/replay").status_code == 409


def test_deliveries_are_listed_newest_first_page_by_page(api: Api) -> None:
    for _ in range(5):
        grow(api.ledger)
    seen, after = [], {}
    while after is not None:
        page = api.get("/v1/deliveries", subject="flights", limit=2, **after).json()
        seen.append([item["sequence"] for item in page["items"]])
        after = {"after": page["next"]} if page["next"] else None
    assert seen == [[5, 4], [3, 2], [1]]
    assert api.get("/v1/deliveries", subject="delays").json() == {"items": [], "next": None}
