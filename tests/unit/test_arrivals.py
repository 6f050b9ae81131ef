"""What comes in: reports that are taken, and what each hostile one is told."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime

import pytest

from shared import arrivals
from shared.arrivals import REST_SOURCE, example_cloudevent, parse_cloudevent, parse_json, parse_shorthand
from shared.errors import Refused

TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"

HOSTILE: list[tuple[bytes, str]] = [
    (b"", "not JSON"),
    (b"{", "not JSON"),
    (b"{'a': 1}", "not JSON"),
    (b'{"a": 1} x', "not JSON"),
    (b"\xff\xfe{\x00", "not UTF-8"),
    (b"\xef\xbb\xbf{}", "not JSON"),
    (b"[" * 100_000, "nested deeper than 32"),
    (b'{"a":' * 100_000, "nested deeper than 32"),
    (b'["\\"[", ' + b"[" * 33, "nested deeper than 32"),
    (b'{"rows": ' + b"9" * 5_000 + b"}", "5000 digits"),
    (b'{"rows": 9223372036854775808}', "64 bits"),
    (b'{"rows": -9223372036854775809}', "64 bits"),
    (b'{"rows": NaN}', "NaN"),
    (b'{"rows": -Infinity}', "Infinity"),
    (b'{"rows": 1e999}', "too large"),
    (b'{"rows": ' + b"9" * 400 + b".0}", "too large"),
    (b'{"model": "a", "model": "b"}', "'model' stands twice"),
    (b'{"data": {"to": 1, "rows": 1, "to": 2}}', "'to' stands twice"),
    (b'{"id": "\\u0000"}', "NUL"),
    (b'{"\\ud800": 1}', "surrogate"),
    (b'{"id": "\xed\xa0\x80"}', "not UTF-8"),
]


@pytest.mark.parametrize(("body", "said"), HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_json_is_refused_and_raises_nothing_else(body: bytes, said: str) -> None:
    with pytest.raises(Refused) as caught:
        parse_json(body)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    "body", [b"[" * 1_000_000, b"[]," * 330_000, b'"' + b'\\"' * 500_000, b'{"":1,' * 33, b'"\\' * 500_000]
)
def test_a_hostile_body_of_a_megabyte_costs_little(body: bytes) -> None:
    started = time.process_time()
    with pytest.raises(Refused):
        parse_json(body)
    assert time.process_time() - started < 2


def test_plain_json_is_read_as_it_is() -> None:
    value = {"a": [1, -1.5, True, None, 'ü [{ \\ " \u20ac'], "b": {"c": 2**63 - 1}}
    assert parse_json(json.dumps(value).encode()) == value
    assert parse_json(json.dumps(value, ensure_ascii=False).encode()) == value
    assert parse_json(b"[" * 32 + b"]" * 32) is not None
    assert parse_json(rb'"\\u0000 \ud83d\ude00"') == "\\u0000 \U0001f600"


def test_a_cloudevent_becomes_a_report() -> None:
    report = parse_cloudevent(example_cloudevent() | {"traceparent": TRACE})
    assert (report.dataset, report.from_point, report.to_point, report.rows) == ("flights", 27004, 51955, 24951)
    assert (report.source, report.event_id, report.traceparent) == ("/airport/loader", "batch-2013-02", TRACE)
    assert report.occurred_at == datetime(2026, 11, 23, 18, 0, tzinfo=UTC)
    assert arrivals.example() == parse_cloudevent(example_cloudevent())


def test_a_broker_may_add_extensions_and_leave_the_data_out() -> None:
    event = {key: value for key, value in example_cloudevent().items() if key != "data"}
    report = parse_cloudevent(event | {"knativearrivaltime": "x", "partitionkey": "3", "dataschema": None})
    assert (report.to_point, report.rows) == (None, None)


@pytest.mark.parametrize("text", ["", "x", TRACE.upper(), "00-" + "0" * 32 + TRACE[35:], TRACE + "-1", 5])
def test_a_malformed_trace_is_passed_over(text: object) -> None:
    assert parse_cloudevent(example_cloudevent() | {"traceparent": text}).traceparent is None


def test_a_time_in_another_zone_is_kept_in_utc() -> None:
    report = parse_cloudevent(example_cloudevent() | {"time": "2026-11-23T20:30:00.25+02:30"})
    assert report.occurred_at == datetime(2026, 11, 23, 18, 0, 0, 250_000, tzinfo=UTC)


EVENTS: list[tuple[dict[str, object], str]] = [
    ({"specversion": "0.3"}, 'specversion: "0.3" is not known here'),
    ({"specversion": 1.0}, 'specversion: expected "1.0", found the number 1.0'),
    ({"id": ""}, "id: '' is not a text of 1 to 256 characters"),
    ({"id": 7}, "id: expected text, found the number 7"),
    ({"id": "x" * 257}, "is not a text of 1 to 256"),
    ({"id": "a\nb"}, "without control characters"),
    ({"source": None}, "source: is missing"),
    ({"type": "dataset.arived"}, 'did you mean "dataset.arrived"?'),
    ({"subject": "../../etc/passwd"}, "is not a name"),
    ({"subject": "a/b"}, "is not a name"),
    ({"subject": "a%2e%2e"}, "is not a name"),
    ({"subject": "Ａ"}, "is not a name"),
    ({"subject": "x" * 10_000}, "is not a name"),
    ({"subject": "flights\n"}, "is not a name"),
    ({"time": "9999-12-31T23:59:59Z"}, "between the years 2000 and 2200"),
    ({"time": "9999-12-31T23:59:59-14:00"}, "between the years 2000 and 2200"),
    ({"time": "-1"}, "a date, a time of day and a zone"),
    ({"time": "1700000000"}, "a date, a time of day and a zone"),
    ({"time": -1}, "expected time, found the number -1"),
    ({"time": "2026-11-23T18:00:00"}, "a date, a time of day and a zone"),
    ({"time": "2026-02-30T18:00:00Z"}, "time: "),
    ({"datacontenttype": "text/csv"}, 'known: application/json'),
    ({"data": [1]}, "data: expected table, found a list"),
    ({"data": {"rows": "5"}}, "data.rows: expected whole number, found text"),
    ({"data": {"rows": 0}}, "data.rows: must be at least 1"),
    ({"data": {"from": 5}}, "data.to: is missing beside from"),
    ({"data": {"from": 5, "to": "6"}}, "both whole numbers or both text"),
    ({"data": {"from": 6, "to": 5}}, "ends above where it starts"),
    ({"data": {"from": True, "to": 5}}, "expected whole number or text, found true"),
    ({"data": {"to": 1.5}}, "expected whole number or text, found the number 1.5"),
    ({"data": {"to": 2**63}}, "must be less than 9223372036854775808"),
    ({"data": {"uri": "file:///etc/shadow"}}, "data.uri: unknown key"),
    ({"rows": 5}, "rows: unknown key; write it in data"),
    ({"command": "x"}, "command: unknown key; the release says what is run"),
    ({"env": {"A": "b"}}, "env: unknown key"),
    ({"queue": "gpu"}, "queue: unknown key"),
    ({"Not_An_Extension": 1}, "unknown key"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "said"), EVENTS, ids=range(len(EVENTS)))
def test_a_wrong_cloudevent_is_told_what_would_be_right(change: dict[str, object], said: str) -> None:
    with pytest.raises(Refused) as caught:
        parse_cloudevent(example_cloudevent() | change)
    assert said in str(caught.value)


def test_the_shorthand_becomes_a_report() -> None:
    report = parse_shorthand({"dataset": "flights", "from": "2013-01", "to": "2013-02", "rows": 10, "id": "x"})
    assert (report.dataset, report.from_point, report.to_point, report.rows) == ("flights", "2013-01", "2013-02", 10)
    assert (report.source, report.event_id) == (REST_SOURCE, "x")
    assert parse_shorthand({"dataset": "flights"}).to_point is None


SHORTHANDS: list[tuple[dict[str, object], str]] = [
    ({}, 'dataset: is missing (name); for example "dataset": "flights"'),
    ({"dataset": None}, "dataset: expected name, found nothing"),
    ({"dataset": "a", "rows": "10"}, "rows: expected whole number, found text"),
    ({"dataset": "a", "row": 10}, 'row: unknown key; did you mean "rows"?'),
    ({"dataset": "a", "from_point": 1}, 'from_point: unknown key'),
    ({"dataset": "a", "event_id": "x"}, "event_id: unknown key"),
    ({"dataset": "a", "occurred_at": "9999-01-01"}, "occurred_at: unknown key"),
    ({"dataset": "a", "model": "m"}, "an event names a dataset"),
    ({"dataset": "a", "env": {}}, "env: unknown key"),
    ({"dataset": "a", "rows": -5}, "must be at least 1"),
    ({"dataset": "a", "to": {"x": 1}}, "to: expected whole number or text, found a table"),
    ({"dataset": "a", "from": 1, "to": 1}, "ends above where it starts"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "said"), SHORTHANDS, ids=range(len(SHORTHANDS)))
def test_a_wrong_shorthand_is_told_what_would_be_right(body: dict[str, object], said: str) -> None:
    with pytest.raises(Refused) as caught:
        parse_shorthand(body)
    assert said in str(caught.value)


def test_all_that_is_wrong_is_said_at_once() -> None:
    with pytest.raises(Refused) as caught:
        parse_shorthand({"dataset": "A", "rows": 0, "x": 1})
    assert len(str(caught.value).splitlines()) == 3
