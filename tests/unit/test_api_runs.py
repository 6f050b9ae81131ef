"""Runs and their logs over REST."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from services.registry_bridge.api.logs import decode
from shared.ledger import attempts
from shared.ledger.attempts import Failure
from tests.apis import Api, register, serve, train
from tests.ledgers import LEASE, adopt, claim, grow, waiting

CANCELLED = {"kind": "cancelled", "message": "operate: too late", "advice": "retry it with `headrace retry`"}


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Api]:
    with serve(tmp_path) as running:
        yield running


def test_a_run_tells_all_that_is_known_of_it(api: Api) -> None:
    run = train(api)
    told = api.get(f"/v1/runs/{run}").json()
    attempt = told.pop("attempts")[0]
    cut = told.pop("cut")["flights"]
    assert told.pop("cut_digest").startswith("sha256:")
    assert told == {
        "id": run, "model": "delays", "state": "trained", "reason": "new release v1.0.0; 1,000 new rows in flights",
        "sentence": "was trained at 2026-01-01 00:00:00Z and waits to be registered in MLflow", "release": {"name": "v1.0.0", "commit": "a" * 40},
        "compute_class": "standard", "planned_at": "2026-01-01T00:00:00Z", "due_at": None,
        "started_at": "2026-01-01T00:00:00Z", "finished_at": "2026-01-01T00:00:00Z",
        "progress": {"fraction": 1.0, "note": ""}, "left_s": None, "sample": None, "metrics": {}, "checkpoint": None, "error": None, "version": None, "tidied_at": None, "bundle": "sha256:" + "b" * 64,
    }  # fmt: skip
    assert (cut["upto"], cut["rows"], cut["holdout_above"], cut["arrival"]) == (1000, 1000, 900, 1)
    assert (attempt["number"], attempt["worker"], attempt["outcome"]) == (1, "w1", "trained")
    assert attempt["seconds"] == {"train": 1.5}


def test_a_run_tells_its_metrics_and_what_it_would_go_on_from_while_it_trains(api: Api) -> None:
    adopt(api.ledger)
    grow(api.ledger)
    claimed = claim(api.ledger, 1)
    assert claimed is not None
    with api.ledger.write() as tx:
        attempts.beat(tx, 1, claimed.token, LEASE, 0.25, "epoch 2", {"loss": [[1, 0.5], [2, 0.25]], "lr": [[1, 0.1]]})
        attempts.checkpoint(tx, 1, claimed.token, "c" * 64, 9000)
    told = api.get("/v1/runs/1").json()
    assert told["metrics"] == {"loss": 0.25, "lr": 0.1}
    assert told["checkpoint"] == {"attempt": 1, "size_bytes": 9000, "at": "2026-01-01T00:00:00Z"}
    assert told["attempts"][0]["metrics"]["loss"] == [{"step": 1, "value": 0.5}, {"step": 2, "value": 0.25}]
    listed = api.get("/v1/runs").json()["items"][0]
    assert (listed["metrics"], listed["attempts"][0]["metrics"]) == ({"loss": 0.25, "lr": 0.1}, {})


def test_a_run_that_was_asked_for_is_due_and_says_who_asked(api: Api) -> None:
    adopt(api.ledger)
    grow(api.ledger)
    assert claim(api.ledger, 1) is not None
    answer = api.post("/v1/runs", {"model": "delays"}, token="operate")
    assert (answer.status_code, answer.headers["Location"]) == (202, "/v1/runs/2")
    assert answer.json()["reason"] == "operate asked for it"
    joined = api.post("/v1/runs", {"model": "delays", "reason": "a hunch"}).json()
    assert (joined["id"], joined["reason"]) == (2, "operate asked for it; a hunch")


def test_a_run_on_a_sample_bears_its_mark_and_so_does_its_version(api: Api, tmp_path: Path) -> None:
    adopt(api.ledger)
    grow(api.ledger)
    asked = api.post("/v1/runs", {"model": "delays", "sample": "1.0%"})
    assert (asked.status_code, asked.json()["id"], asked.json()["sample"]) == (202, 2, "1%")
    held = claim(api.ledger, 2)
    assert held is not None
    with api.ledger.write() as tx:
        attempts.finish(tx, 2, held.token, "sha256:" + "b" * 64, {})
    register(api, 2, 1, tmp_path / "v1")
    told = api.get("/v1/models/delays/versions/1").json()
    assert (told["state"], told["sample"], told["verdict"], told["champion"]) == ("sample", "1%", None, False)
    assert (told["lineage"]["cut"]["flights"]["newest"], told["lineage"]["arrivals"]) == (9, [])
    refused = api.post("/v1/models/delays/promote", {"version": 1, "reason": "I like it"})
    assert refused.status_code == 409
    assert "`headrace retrain delays` trains one that may" in refused.json()["detail"]
    model = api.get("/v1/models/delays").json()
    assert (model["waiting_run"], model["champion"]) == (1, None)


@pytest.mark.parametrize("sample", ["0%", "60%", "all", "", 5, "-1"])
def test_what_is_no_sample_is_refused(api: Api, sample: object) -> None:
    adopt(api.ledger)
    assert api.post("/v1/runs", {"model": "delays", "sample": sample}).status_code == 422


def test_a_paused_model_says_so_and_is_let_go_on(api: Api) -> None:
    adopt(api.ledger)
    for _ in range(3):
        grow(api.ledger)
        claimed = claim(api.ledger, waiting(api.ledger))
        assert claimed is not None
        with api.ledger.write() as tx:
            attempts.fail(tx, claimed.run, claimed.token, Failure("author_error", "KeyError: 'x'"), {})
    told = api.get("/v1/status").json()["models"][0]
    assert told["paused"] == {"since": "2026-01-01T00:00:00Z", "failed": 3}
    answer = api.post("/v1/models/delays/resume", {"reason": "mended"}, token="operate")
    assert (answer.status_code, answer.json()["paused"]) == (202, None)
    assert api.post("/v1/models/nobody/resume", {}).status_code == 404


def test_a_model_without_a_release_cannot_be_retrained(api: Api) -> None:
    answer = api.post("/v1/runs", {"model": "delays"})
    assert answer.status_code == 409
    assert "no valid release" in answer.json()["detail"]


def test_a_waiting_run_is_cancelled_at_once_and_can_be_retried(api: Api) -> None:
    adopt(api.ledger)
    answer = api.post("/v1/runs/1/cancel", {"reason": "too late"}, token="operate")
    assert (answer.status_code, answer.json()["state"], answer.json()["error"]) == (202, "cancelled", CANCELLED)
    assert api.request("POST", "/v1/runs/1/cancel").json()["state"] == "cancelled"
    retried = api.request("POST", "/v1/runs/1/retry")  # without any body
    assert (retried.status_code, retried.json()["id"], retried.headers["Location"]) == (202, 2, "/v1/runs/2")
    assert retried.json()["reason"] == "alice retries run 1"


def test_a_running_run_is_told_to_stop_and_a_trained_one_stays(api: Api) -> None:
    adopt(api.ledger)
    grow(api.ledger)
    held = claim(api.ledger, 1)
    assert held is not None
    answer = api.post("/v1/runs/1/cancel", {})
    assert (answer.status_code, answer.json()["state"]) == (202, "running")
    assert "being cancelled: cancelled by alice" in answer.json()["sentence"]
    with api.ledger.write() as tx:
        attempts.finish(tx, 1, held.token, "sha256:" + "b" * 64, {})
    assert api.post("/v1/runs/1/cancel", {}).status_code == 409


def test_runs_are_listed_by_model_and_state_page_by_page(api: Api) -> None:
    for _ in range(3):
        train(api)
    grow(api.ledger)
    first = api.get("/v1/runs", limit=2, model="delays").json()
    rest = api.get("/v1/runs", limit=2, model="delays", after=first["next"]).json()
    assert [run["id"] for run in first["items"] + rest["items"]] == [4, 3, 2, 1]
    assert rest["next"] is None
    assert [run["id"] for run in api.get("/v1/runs", state="waiting").json()["items"]] == [4]
    assert api.get("/v1/runs", model="other").json() == {"items": [], "next": None}


def running(api: Api) -> attempts.Claim:
    adopt(api.ledger)
    grow(api.ledger)
    held = claim(api.ledger, 1)
    assert held is not None
    return held


def log(api: Api, **query: object) -> dict[str, Any]:
    told = api.get("/v1/runs/1/log", **query)
    assert told.status_code == 200, told.text
    return dict(told.json())


def test_a_log_is_read_piece_by_piece_and_is_done_when_the_run_has_ended(api: Api) -> None:
    held = running(api)
    assert log(api) == {"text": "", "offset": 0, "attempt": 1, "done": False}
    api.stores.logs.append("runs/1/1", "epoch 1: größer\n".encode())
    piece = log(api)
    assert (piece["text"], piece["offset"], piece["done"]) == ("epoch 1: größer\n", 18, False)
    with api.ledger.write() as tx:
        attempts.finish(tx, 1, held.token, "sha256:" + "b" * 64, {})
    assert log(api, offset=18) == {"text": "", "offset": 18, "attempt": 1, "done": True}


def test_a_character_that_is_cut_off_waits_for_its_other_half() -> None:
    euro = "a€".encode()
    assert decode(euro[:3], final=False) == ("a", 1)
    assert decode(euro[:3], final=True) == ("a�", 3)
    assert decode(euro, final=False) == ("a€", 4)
    assert decode(b"\xff\xfeb", final=False) == ("��b", 3)


def test_a_log_comes_in_bounded_pieces(api: Api) -> None:
    running(api)
    api.stores.logs.append("runs/1/1", "€".encode() * 200_000)
    text, offset = "", 0
    while len(text) < 200_000:
        piece = log(api, offset=offset)
        assert 0 < len(piece["text"].encode()) <= 256 * 1024
        text, offset = text + piece["text"], piece["offset"]
    assert text == "€" * 200_000


def test_the_log_of_a_run_that_nobody_has_claimed_is_empty(api: Api) -> None:
    adopt(api.ledger)
    assert log(api) == {"text": "", "offset": 0, "attempt": None, "done": False}
    api.post("/v1/runs/1/cancel", {})
    assert log(api)["done"] is True
    assert api.get("/v1/runs/1/log", attempt=1).status_code == 404


def test_a_long_poll_on_a_log_wakes_when_the_log_grows(api: Api) -> None:
    running(api)
    with api.waiting("/v1/runs/1/log") as answer:
        api.stores.logs.append("runs/1/1", b"epoch 1\n")
        assert answer.result(timeout=10)["text"] == "epoch 1\n"


def test_a_long_poll_looks_at_the_log_no_faster_than_its_store_wants(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    running(api)
    logs, looks = api.stores.logs, list[object]()
    read = logs.read
    monkeypatch.setattr(logs, "pace_s", 0.6)
    monkeypatch.setattr(logs, "read", lambda *asked: (looks.append(asked), read(*asked))[1])
    log(api, wait=0.5)
    assert len(looks) in (2, 3), "at once, after 0.3 s, and at the end; at the usual pace there would be ten"


def test_a_long_poll_on_a_log_wakes_when_the_run_ends(api: Api) -> None:
    held = running(api)
    with api.waiting("/v1/runs/1/log") as answer:
        with api.ledger.write() as tx:
            attempts.finish(tx, 1, held.token, "sha256:" + "b" * 64, {})
        assert answer.result(timeout=10) == {"text": "", "offset": 0, "attempt": 1, "done": True}


def test_a_long_poll_on_a_log_wakes_when_a_new_attempt_begins(api: Api) -> None:
    running(api)
    with api.waiting("/v1/runs/1/log") as answer:
        api.clock.forward(seconds=LEASE.total_seconds() + 1)
        assert claim(api.ledger, 1, "w2") is not None
        assert answer.result(timeout=10)["attempt"] == 2
    assert log(api, attempt=1)["done"] is True


def test_an_offset_beyond_the_end_is_answered_at_once_with_the_end(api: Api) -> None:
    """A follower of the first attempt asks on when the second, shorter one has begun."""
    running(api)
    api.stores.logs.append("runs/1/1", b"short\n")
    assert log(api, offset=500, wait=20) == {"text": "", "offset": 6, "attempt": 1, "done": False}


def test_a_long_poll_ends_when_its_time_is_over(api: Api) -> None:
    running(api)
    assert log(api, wait=0.1) == {"text": "", "offset": 0, "attempt": 1, "done": False}


def test_what_was_trained_already_is_trained_again_only_if_a_person_insists(api: Api) -> None:
    train(api)
    refused = api.post("/v1/runs", {"model": "delays"})
    assert refused.status_code == 409
    assert "--again" in refused.json()["detail"]
    assert api.post("/v1/runs", {"model": "delays", "again": True}).status_code == 202
