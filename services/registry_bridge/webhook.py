"""One attempt to deliver one notice: signed after Standard Webhooks, to a judged address, inside one deadline."""

from __future__ import annotations

import contextlib
import http.client
import random
import re
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime

from standardwebhooks.webhooks import EmptyWebhookSecretError, Webhook

from services.registry_bridge.egress import Endpoint, Network, Resolver, addresses, look_up, parse
from shared.errors import ConfigurationError, HeadraceError

DEADLINE_S = 15.0
MAX_ANSWER_BYTES = 64 * 1024
MAX_RETRY_AFTER_S = 24 * 3600.0
_S, _M, _H = timedelta(seconds=1), timedelta(minutes=1), timedelta(hours=1)
SCHEDULE = (5 * _S, 5 * _M, 30 * _M, 2 * _H, 5 * _H, 10 * _H, 14 * _H, 20 * _H, 24 * _H)
"""After the first, second, … failed attempt: ten attempts over 75:35:05, the example of the Standard Webhooks specification."""


@dataclass(frozen=True)
class Answer:
    """What became of an attempt. Delivered when `error` is None; `gone`: the receiver wants no more of these."""

    status: int | None
    error: str | None
    retry_after_s: float | None = None
    gone: bool = False


def retry_after(attempt: int, rng: random.Random) -> timedelta | None:
    """How long to wait after the `attempt`-th (from 1) has failed, give or take a fifth; None when all are used up."""
    return SCHEDULE[attempt - 1] * rng.uniform(0.8, 1.2) if attempt <= len(SCHEDULE) else None


def send(
    url: str,
    secret: str,
    *,
    delivery_id: str,
    body: bytes,
    now: datetime,
    allow_private: Sequence[Network] = (),
    deadline_s: float = DEADLINE_S,
    resolve: Resolver = look_up,
    trust: ssl.SSLContext | None = None,
) -> Answer:
    """Post `body` once. Every way to fail is an Answer; only an unusable secret raises (`ConfigurationError`).

    `delivery_id` stays the same over retries, `now` does not. `deadline_s` is for all of it, from the name's resolution to the last
    byte. Redirects are failures and proxies are not used: both would lead past the guard.
    """
    headers = _signed(secret, delivery_id, body, now)
    ends_at = time.monotonic() + deadline_s
    try:
        endpoint = parse(url)
        found = addresses(endpoint, allow_private, resolve, deadline_s)
        with _connected(endpoint, found, ends_at, trust) as connection:
            return _exchange(endpoint, connection, headers, body, now)
    except HeadraceError as error:
        return Answer(None, error.message)
    except (OSError, http.client.HTTPException, ValueError) as error:
        late = time.monotonic() >= ends_at
        return Answer(None, f"no answer within {deadline_s:g} s" if late else f"{type(error).__name__}: {error}"[:300])


def _signed(secret: str, delivery_id: str, body: bytes, now: datetime) -> dict[str, str]:
    try:
        signer = Webhook(secret)
    except (ValueError, EmptyWebhookSecretError):
        raise ConfigurationError(
            "a subscription's secret is not one: write whsec_ and 24 to 64 random bytes in base64"
        ) from None
    moment = now.astimezone(UTC)  # the library takes the clock's face for UTC, whatever the zone
    return {
        "content-type": "application/cloudevents+json",
        "content-length": str(len(body)),
        "user-agent": "headrace",
        "webhook-id": delivery_id,
        "webhook-timestamp": str(int(moment.timestamp())),
        "webhook-signature": signer.sign(delivery_id, moment, body.decode()),
    }


@contextlib.contextmanager
def _connected(
    endpoint: Endpoint, found: Sequence[str], ends_at: float, trust: ssl.SSLContext | None
) -> Iterator[http.client.HTTPConnection]:
    """A connection to the first address that takes one, cut when `ends_at` comes, whatever it is doing then.

    A timeout on the socket starts anew with every byte, so a receiver that trickles would hold it for ever.
    """
    sock = _connect(found, endpoint.port, ends_at)
    if endpoint.secure:
        context = trust or ssl.create_default_context()
        sock = context.wrap_socket(sock, server_hostname=endpoint.host, do_handshake_on_connect=False)
    watch = threading.Timer(max(ends_at - time.monotonic(), 0.0), _cut, [sock])
    watch.daemon = True
    watch.start()
    try:
        if isinstance(sock, ssl.SSLSocket):
            sock.do_handshake()
        connection = http.client.HTTPConnection(endpoint.host, endpoint.port)
        connection.sock = sock
        yield connection
    finally:
        watch.cancel()
        sock.close()


def _connect(found: Sequence[str], port: int, ends_at: float) -> socket.socket:
    failure: OSError = TimeoutError("no time left to connect")
    for address in found:
        left = ends_at - time.monotonic()
        if left <= 0:
            break
        try:
            sock = socket.create_connection((address, port), timeout=left)
        except OSError as error:
            failure = error
            continue
        sock.settimeout(max(ends_at - time.monotonic(), 0.001))
        return sock
    raise failure


def _cut(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        socket.socket.shutdown(sock, socket.SHUT_RDWR)  # the plain one: TLS's own takes the session from under a reader


def _exchange(
    endpoint: Endpoint, connection: http.client.HTTPConnection, headers: dict[str, str], body: bytes, now: datetime
) -> Answer:
    connection.putrequest("POST", endpoint.target, skip_host=True, skip_accept_encoding=True)
    for name, value in {"host": endpoint.authority, **headers, "connection": "close"}.items():
        connection.putheader(name, value)
    connection.endheaders(body)
    reply = connection.getresponse()
    said = b""
    with contextlib.suppress(
        OSError, http.client.HTTPException, ValueError
    ):  # the status has been heard: the rest is courtesy
        said = reply.read(MAX_ANSWER_BYTES)
    if 200 <= reply.status < 300:
        return Answer(reply.status, None)
    wait_s = _retry_after_s(reply.getheader("retry-after"), now)
    return Answer(reply.status, _explain(reply.status, said), wait_s, gone=reply.status == 410)


def _explain(status: int, said: bytes) -> str:
    if 300 <= status < 400:
        return f"answered {status}: redirects are not followed; subscribe the address that it leads to"
    text = re.sub(r"[^\x20-\x7e]+", " ", said[:1000].decode("latin-1")).strip()
    return f"answered {status}" + (f": {text[:200]}" if text else "")


def _retry_after_s(header: str | None, now: datetime) -> float | None:
    """Seconds or a date, as RFC 9110 has it; at most a day, and nothing for what is neither."""
    if header is None:
        return None
    try:
        wait_s = float(header) if header.isdecimal() else (parsedate_to_datetime(header) - now).total_seconds()
    except (ValueError, TypeError):
        return None
    return min(max(wait_s, 0.0), MAX_RETRY_AFTER_S)
