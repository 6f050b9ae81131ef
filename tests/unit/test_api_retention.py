"""What was tidied away, and what is pinned, over REST."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from headrace.connection import Problem
from headrace.version import read

from shared.gates import Decision
from shared.ledger import retention
from tests.apis import FILES, Api, judge, register, serve, train

VERSION = "/v1/models/delays/versions/1"


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Api]:
    with serve(tmp_path) as running:
        register(running, train(running), 1, tmp_path / "v1")
        judge(running, 1, Decision.REJECT)
        yield running


def test_a_version_that_was_tidied_away_says_so_and_gives_no_file(api: Api) -> None:
    path = f"{VERSION}/files/{next(iter(FILES))}"
    assert api.get(path).status_code == 200
    with api.ledger.write() as tx:
        assert (retention.take_files(tx, [1]), retention.take_bundles(tx, [1])) == (1, 1)
    answer = api.get(path)
    assert answer.status_code == 410
    assert answer.json()["detail"] == (
        "the files of version 1 of delays were tidied away on 2026-01-01; it had been rejected"
    )
    told = api.get(VERSION).json()
    assert (told["tidied_at"], told["files"], told["requirements_file"]) == ("2026-01-01T00:00:00Z", [], None)
    with pytest.raises(Problem, match="tidied away"):
        read(told)
    run = api.get("/v1/runs/1").json()
    assert (run["bundle"], run["tidied_at"]) == (None, "2026-01-01T00:00:00Z")
    for act in ("promote", "rollback"):
        refused = api.post(f"/v1/models/delays/{act}", {"version": 1, "reason": "please"})
        assert (refused.status_code, "tidied away" in refused.json()["detail"]) == (409, True)


def test_a_pin_bears_the_name_of_who_set_it_and_keeps_the_files(api: Api) -> None:
    assert api.get(VERSION).json()["pin"] is None
    pinned = api.post(f"{VERSION}/pin", {"reason": "the storefront runs it"})
    wanted = {"by": "alice", "reason": "the storefront runs it", "at": "2026-01-01T00:00:00Z"}
    assert (pinned.status_code, pinned.json()["pin"]) == (202, wanted)
    assert api.get("/v1/models/delays/versions").json()["items"][0]["pin"] == wanted
    with api.ledger.write() as tx:
        assert retention.take_files(tx, [1]) == 0
    assert api.post(f"{VERSION}/unpin").json()["pin"] is None
    with api.ledger.write() as tx:
        assert retention.take_files(tx, [1]) == 1
    assert api.post(f"{VERSION}/pin", {"reason": "too late"}).status_code == 409


def test_only_an_operator_pins_with_a_reason_and_a_version_that_there_is(api: Api) -> None:
    for token in ("read", "submit"):
        assert api.post(f"{VERSION}/pin", {"reason": "mine"}, token=token).status_code == 403
        assert api.post(f"{VERSION}/unpin", token=token).status_code == 403
    assert api.post(f"{VERSION}/pin", {"reason": ""}).status_code == 422
    assert api.post(f"{VERSION}/pin", {}).status_code == 422
    assert api.post("/v1/models/delays/versions/9/pin", {"reason": "mine"}).status_code == 404
    assert api.post("/v1/models/delays/versions/champion/unpin").status_code == 422


def test_status_says_when_it_was_tidied_and_what_was_taken(api: Api) -> None:
    assert api.get("/v1/status").json()["tidied"] is None
    taken = {"logs": {"count": 3, "size_bytes": 120}}
    with api.ledger.write() as tx:
        turn = retention.begin(tx, "bridge", {}, timedelta(minutes=5))
        assert turn is not None
        retention.end(tx, turn, taken, "MLflow is away")
        retention.begin(tx, "bridge", {}, timedelta(minutes=5))
    told = api.get("/v1/status").json()["tidied"]
    assert told == {"at": "2026-01-01T00:00:00Z", "taken": taken, "error": "MLflow is away"}
