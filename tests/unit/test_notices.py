"""What goes out: notices as CloudEvents, and who wishes for which."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from pydantic import ValidationError

from shared import notices
from shared.notices import Notice, NoticeType, matches
from shared.subscriptions import Subscription


def test_a_notice_is_a_cloudevent_as_the_contract_says() -> None:
    event = json.loads(notices.example().body())
    assert event["specversion"] == "1.0"
    assert (event["source"], event["type"], event["subject"]) == ("headrace", "version.promoted", "flight-delays")
    assert (event["sequence"], event["time"], event["datacontenttype"]) == (
        "42",
        "2026-11-23T18:00:00Z",
        "application/json",
    )
    assert {"model", "version", "digest", "run", "release", "commit", "metrics", "reasons", "actor", "replaces"} == set(
        event["data"]
    )


@pytest.mark.parametrize("notice_type", NoticeType)
def test_a_notice_reads_back_the_same(notice_type: NoticeType) -> None:
    notice = notices.example().model_copy(update={"type": notice_type, "traceparent": None})
    assert Notice.from_cloudevent(json.loads(notice.body())) == notice
    assert "traceparent" not in notice.to_cloudevent()


def test_the_body_is_the_same_bytes_each_time() -> None:
    assert notices.example().body() == Notice.from_cloudevent(json.loads(notices.example().body())).body()


def test_a_local_time_is_sent_in_utc() -> None:
    local = datetime(2026, 11, 23, 20, 0, tzinfo=timezone(timedelta(hours=2)))
    fields = dict(notices.example()) | {"time": local}
    assert Notice(**fields).to_cloudevent()["time"] == "2026-11-23T18:00:00Z"
    assert Notice(**fields).time.tzinfo is UTC


WRONG: list[dict[str, Any]] = [
    {"time": datetime(2026, 11, 23)},  # noqa: DTZ001
    {"sequence": 0},
    {"sequence": "42"},
    {"type": "version.lost"},
    {"traceparent": "00-0-0-01"},
    {"extra": 1},
]


@pytest.mark.parametrize("change", WRONG)
def test_a_wrong_notice_cannot_be_made(change: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Notice(**(dict(notices.example()) | change))


@pytest.mark.parametrize(
    "change", [{"specversion": "0.3"}, {"source": "x"}, {"sequence": 42}, {"sequence": "²"}, {"time": "1700000000"}]
)
def test_an_event_of_somebody_else_is_not_read(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        Notice.from_cloudevent(notices.example().to_cloudevent() | change)


def wish(models: tuple[str, ...], types: tuple[str, ...]) -> Subscription:
    return Subscription(name="s", url="https://shop.example.com/h", secret="env:S", models=models, types=types)


MATCHES = [
    (("*",), ("*",), NoticeType.ARRIVAL_OBSERVED, None, True),
    (("*",), ("*",), NoticeType.RUN_FAILED, "m", True),
    (("*",), ("version.*",), NoticeType.VERSION_ROLLED_BACK, "m", True),
    (("*",), ("version.*",), NoticeType.RUN_FAILED, "m", False),
    (("m",), ("version.promoted",), NoticeType.VERSION_PROMOTED, "m", True),
    (("m",), ("version.promoted",), NoticeType.VERSION_PROMOTED, "m2", False),
    (("m",), ("version.promoted",), NoticeType.VERSION_REJECTED, "m", False),
    (("m",), ("*",), NoticeType.ARRIVAL_OBSERVED, None, False),
    (("a", "m"), ("run.*", "release.refused"), NoticeType.RELEASE_REFUSED, "m", True),
]


@pytest.mark.parametrize(("models", "types", "notice_type", "model", "wished"), MATCHES)
def test_a_subscription_gets_what_it_wishes_for(
    models: tuple[str, ...], types: tuple[str, ...], notice_type: NoticeType, model: str | None, wished: bool
) -> None:
    assert matches(wish(models, types), notice_type, model) is wished


def test_a_notice_knows_its_model() -> None:
    assert notices.example().model == "flight-delays"
    assert (
        notices.example().model_copy(update={"type": NoticeType.ARRIVAL_OBSERVED, "subject": "flights"}).model is None
    )
