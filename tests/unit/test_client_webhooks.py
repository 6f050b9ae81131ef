"""The client's check of a webhook, against the official library on the other side, both ways."""

from __future__ import annotations

import base64
import hashlib
import hmac
import itertools
import json
import time
from datetime import UTC, datetime
from typing import Any

import pytest
from headrace.webhooks import Newest, Notice, NotVerified, parse, verify
from standardwebhooks import Webhook

SECRET = "whsec_" + base64.b64encode(b"a secret of the storefront, 32 b").decode()
OTHER = "whsec_" + base64.b64encode(b"another one, of before the change").decode()


def event(**changes: Any) -> dict[str, Any]:
    told = {
        "specversion": "1.0",
        "id": "8d7f",
        "source": "headrace",
        "type": "version.promoted",
        "subject": "flight-delays",
        "time": "2026-11-23T18:00:00Z",
        "sequence": "42",
        "datacontenttype": "application/json",
        "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "data": {"model": "flight-delays", "version": 14, "digest": "sha256:aa", "replaces": 12, "decision": "promoté"},
    }
    return {**told, **changes}


BODY = json.dumps(event(), ensure_ascii=False).encode()


def signed(body: bytes, *secrets: str, at: float | None = None) -> dict[str, str]:
    """The headers as the official library signs."""
    stamp = int(time.time() if at is None else at)
    signatures = [
        Webhook(secret).sign("dlv_1", datetime.fromtimestamp(stamp, tz=UTC), body.decode()) for secret in secrets
    ]
    return {"webhook-id": "dlv_1", "webhook-timestamp": str(stamp), "webhook-signature": " ".join(signatures)}


def test_what_the_official_library_signs_is_verified() -> None:
    notice = verify(BODY, signed(BODY, SECRET), SECRET)
    assert (notice.type, notice.subject, notice.sequence, notice.version, notice.digest) == (
        "version.promoted",
        "flight-delays",
        42,
        14,
        "sha256:aa",
    )
    assert notice.data["decision"] == "promoté"
    assert notice.traceparent == event()["traceparent"]


def test_what_we_verify_the_official_library_verifies_too() -> None:
    stamp = str(int(time.time()))
    key = base64.b64decode(SECRET[len("whsec_") :])
    mac = base64.b64encode(hmac.new(key, f"dlv_1.{stamp}.".encode() + BODY, hashlib.sha256).digest()).decode()
    headers = {"webhook-id": "dlv_1", "webhook-timestamp": stamp, "webhook-signature": f"v1,{mac}"}
    assert verify(BODY, headers, SECRET).sequence == 42
    assert Webhook(SECRET).verify(BODY, headers)["sequence"] == "42"


@pytest.mark.parametrize("change", ["body", "webhook-id", "webhook-timestamp", "webhook-signature"])
def test_one_changed_byte_is_refused(change: str) -> None:
    headers, body = signed(BODY, SECRET), BODY
    if change == "body":
        body = BODY.replace(b"14", b"15")
    elif change == "webhook-timestamp":
        headers[change] = str(int(headers[change]) - 1)
    else:
        headers[change] = headers[change][:-3] + ("AA=" if headers[change][-3:] != "AA=" else "BB=")
    with pytest.raises(NotVerified):
        verify(body, headers, SECRET)


def test_another_secret_is_refused() -> None:
    with pytest.raises(NotVerified, match="no signature was made with our secret"):
        verify(BODY, signed(BODY, OTHER), SECRET)


@pytest.mark.parametrize(("skew_s", "accepted"), [(-300, True), (300, True), (-301, False), (301, False)])
def test_a_request_sent_again_after_five_minutes_is_refused(skew_s: int, accepted: bool) -> None:
    headers = signed(BODY, SECRET, at=1_800_000_000)
    if accepted:
        assert verify(BODY, headers, SECRET, now=1_800_000_000 + skew_s).sequence == 42
        return
    with pytest.raises(NotVerified, match="300 s"):
        verify(BODY, headers, SECRET, now=1_800_000_000 + skew_s)


@pytest.mark.parametrize(
    ("signers", "known"), [([SECRET, OTHER], SECRET), ([SECRET], [OTHER, SECRET]), ([OTHER, SECRET], [SECRET])]
)
def test_a_secret_can_be_changed_without_losing_a_notice(signers: list[str], known: str | list[str]) -> None:
    assert verify(BODY, signed(BODY, *signers), known).sequence == 42


def test_signatures_of_other_kinds_do_not_spoil_a_good_one() -> None:
    headers = signed(BODY, SECRET)
    headers["webhook-signature"] = "v1a,xyz v1,%%% nonsense " + headers["webhook-signature"]
    assert verify(BODY, headers, SECRET).sequence == 42


def test_header_names_are_read_in_any_case() -> None:
    headers = {name.title(): value for name, value in signed(BODY, SECRET).items()}
    assert verify(BODY, headers, SECRET).sequence == 42


@pytest.mark.parametrize("missing", ["webhook-id", "webhook-timestamp", "webhook-signature"])
def test_a_missing_header_is_named(missing: str) -> None:
    headers = signed(BODY, SECRET)
    del headers[missing]
    with pytest.raises(NotVerified, match=missing):
        verify(BODY, headers, SECRET)


@pytest.mark.parametrize("stamp", ["", "now", "1e9", "-5", "1" * 40, "٣٣"])
def test_a_timestamp_that_is_no_number_is_refused(stamp: str) -> None:
    with pytest.raises(NotVerified, match="webhook-timestamp"):
        verify(BODY, {**signed(BODY, SECRET), "webhook-timestamp": stamp}, SECRET)


@pytest.mark.parametrize("secret", ["", "whsec_", "whsec_*", []])
def test_an_unusable_secret_never_verifies(secret: str | list[str]) -> None:
    with pytest.raises((ValueError, NotVerified)):
        verify(BODY, signed(BODY, SECRET), secret)


@pytest.mark.parametrize("body", [b"[]", b"{}", b"not json", b'"x"', json.dumps(event(sequence="many")).encode()])
def test_a_signed_body_that_is_no_notice_is_refused(body: bytes) -> None:
    with pytest.raises(NotVerified, match="no notice"):
        verify(body, signed(body, SECRET), SECRET)


def notice(sequence: int, *, id: str | None = None, subject: str = "flight-delays") -> Notice:
    return parse(event(sequence=str(sequence), id=id or f"notice-{sequence}", subject=subject))


def test_whatever_the_order_of_arrival_the_newest_notice_is_the_last_accepted() -> None:
    for order in itertools.permutations([1, 2, 3, 3]):
        newest = Newest()
        accepted = [sequence for sequence in order if newest.accept(notice(sequence))]
        assert accepted == sorted(set(accepted))
        assert accepted[-1] == 3


def test_a_notice_passes_once() -> None:
    newest = Newest()
    assert newest.accept(notice(5, id="a"))
    assert not newest.accept(notice(5, id="a"))
    assert not newest.accept(notice(6, id="a"))
    assert not newest.accept(notice(5, id="b"))


def test_models_do_not_hold_each_other_back() -> None:
    newest = Newest()
    assert newest.accept(notice(9))
    assert newest.accept(notice(4, subject="churn"))


def test_what_has_passed_is_known_after_a_restart() -> None:
    before = Newest()
    before.accept(notice(9))
    after = Newest(before.sequences)
    assert not after.accept(notice(8))
    assert after.accept(notice(10))
