"""Notices: what Headrace tells a consumer, and the proof that it was Headrace (Standard Webhooks)."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import re
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any, Dict, List, Mapping, Optional, Union

TOLERANCE_S = 300
_REMEMBERED = 1_000


class NotVerified(Exception):
    """This request is not proven to come from Headrace, or is no notice: answer 401 and do nothing."""


@dataclass(frozen=True)
class Notice:
    """One CloudEvent of Headrace. `sequence` grows by commit, over all models; `data` depends on `type`."""

    id: str
    type: str
    subject: str
    sequence: int
    time: str
    data: Mapping[str, Any] = field(repr=False)
    traceparent: Optional[str] = None

    @property
    def version(self) -> int:
        """The version that the notice is about; `KeyError` for a type that has none."""
        return int(self.data["version"])

    @property
    def digest(self) -> str:
        """`sha256:…` of that version's manifest: what `consumer.pull` is to be given."""
        return str(self.data["digest"])


def verify(
    body: bytes,
    headers: Mapping[str, str],
    secret: Union[str, List[str]],
    *,
    tolerance_s: int = TOLERANCE_S,
    now: Optional[float] = None,
) -> Notice:
    """The notice in a webhook's body, if one of its signatures was made with one of the secrets.

    `body` is the request's, byte for byte; several secrets serve a rotation. `now` is in Unix seconds.
    Raises `NotVerified`, also when the signature is older or newer than `tolerance_s` (a captured request sent again).
    """
    given = {name.lower(): value for name, value in headers.items()}
    try:
        delivery, stamp, signatures = (given["webhook-" + name] for name in ("id", "timestamp", "signature"))
    except KeyError as error:
        raise NotVerified(f"the header {error.args[0]} is missing") from None
    if not re.fullmatch(r"[0-9]{1,12}", stamp):
        raise NotVerified("webhook-timestamp is not in whole seconds")
    if abs((time.time() if now is None else now) - int(stamp)) > tolerance_s:
        raise NotVerified(f"signed more than {tolerance_s} s from now: sent again, or a clock is wrong")
    signed = f"{delivery}.{stamp}.".encode() + body
    secrets = [secret] if isinstance(secret, str) else secret
    expected = [hmac.new(_key(each), signed, hashlib.sha256).digest() for each in secrets]
    # Every pair is compared: the time taken does not tell which secret or signature fitted.
    if not any([hmac.compare_digest(ours, theirs) for ours in expected for theirs in _v1(signatures)]):
        raise NotVerified("no signature was made with our secret")
    return parse(body)


def parse(body: Union[bytes, Dict[str, Any]]) -> Notice:
    """A CloudEvent as a notice. It proves nothing: use `verify` for what came over the network unasked."""
    try:
        event = body if isinstance(body, dict) else json.loads(body)
        return Notice(
            id=str(event["id"]),
            type=str(event["type"]),
            subject=str(event["subject"]),
            sequence=int(event["sequence"]),
            time=str(event["time"]),
            data=dict(event["data"]),
            traceparent=event.get("traceparent"),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise NotVerified(f"the body is no notice of Headrace: {error!r}") from error


class Newest:
    """Lets each notice of a subject pass once, and none that is older than one that has passed. Safe for threads.

    Webhooks come at least once and in any order: retries of an old promotion may arrive after a newer one.
    Keep `sequences` over restarts and give it back, or an old retry is taken for new.
    """

    def __init__(self, sequences: Optional[Mapping[str, int]] = None) -> None:
        self._lock = threading.Lock()
        self._sequences: Dict[str, int] = dict(sequences or {})
        self._ids: OrderedDict[str, None] = OrderedDict()

    @property
    def sequences(self) -> Dict[str, int]:
        """The highest sequence that has passed, by subject."""
        with self._lock:
            return dict(self._sequences)

    def accept(self, notice: Notice) -> bool:
        with self._lock:
            if notice.id in self._ids or notice.sequence <= self._sequences.get(notice.subject, -1):
                return False
            self._sequences[notice.subject] = notice.sequence
            self._ids[notice.id] = None
            if len(self._ids) > _REMEMBERED:
                self._ids.popitem(last=False)
            return True


def _key(secret: str) -> bytes:
    """The bytes of a `whsec_…`; padding may be missing."""
    text = secret.strip()
    text = text[len("whsec_") :] if text.startswith("whsec_") else text
    try:
        key = base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except binascii.Error as error:
        raise ValueError("a webhook secret is base64, after whsec_; this one is not") from error
    if not key:
        raise ValueError("the webhook secret is empty: anybody could sign with it")
    return key


def _v1(header: str) -> List[bytes]:
    found = []
    for part in header.split():
        version, _, signature = part.partition(",")
        if version == "v1":
            try:
                found.append(base64.b64decode(signature, validate=True))
            except ValueError:
                continue  # one unreadable signature does not spoil the others
    return found
