"""A report as an HTTP request: a shorthand, or a CloudEvent in structured or binary mode (the HTTP protocol binding of CloudEvents 1.0)."""

from __future__ import annotations

import re
from typing import Annotated, Any
from urllib.parse import unquote_to_bytes

from fastapi import Depends, Request

from shared.arrivals import CloudEvent, Growth, Report, Shorthand, known_traceparent, parse_cloudevent, parse_shorthand
from shared.http import read_json, read_value, takes
from shared.notices import CONTENT_TYPE
from shared.problems import JSON, Rejection

BATCH_TYPE = "application/cloudevents-batch+json"
ATTRIBUTE, KEY = "ce-", "idempotency-key"
MAX_ATTRIBUTE = 2048
_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"')
_ELSEWHERE = {"data": "the body", "datacontenttype": "the Content-Type"}


async def read_report(request: Request) -> Report:
    """By media type and headers; a trace context may come as a header of its own too."""
    kind = request.headers.get("content-type", "").lower().partition(";")[0].strip()
    if kind == BATCH_TYPE:
        raise Rejection(
            415, "a batch is not taken", "send each event by itself: what is wrong with one is then its own answer"
        )
    if kind != CONTENT_TYPE and any(name.startswith(ATTRIBUTE) for name in request.headers):
        report = await _read_binary(request)
    else:
        report = await _read_body(request)
    trace = report.traceparent or known_traceparent(request.headers.get("traceparent"))
    return report.model_copy(update={"traceparent": trace})


def read_key(request: Request) -> str | None:
    """The Idempotency-Key: 1 to 256 printable characters of ASCII, taken as they are."""
    given = request.headers.getlist(KEY)
    if not given:
        return None
    if len(given) > 1:
        raise Rejection(400, "the header Idempotency-Key stands twice", "send one key for one report")
    if not re.fullmatch(r"[\x20-\x7e]{1,256}", given[0]):
        raise Rejection(
            422, "an Idempotency-Key has 1 to 256 printable characters of ASCII", "a fresh UUID is a good one"
        )
    return given[0]


Reported = Annotated[Report, Depends(read_report)]
Key = Annotated[str | None, Depends(read_key)]


async def _read_body(request: Request) -> Report:
    kind, value = await read_json(request, (JSON, CONTENT_TYPE))
    if kind == JSON and "specversion" in value:
        raise Rejection(415, "this looks like a CloudEvent", f"send it as Content-Type: {CONTENT_TYPE}")
    return parse_shorthand(value) if kind == JSON else parse_cloudevent(value)


async def _read_binary(request: Request) -> Report:
    event: dict[str, object] = dict(_attributes(request))
    empty = request.headers.get("content-length", "0") == "0" and "transfer-encoding" not in request.headers
    if not empty:  # an event without data has no body, and needs no media type
        event["datacontenttype"], event["data"] = await read_value(request, (JSON,))
    return parse_cloudevent(event)


def _attributes(request: Request) -> dict[str, str]:
    """The `ce-` headers by attribute; raises 400 for what can't be one event's."""
    found: dict[str, str] = {}
    for name, value in request.headers.items():
        if not name.startswith(ATTRIBUTE):
            continue
        attribute = name.removeprefix(ATTRIBUTE)
        if attribute in found:
            raise Rejection(400, f"the header {name[:60]} stands twice", "an event has each attribute once")
        if attribute in _ELSEWHERE:
            raise Rejection(400, f"there is no header {name} in binary mode: it is {_ELSEWHERE[attribute]}")
        found[attribute] = _decoded(name, value)
    return found


def _decoded(name: str, value: str) -> str:
    """Quotes undone, then one round of percent-decoding (HTTP protocol binding, 3.1.3.2)."""
    name = name[:60]
    if len(value) > MAX_ATTRIBUTE:
        raise Rejection(400, f"the header {name} is longer than {MAX_ATTRIBUTE} characters")
    if not re.fullmatch(r"[\x20-\x7e]*", value):
        raise Rejection(400, f"the header {name} is not ASCII", "percent-encode its UTF-8, as in Z%C3%BCrich")
    if quoted := _QUOTED.fullmatch(value):
        value = re.sub(r"\\(.)", r"\1", quoted[1])
    if re.search(r"%(?![0-9A-Fa-f]{2})", value):
        raise Rejection(400, f"the header {name} has a % that begins no code", "write %25 for a percent sign")
    try:
        return unquote_to_bytes(value).decode()
    except UnicodeDecodeError:
        raise Rejection(400, f"the header {name} is not UTF-8 once it is decoded") from None


def _openapi() -> dict[str, Any]:
    told = takes({JSON: Shorthand, CONTENT_TYPE: CloudEvent}, required=False)  # binary mode without data has no body
    content = told["requestBody"]["content"]
    content[CONTENT_TYPE]["schema"]["additionalProperties"] = True  # extensions are passed over
    data = takes({JSON: Growth})["requestBody"]["content"][JSON]["schema"]
    content[JSON]["schema"] = {"anyOf": [content[JSON]["schema"], data]}
    known = content[CONTENT_TYPE]["schema"]["properties"]
    attributes = {name: known[name] for name in known if name not in _ELSEWHERE}
    told["requestBody"]["description"] = (
        "The shorthand, or a CloudEvent in structured mode; in binary mode (with `ce-` headers) the event's data."
    )
    told["parameters"] = [
        _header(
            f"{ATTRIBUTE}{name}",
            {"type": "string"},
            f"The attribute `{name}` of a CloudEvent in binary mode, percent-encoded.",
        )
        for name in attributes
    ]
    rule = {"type": "string", "minLength": 1, "maxLength": 256, "pattern": "^[ -~]+$"}
    told["parameters"].append(
        _header("Idempotency-Key", rule, "The same key with the same report again gets the first answer.")
    )
    return told


def _header(name: str, schema: dict[str, Any], description: str) -> dict[str, Any]:
    return {"name": name, "in": "header", "required": False, "schema": schema, "description": description}


OPENAPI = _openapi()
