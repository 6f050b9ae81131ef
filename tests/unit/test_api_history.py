"""Whatever a person does over REST or on the command line leaves one entry: who, what, why, before and after."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shared.gates import Decision
from shared.ledger import Ledger, configuration, deliveries, history, planning, tokens
from shared.ledger.tokens import Scope
from shared.settings import Settings
from stack.apply import put_in_force
from stack.ledger import create, revoke
from tests import apis, ledgers
from tests.apis import Api, serve

WHY = {"reason": "seen it"}


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Api]:
    with serve(tmp_path) as running:
        yield running


def deeds(api: Api, **query: object) -> list[dict[str, Any]]:
    return [one for one in api.get("/v1/history", token="read", **query).json()["items"] if one["actor"] == "operate"]


def newest(api: Api) -> tuple[Any, ...]:
    """The newest deed of `operate`: there is exactly one more than before."""
    found = deeds(api)[0]
    return tuple(found[key] for key in ("action", "subject", "model", "reason", "before", "after"))


def act(api: Api, path: str, body: object = None) -> None:
    known = len(deeds(api))
    answer = api.post(path, body, token="operate")
    assert answer.status_code == 202, answer.text
    assert len(deeds(api)) == known + 1


def test_what_is_done_to_runs_is_told(api: Api) -> None:
    ledgers.adopt(api.ledger)
    act(api, "/v1/runs", {"model": "delays"} | WHY)
    assert newest(api) == ("retrain", "run 1", "delays", "seen it", None, {"run": 1})
    act(api, "/v1/runs/1/cancel", WHY)
    assert newest(api)[:3] == ("cancel", "run 1", "delays")
    assert newest(api)[4:] == ({"state": "waiting"}, {"state": "cancelled"})
    act(api, "/v1/runs/1/retry", WHY)
    assert newest(api) == ("retry", "run 1", "delays", "seen it", {"state": "cancelled"}, {"run": 2})


def test_a_second_cancel_changes_nothing_and_is_not_told(api: Api) -> None:
    ledgers.adopt(api.ledger)
    act(api, "/v1/runs", {"model": "delays"})
    ledgers.grow(api.ledger)
    assert ledgers.claim(api.ledger, 1) is not None
    act(api, "/v1/runs/1/cancel", WHY)
    assert newest(api)[4:] == ({"state": "running"}, {"state": "running", "asked_to_stop": True})
    api.post("/v1/runs/1/cancel", WHY, token="operate")
    assert len(deeds(api)) == 2


def test_what_is_done_to_versions_is_told(api: Api, tmp_path: Path) -> None:
    for number in (1, 2):
        apis.register(api, apis.train(api), number, tmp_path / str(number))
        apis.judge(api, number, Decision.PROMOTE, automatic=False)
        act(api, "/v1/models/delays/promote", {"version": number} | WHY)
        apis.follow_alias(api, number)
    assert newest(api) == ("promote", "version 2 of delays", "delays", "seen it", {"champion": 1}, {"champion": 2})
    act(api, "/v1/models/delays/rollback", WHY)
    assert newest(api) == ("rollback", "version 1 of delays", "delays", "seen it", {"champion": 2}, {"champion": 1})
    act(api, "/v1/models/delays/versions/2/pin", WHY)
    pinned = {"by": "operate", "reason": "seen it"}
    assert newest(api) == ("pin", "version 2 of delays", "delays", "seen it", None, pinned)
    act(api, "/v1/models/delays/versions/2/unpin")
    assert newest(api) == ("unpin", "version 2 of delays", "delays", "", pinned, None)
    assert api.post("/v1/models/delays/versions/2/unpin", token="operate").status_code == 202
    assert len(deeds(api)) == 5


def test_an_automatic_promotion_is_told_as_ours(api: Api, tmp_path: Path) -> None:
    apis.register(api, apis.train(api), 1, tmp_path / "1")
    apis.judge(api, 1, Decision.PROMOTE)
    told = api.get("/v1/history", token="read", model="delays").json()["items"][0]
    assert (told["actor"], told["action"], told["after"]) == ("headrace", "promote", {"champion": 1})


def test_a_replay_is_told(api: Api) -> None:
    ledgers.adopt(api.ledger)
    with api.ledger.write() as tx:
        planning.cancel(tx, 1, "enough")
    with api.ledger.write() as tx:
        (sending, *_) = deliveries.claim_due(tx, ledgers.LEASE, 10)
        deliveries.undelivered(tx, sending.id, 500, "answered 500", None)
    act(api, f"/v1/deliveries/{sending.id}/replay")
    before = {"state": "failed", "error": "answered 500"}
    assert newest(api)[0::4] == ("replay", before)


def test_every_route_that_changes_something_is_among_those_that_are_told(api: Api) -> None:
    """A new one needs its entry, and a line above."""
    paths = api.get("/openapi.json", token=None).json()["paths"]
    changing = {path for path, methods in paths.items() if set(methods) - {"get"}}
    told = {"/v1/runs", "/v1/runs/{id}/cancel", "/v1/runs/{id}/retry", "/v1/deliveries/{id}/replay"}
    told |= {f"/v1/models/{{model}}/{verb}" for verb in ("promote", "rollback", "resume")}
    told |= {f"/v1/models/{{model}}/versions/{{version}}/{verb}" for verb in ("pin", "unpin")}
    assert changing == told | {"/v1/events"}  # an arrival tells of itself


def test_history_is_paged_and_asked_for_by_model(api: Api) -> None:
    ledgers.adopt(api.ledger)
    for _ in range(3):
        act(api, "/v1/runs", {"model": "delays"})
    first = api.get("/v1/history", token="read", model="delays", limit=2).json()
    second = api.get("/v1/history", token="read", model="delays", limit=2, after=first["next"]).json()
    ids = [one["id"] for page in (first, second) for one in page["items"]]
    assert (len(ids), ids == sorted(ids, reverse=True), second["next"]) == (3, True, None)
    assert api.get("/v1/history", token="read", model="other").json()["items"] == []


def test_what_is_done_on_the_command_line_is_told_without_its_secrets(
    ledger_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = {"ledger_url": f"sqlite:///{ledger_file}", "blobs_url": "file:///nowhere", "logs_url": "file:///nowhere"}
    settings = Settings.model_validate({"state_dir": tmp_path, "redis_url": "redis://127.0.0.1:1/0", **places})
    (tmp_path / "settings.json").write_text(settings.model_dump_json())
    monkeypatch.setenv("HEADRACE_SETTINGS", str(tmp_path / "settings.json"))
    monkeypatch.setenv("LOGNAME", "carol")
    file = tmp_path / "headrace.toml"
    file.write_text(ledgers.CONFIG)
    assert put_in_force(file, settings)
    file.write_text(
        ledgers.CONFIG.replace("min_rows = 100 ", "min_rows = 50 ").replace("[models.delays]", "[models.a]")
    )
    assert put_in_force(file, settings)
    assert not put_in_force(file, settings)
    secret = create("shop", "read")
    create("shop", "read,submit")
    revoke("shop")
    ledger = Ledger(settings.ledger_url)
    with ledger.read() as tx:
        rows = history.find_all(tx, model=None, before=None, limit=9)[::-1]
        in_force = configuration.in_force(tx).digest
    ledger.close()
    assert {row.actor for row in rows} == {"carol"}
    assert [(row.action, row.subject) for row in rows] == [("apply", "configuration")] * 2 + [
        ("create token", "token shop"),
        ("create token", "token shop"),
        ("revoke token", "token shop"),
    ]
    assert rows[1].before == {"digest": rows[0].after["digest"]}
    assert rows[1].after == {"digest": in_force, "changed": ["models.a", "models.delays"]}
    assert [(row.before, row.after) for row in rows[2:]] == [
        (None, {"scopes": ["read"]}),
        ({"scopes": ["read"]}, {"scopes": ["read", "submit"]}),
        ({"scopes": ["read", "submit"]}, None),
    ]
    assert secret not in "".join(str(row) for row in rows)


def test_a_token_that_is_registered_again_is_not_told_again(api: Api) -> None:
    for _ in range(2):
        with api.ledger.write() as tx:
            tokens.register(tx, "operate", (Scope.OPERATE, Scope.READ), "x" * 40, "operate")
    assert [one["action"] for one in deeds(api)] == ["create token"]
