"""What goes out: a notice, which is a CloudEvent 1.0 about an arrival, a release, a run or a version."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Self

from pydantic import AfterValidator, BeforeValidator, Field, JsonValue

from shared.values import Strict

if TYPE_CHECKING:
    from shared.subscriptions import Subscription

CONTENT_TYPE = "application/cloudevents+json"
SOURCE = "headrace"
_RFC3339 = r"\d{4}-\d{2}-\d{2}[Tt ]\d{2}:\d{2}:\d{2}(\.\d+)?([Zz]|[+-]\d{2}:\d{2})"


class NoticeType(StrEnum):
    ARRIVAL_OBSERVED = "arrival.observed"
    RUN_FAILED = "run.failed"
    RUN_CANCELLED = "run.cancelled"
    RELEASE_REFUSED = "release.refused"
    MODEL_PAUSED = "model.paused"
    VERSION_AWAITING = "version.awaiting"
    VERSION_PROMOTED = "version.promoted"
    VERSION_REJECTED = "version.rejected"
    VERSION_ROLLED_BACK = "version.rolled_back"


EVERYTHING = "*"
PATTERNS = (EVERYTHING, *sorted({f"{kind.split('.')[0]}.*" for kind in NoticeType}), *NoticeType)
"""What a subscription may name: every type, all of one noun, or one type."""


def parse_time(value: object) -> object:
    """Text in the one form that everybody reads alike; pydantic alone would take `"1700000000"` too."""
    if not isinstance(value, str):
        return value
    if not re.fullmatch(_RFC3339, value, re.ASCII):
        raise ValueError("a time has a date, a time of day and a zone (RFC 3339)")
    return datetime.fromisoformat(value.upper())


def to_utc(value: datetime) -> datetime:
    """In UTC, between the years 2000 and 2200: further away it is a mistake of the sender."""
    if value.tzinfo is None or not 2000 <= value.year < 2200:
        raise ValueError("a time has a zone and lies between the years 2000 and 2200")
    return value.astimezone(UTC)


def check_traceparent(text: str) -> str:
    """W3C trace context, version 00: neither id may be all zeros."""
    if not re.fullmatch(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}", text):
        raise ValueError("not a W3C traceparent: 00-<32 hex>-<16 hex>-<2 hex>")
    return text


Traceparent = Annotated[str, AfterValidator(check_traceparent)]
Time = Annotated[datetime, BeforeValidator(parse_time), AfterValidator(to_utc), Field(title="time")]


class Notice(Strict):
    """`sequence` orders all notices; `subject` is the model's name, or the dataset's for an arrival."""

    id: str
    type: NoticeType
    subject: str
    time: Time
    sequence: int = Field(ge=1)
    traceparent: Traceparent | None = None
    data: dict[str, JsonValue]

    def to_cloudevent(self) -> dict[str, JsonValue]:
        """The structured JSON form; `sequence` is text there, as the extension of that name has it."""
        event: dict[str, JsonValue] = {
            "specversion": "1.0",
            "id": self.id,
            "source": SOURCE,
            "type": self.type.value,
            "subject": self.subject,
            "time": self.time.isoformat().replace("+00:00", "Z"),
            "sequence": str(self.sequence),
            "datacontenttype": "application/json",
        }
        traced: dict[str, JsonValue] = {"traceparent": self.traceparent} if self.traceparent else {}
        return {**event, **traced, "data": self.data}

    def body(self) -> bytes:
        """What is signed and sent: the same bytes each time."""
        return json.dumps(self.to_cloudevent(), separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()

    @classmethod
    def from_cloudevent(cls, event: dict[str, JsonValue]) -> Self:
        """Read `to_cloudevent` back; raises pydantic's `ValidationError` (a `ValueError`) on anything else."""
        fixed = {"specversion": "1.0", "source": SOURCE, "datacontenttype": "application/json"}
        wrong = [key for key, value in fixed.items() if event.get(key) != value]
        sequence = event.get("sequence")
        if wrong or not (isinstance(sequence, str) and sequence.isascii() and sequence.isdigit()):
            raise ValueError(f"not a notice of ours: {', '.join(wrong) or 'sequence'} differs")
        own = {key: value for key, value in event.items() if key not in fixed}
        return cls.model_validate_json(json.dumps(own | {"sequence": int(sequence)}))

    @property
    def model(self) -> str | None:
        """The model that it is about; an arrival is about a dataset alone."""
        return None if self.type is NoticeType.ARRIVAL_OBSERVED else self.subject


def matches(subscription: Subscription, notice_type: NoticeType, model: str | None) -> bool:
    """Whether it wishes for such a notice; one that is about no model goes only to who wishes for all models."""
    noun = notice_type.split(".")[0]
    wished = any(pattern in (EVERYTHING, f"{noun}.*", notice_type) for pattern in subscription.types)
    return wished and (EVERYTHING in subscription.models or model in subscription.models)


def example() -> Notice:
    return Notice(
        id="6f1c1f0e-6c1e-4d43-9d0c-0d6a3a9b8a11",
        type=NoticeType.VERSION_PROMOTED,
        subject="flight-delays",
        time=datetime(2026, 11, 23, 18, 0, tzinfo=UTC),
        sequence=42,
        traceparent="00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        data={
            "model": "flight-delays",
            "version": 3,
            "digest": "sha256:" + "ab" * 32,
            "run": 17,
            "release": "v1.4.0",
            "commit": "c0ffee" + "0" * 34,
            "metrics": {"auc": 0.71},
            "reasons": ["auc 0.71 is above 0.6", "auc rose by 0.01 against version 2"],
            "actor": "headrace",
            "replaces": 2,
        },
    )
