"""Who may ask what of the API, and how it says no."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from shared.errors import ConfigurationError, Unavailable
from shared.ledger import Ledger
from tests.apis import Api, serve

EVENT = {"dataset": "reported", "rows": 5}
READS = ("/v1/arrivals", "/v1/runs", "/v1/models", "/v1/models/delays", "/v1/models/delays/why", "/v1/notices")
READS += (
    "/v1/models/delays/versions",
    "/v1/status",
    "/v1/deliveries",
    "/v1/history",
    "/v1/runs/1/log",
    "/v1/arrivals/1",
)
ACTS = (
    "/v1/runs",
    "/v1/runs/1/cancel",
    "/v1/runs/1/retry",
    "/v1/models/delays/promote",
    "/v1/models/delays/rollback",
    "/v1/models/delays/resume",
)
ACTS += ("/v1/models/delays/versions/1/pin",)


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Api]:
    with serve(tmp_path) as running:
        yield running


def test_a_request_without_a_known_token_is_told_nothing_but_that(api: Api) -> None:
    answers = [api.get("/v1/runs/1", token=None), api.get("/v1/runs/1", token="hr_guessed")]
    answers += [api.get("/v1/runs/999", token="Ω é"), api.post("/v1/events", EVENT, token=None)]
    answers += [api.post("/v1/events", content=b"[" * 9, token=None), api.post("/v1/runs", content=b"", token=None)]
    assert {answer.status_code for answer in answers} == {401}
    assert {answer.text for answer in answers} == {answers[0].text}
    assert answers[0].headers["WWW-Authenticate"] == "Bearer"


@pytest.mark.parametrize("path", READS)
def test_reading_needs_the_scope_read(api: Api, path: str) -> None:
    refused = api.get(path, token="submit")
    assert (refused.status_code, refused.json()["detail"]) == (403, "this needs the scope read")
    assert api.get(path, token="read").status_code in (200, 404)


@pytest.mark.parametrize("path", ACTS)
def test_acting_needs_the_scope_operate_and_the_refused_body_is_not_read(api: Api, path: str) -> None:
    for token in ("read", "submit"):
        refused = api.post(path, content=b"{", token=token)
        assert (refused.status_code, refused.json()["detail"]) == (403, "this needs the scope operate")
    assert api.post(path, content=b"{", token="operate").status_code == 415


def test_reporting_needs_the_scope_submit(api: Api) -> None:
    refused = api.post("/v1/events", EVENT, token="read")
    assert refused.status_code == 403
    assert "submit" in refused.json()["detail"]
    assert "'read' has read" in refused.json()["advice"]
    assert api.post("/v1/events", EVENT, token="submit").status_code == 202


def test_health_needs_no_token_and_readiness_says_what_is_missing(api: Api) -> None:
    assert api.get("/healthz", token=None).json() == {"status": "ok"}
    answer = api.get("/readyz", token=None)  # the twin in memory was made without migrations
    assert answer.status_code == 503
    assert "stack migrate" in answer.json()["detail"]


def test_every_error_is_a_problem(api: Api) -> None:
    for status, answer in {
        404: api.get("/v1/nowhere"),
        405: api.request("DELETE", "/v1/runs"),
        422: api.get("/v1/runs", limit="many"),
    }.items():
        told = answer.json()
        assert answer.headers["Content-Type"] == "application/problem+json"
        assert (answer.status_code, told["status"], told["type"]) == (status, status, "about:blank")
        assert all((told["title"], told["detail"]))
    assert "GET" in api.request("DELETE", "/v1/runs").headers["Allow"]
    assert api.get("/v1/runs/").status_code == 404


class Broken(Ledger):
    """A ledger whose every use fails in one way."""

    def __init__(self, error: Exception) -> None:
        super().__init__("sqlite://")
        self.error = error

    def read(self):  # type: ignore[no-untyped-def]
        raise self.error


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (Unavailable("the ledger did not answer"), 503),
        (ConfigurationError("nothing is in force"), 503),
        (ZeroDivisionError("a secret in a traceback"), 500),
    ],
)
def test_what_fails_on_our_side_is_a_problem_too(api: Api, error: Exception, status: int) -> None:
    broken = Broken(error)
    object.__setattr__(api.stores, "ledger", broken)
    answer = api.get("/v1/runs")
    broken.close()
    assert (answer.status_code, answer.headers["Content-Type"]) == (status, "application/problem+json")
    assert answer.headers.get("Retry-After") == ("2" if status == 503 else None)
    assert "secret" not in answer.text
