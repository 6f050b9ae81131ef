"""What comes in: a report that a dataset has grown, as a CloudEvent or in a plain shorthand; read from hostile JSON."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from datetime import datetime
from math import isfinite
from typing import Annotated, Literal, NoReturn, Self, TypeVar

from pydantic import Field, ValidationError, model_validator

from shared.errors import Refused
from shared.explain import explain, refusal
from shared.notices import Time, check_traceparent
from shared.values import Name, Strict, rule

EVENT_TYPE = "dataset.arrived"
REST_SOURCE = "rest"
"""The `source` of a report in shorthand, which names none."""

MAX_DEPTH = 32
_TOKENS = re.compile(r'"(?:[^"\\]++|\\.)*+"?|[\[{]|[\]}]', re.DOTALL)
_EXTENSION = re.compile(r"[a-z0-9]{1,40}")
_OURS = {key: f'write it in data: {{"{key}": …}}' for key in ("from", "to", "rows")} | {
    "dataset": "a CloudEvent names the dataset as its subject",
    "model": "an event names a dataset; its models are trained by it",
    "command": "the release says what is run",
    "env": "the operator's file says which variables are passed",
    "queue": "the release names its compute class",
}
"""What a sender may believe to mean something beside `data`: refused, not passed over as an extension would be."""

Read = TypeVar("Read", bound=Strict)


Word = Annotated[str, rule(r"[^\x00-\x1f\x7f]{1,256}", "a text of 1 to 256 characters without control characters")]
PointInt = Annotated[int, Field(ge=-(2**63), lt=2**63, title="whole number")]
Point = PointInt | Word
"""How far a dataset goes, in its cursor's terms: an integer, or text as its source orders it."""


class Report(Strict):
    """A dataset has grown by what lies in `(from_point, to_point]`; what is None is not known.

    `source` and `event_id` together tell a repeated report from a new one.
    """

    dataset: Name
    from_point: Point | None = None
    to_point: Point | None = None
    rows: int | None = None
    source: str
    event_id: str | None = None
    occurred_at: datetime | None = None
    traceparent: str | None = None


class Growth(Strict):
    """The range and size, as a CloudEvent's `data` gives them."""

    from_point: Point | None = Field(None, alias="from", title="whole number or text", examples=[1000])
    to_point: Point | None = Field(None, alias="to", title="whole number or text", examples=[2000])
    rows: int | None = Field(None, ge=1, lt=2**63, examples=[1000])

    @model_validator(mode="after")
    def _range_rises(self) -> Self:
        start, end = self.from_point, self.to_point
        if start is None:
            return self
        if end is None:
            raise refusal((("to",), "is missing beside from"))
        if type(start) is not type(end):
            raise refusal((("to",), "from and to are both whole numbers or both text"))
        if start == end or (isinstance(start, int) and isinstance(end, int) and start > end):
            raise refusal(
                (("to",), "an arrival ends above where it starts; for a look without a range leave both away")
            )
        return self


class Shorthand(Growth):
    """The plain JSON body."""

    dataset: Name = Field(examples=["flights"])
    event_id: Word | None = Field(None, alias="id", examples=["batch-2013-02"])


class CloudEvent(Strict):
    """The context attributes of CloudEvents 1.0 that mean something here."""

    specversion: Literal["1.0"] = Field(examples=["1.0"])
    id: Word = Field(examples=["batch-2013-02"])
    source: Word = Field(examples=["/airport/loader"])
    type: Literal["dataset.arrived"] = Field(examples=[EVENT_TYPE])
    subject: Name = Field(description="The dataset.", examples=["flights"])
    time: Time | None = Field(None, examples=["2026-11-23T18:00:00Z"])
    datacontenttype: Literal["application/json"] | None = Field(None, examples=["application/json"])
    data: Growth = Field(default=Growth())


def parse_cloudevent(event: Mapping[str, object]) -> Report:
    """Read a structured CloudEvent; raises `Refused` with one line for each thing that is wrong.

    Extension attributes (a broker adds its own) are passed over, as the standard wants it, but for `traceparent`;
    a malformed one is passed over too, as W3C wants it.
    """
    known = CloudEvent.model_fields
    extensions = {key for key in event if key not in known and key not in _OURS and _EXTENSION.fullmatch(key)}
    read = _read(
        CloudEvent, {key: value for key, value in event.items() if key not in extensions and value is not None}
    )
    return Report(
        dataset=read.subject,
        **dict(read.data),
        source=read.source,
        event_id=read.id,
        occurred_at=read.time,
        traceparent=known_traceparent(event.get("traceparent")),
    )


def parse_shorthand(body: Mapping[str, object]) -> Report:
    """Read `{"dataset", "from"?, "to"?, "rows"?, "id"?}`; raises `Refused` with one line for each thing that is wrong."""
    return Report(**dict(_read(Shorthand, body)), source=REST_SOURCE)


def known_traceparent(text: object) -> str | None:
    """`text` if it is a trace context that can be carried on."""
    try:
        return check_traceparent(text) if isinstance(text, str) else None
    except ValueError:
        return None


def fingerprint(report: Report) -> str:
    """`sha256:…` of what is reported, whatever the form it was sent in; the trace that it was sent under does not count."""
    return "sha256:" + hashlib.sha256(report.model_dump_json(exclude={"traceparent"}).encode()).hexdigest()


def _read(model: type[Read], data: Mapping[str, object]) -> Read:
    try:
        return model.model_validate_json(json.dumps(data))
    except ValidationError as error:
        problems = explain(error, model, data, _OURS, assignment='"{key}": {value}')
        raise Refused("\n".join(problem.text for problem in problems)) from None


def parse_json(body: bytes) -> object:
    """Read JSON that means one thing to everybody; raises `Refused`, and never anything else, however hostile.

    Refused: bytes that are not UTF-8, nesting beyond 32, a key that stands twice, NaN and infinities (also as 1e999), whole
    numbers beyond 64 bits, NUL and half characters in text.
    """
    try:
        text = body.decode()
    except UnicodeDecodeError as error:
        raise Refused(f"the body is not UTF-8 (byte {error.start}); send JSON in UTF-8") from None
    _check_depth(text)
    try:
        value: object = json.loads(
            text, object_pairs_hook=_unique, parse_constant=_no_constant, parse_float=_finite, parse_int=_bounded
        )
    except json.JSONDecodeError as error:
        raise Refused(f"the body is not JSON: {error.msg} (line {error.lineno}, column {error.colno})") from None
    if "\\u" in text:
        _check_characters(value)
    return value


def _check_depth(text: str) -> None:
    depth = 0
    for token in _TOKENS.finditer(text):
        opened = token[0]
        depth += 1 if opened in "[{" else -1 if opened in "]}" else 0
        if depth > MAX_DEPTH:
            raise Refused(f"the body is nested deeper than {MAX_DEPTH} levels; nothing here needs that")


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in found if keys.count(key) > 1)
        raise Refused(f"the key {twice[:60]!r} stands twice in one object; send it once")
    return found


def _no_constant(name: str) -> NoReturn:
    raise Refused(f"{name} is not JSON and no number to count with; send a finite number or null")


def _finite(digits: str) -> float:
    value = float(digits)
    if not isfinite(value):
        raise Refused(f"the number {digits[:30]} is too large for a 64-bit float")
    return value


def _bounded(digits: str) -> int:
    if len(digits) > 20 or not -(2**63) <= int(digits) < 2**63:
        raise Refused(f"a whole number of {len(digits)} digits does not fit in 64 bits; send it as text")
    return int(digits)


def _check_characters(value: object) -> None:
    if isinstance(value, str) and any(one == "\x00" or "\ud800" <= one <= "\udfff" for one in value):
        raise Refused("a text holds a NUL or half of a character (a lone surrogate), which no database takes")
    if isinstance(value, dict):
        value = [*value.keys(), *value.values()]
    for inner in value if isinstance(value, list) else ():
        _check_characters(inner)


def example() -> Report:
    return parse_cloudevent(example_cloudevent())


def example_cloudevent() -> dict[str, object]:
    return {
        "specversion": "1.0",
        "id": "batch-2013-02",
        "source": "/airport/loader",
        "type": EVENT_TYPE,
        "subject": "flights",
        "time": "2026-11-23T18:00:00Z",
        "datacontenttype": "application/json",
        "data": {"from": 27004, "to": 51955, "rows": 24951},
    }
