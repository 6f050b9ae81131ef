"""One delivery attempt against real receivers, well and badly behaved."""

from __future__ import annotations

import contextlib
import json
import random
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, timezone
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from standardwebhooks import Webhook, WebhookVerificationError

from services.registry_bridge.webhook import MAX_ANSWER_BYTES, SCHEDULE, Answer, retry_after, send
from shared.errors import ConfigurationError

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
LOOPBACK = (ip_network("127.0.0.0/8"),)
BODY = json.dumps(
    {"specversion": "1.0", "type": "version.promoted", "data": {"name": "café"}}, ensure_ascii=False
).encode()
OK = b"HTTP/1.1 204 No Content\r\n\r\n"


@dataclass
class Receiver:
    """Accepts connections on loopback, keeps what was said and answers as told."""

    answer: Callable[[socket.socket], object]
    context: ssl.SSLContext | None = None
    heard: list[bytes] = field(default_factory=list)
    connections: int = 0
    url: str = ""
    port: int = 0

    def serve(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                taken, _ = listener.accept()
                self.connections += 1
                threading.Thread(target=self.one, args=[taken], daemon=True).start()

    def one(self, taken: socket.socket) -> None:
        with contextlib.suppress(OSError), taken:
            stream = self.context.wrap_socket(taken, server_side=True) if self.context else taken
            said = b""
            while b"\r\n\r\n" not in said or len(said.partition(b"\r\n\r\n")[2]) < _length(said):
                if not (more := stream.recv(65536)):
                    break
                said += more
            self.heard.append(said)
            self.answer(stream)
            stream.close()

    @property
    def headers(self) -> dict[str, str]:
        head = self.heard[-1].partition(b"\r\n\r\n")[0].decode()
        return {name.lower(): value for name, _, value in (line.partition(": ") for line in head.split("\r\n")[1:])}

    @property
    def body(self) -> bytes:
        return self.heard[-1].partition(b"\r\n\r\n")[2]


def _length(said: bytes) -> int:
    found = [line for line in said.split(b"\r\n") if line.lower().startswith(b"content-length:")]
    return int(found[0].partition(b":")[2])


@contextlib.contextmanager
def receiving(
    answer: bytes | Callable[[socket.socket], object], context: ssl.SSLContext | None = None
) -> Iterator[Receiver]:
    receiver = Receiver((lambda stream: stream.sendall(answer)) if isinstance(answer, bytes) else answer, context)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        receiver.port = listener.getsockname()[1]
        receiver.url = f"http://127.0.0.1:{receiver.port}/hook?x=1"
        thread = threading.Thread(target=receiver.serve, args=[listener], daemon=True)
        thread.start()
        yield receiver
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(5)


def deliver(url: str, **options: Any) -> Answer:
    given = {
        "delivery_id": "01JD",
        "body": BODY,
        "now": datetime.now(UTC),
        "allow_private": LOOPBACK,
        "deadline_s": 5.0,
    }
    return send(url, SECRET, **{**given, **options})


def test_the_official_verifier_accepts_what_arrives() -> None:
    with receiving(OK) as receiver:
        assert deliver(receiver.url) == Answer(204, None)
    assert Webhook(SECRET).verify(receiver.body, receiver.headers) == json.loads(BODY)
    assert receiver.heard[0].startswith(b"POST /hook?x=1 HTTP/1.1\r\n")
    assert receiver.headers["host"] == f"127.0.0.1:{receiver.port}"
    assert receiver.headers["webhook-id"] == "01JD"
    assert receiver.headers["content-type"] == "application/cloudevents+json"
    with pytest.raises(WebhookVerificationError):
        Webhook(SECRET).verify(receiver.body + b" ", receiver.headers)


def test_a_time_in_another_zone_is_signed_as_the_same_moment() -> None:
    now = datetime.now(timezone(timedelta(hours=9)))
    with receiving(OK) as receiver:
        deliver(receiver.url, now=now)
    assert receiver.headers["webhook-timestamp"] == str(int(now.timestamp()))
    Webhook(SECRET).verify(receiver.body, receiver.headers)


def test_a_redirect_is_a_failure_and_is_not_followed() -> None:
    with (
        receiving(OK) as inside,
        receiving(f"HTTP/1.1 302 Found\r\nLocation: {inside.url}\r\n\r\n".encode()) as receiver,
    ):
        answer = deliver(receiver.url)
    assert (answer.status, inside.connections) == (302, 0)
    assert answer.error is not None
    assert "not followed" in answer.error


@pytest.mark.parametrize("host", ["127.0.0.1", "2130706433", "0x7f.1", "localhost", "[::ffff:7f00:1]"])
def test_no_connection_is_made_to_a_private_address(host: str) -> None:
    with receiving(OK) as receiver:
        answer = deliver(f"http://{host}:{receiver.port}/", allow_private=())
    assert answer.status is None
    assert answer.error is not None
    assert answer.error.startswith("blocked_address")
    assert receiver.connections == 0


def test_a_blocked_port_is_refused_before_anything_is_resolved() -> None:
    def resolve(host: str, port: int) -> Sequence[str]:
        raise AssertionError("resolved")

    answer = deliver("http://hooks.example.com:6379/", resolve=resolve)
    assert answer.error is not None
    assert answer.error.startswith("blocked_port")


def test_a_name_is_resolved_once_and_the_connection_goes_to_what_was_judged() -> None:
    """Rebinding: the second answer would lead inside. Only 127.0.0.1 is allowed here, and 127.0.0.2 stands for the inside."""
    answers = [["127.0.0.1"], ["127.0.0.2"]]
    with receiving(OK) as receiver:
        url = f"http://rebind.test:{receiver.port}/"
        only = (ip_network("127.0.0.1/32"),)
        assert deliver(url, allow_private=only, resolve=lambda host, port: answers.pop(0)).status == 204
        assert receiver.headers["host"] == f"rebind.test:{receiver.port}"
        refused = deliver(url, allow_private=only, resolve=lambda host, port: answers.pop(0))
    assert refused.error is not None
    assert refused.error.startswith("blocked_address")
    assert (answers, receiver.connections) == ([], 1)


def test_the_next_address_is_tried_where_the_first_takes_no_connection() -> None:
    with receiving(OK) as receiver:
        answer = deliver(f"http://two.test:{receiver.port}/", resolve=lambda host, port: ["127.0.0.9", "127.0.0.1"])
    assert answer == Answer(204, None)


@pytest.mark.parametrize(
    "head", [b"", b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 500 No\r\nContent-Length: 9999\r\n\r\n"]
)
def test_a_receiver_that_trickles_is_cut_at_the_deadline(head: bytes) -> None:
    """A byte now and then keeps every timeout of a socket from firing; the deadline is for all of it."""
    over = threading.Event()

    def trickle(stream: socket.socket) -> None:
        stream.sendall(head)
        for byte in b"HTTP/1.1 200 OK\r\nX: " + b"x" * 10_000:
            if over.wait(0.05):
                return
            stream.sendall(bytes([byte]))

    with receiving(trickle) as receiver:
        started = time.monotonic()
        answer = deliver(receiver.url, deadline_s=0.5)
        took = time.monotonic() - started
        over.set()
    assert 0.4 < took < 2.0
    assert answer.error == ("no answer within 0.5 s" if answer.status is None else "answered 500: HTTP/1.1")
    assert answer.status in (None, 500)


def test_a_silent_tls_server_is_cut_at_the_deadline() -> None:
    with receiving(lambda stream: stream.recv(1)) as receiver:
        started = time.monotonic()
        answer = deliver(receiver.url.replace("http:", "https:"), deadline_s=0.3)
    assert time.monotonic() - started < 2.0
    assert answer.error == "no answer within 0.3 s"


def test_a_huge_answer_is_read_no_further_than_its_bound() -> None:
    sent: list[int] = []

    def flood(stream: socket.socket) -> None:
        stream.sendall(b"HTTP/1.1 500 No\r\nContent-Length: 1000000000\r\n\r\n")
        with contextlib.suppress(OSError):
            for _ in range(1000):
                sent.append(stream.send(b"x" * 1_000_000))

    with receiving(flood) as receiver:
        answer = deliver(receiver.url)
    assert answer.error == "answered 500: " + "x" * 200
    assert sum(sent) < 50_000_000, "what the kernel buffers, not the gigabyte"
    assert MAX_ANSWER_BYTES == 65536


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        ("410 Gone", Answer(410, "answered 410", None, gone=True)),
        ("429 Slow\r\nRetry-After: 7", Answer(429, "answered 429", 7.0)),
        ("503 Later\r\nRetry-After: 9999999", Answer(503, "answered 503", 86400.0)),
        ("503 Later\r\nRetry-After: Mon, 23 Nov 2026 12:00:30 GMT", Answer(503, "answered 503", 30.0)),
        ("503 Later\r\nRetry-After: soon", Answer(503, "answered 503", None)),
        ("503 Later\r\nRetry-After: -5", Answer(503, "answered 503", None)),
        ("500 Oops", Answer(500, "answered 500")),
        ("200 OK", Answer(200, None)),
    ],
)
def test_each_status_is_told_as_what_it_means(head: str, expected: Answer) -> None:
    with receiving(f"HTTP/1.1 {head}\r\nContent-Length: 0\r\n\r\n".encode()) as receiver:
        assert deliver(receiver.url, now=datetime(2026, 11, 23, 12, tzinfo=UTC)) == expected


@pytest.mark.parametrize(
    "garbage", [b"", b"SSH-2.0-OpenSSH_9.2\r\n", b"HTTP/1.1 abc\r\n\r\n", b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 200]
)
def test_what_is_no_http_answer_is_a_failure(garbage: bytes) -> None:
    with receiving(garbage) as receiver:
        answer = deliver(receiver.url)
    assert answer.status is None
    assert answer.error


def test_a_receiver_that_is_away_is_a_failure() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    answer = deliver(f"http://127.0.0.1:{port}/")
    assert answer.error is not None
    assert "refused" in answer.error


def test_tls_is_verified_against_the_name_though_the_connection_goes_to_an_address(tmp_path: Path) -> None:
    certificate, key = certify(tmp_path, "hooks.test")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    trust = ssl.create_default_context(cafile=str(certificate))
    with receiving(OK, context) as receiver:
        options: dict[str, Any] = {"resolve": lambda host, port: ["127.0.0.1"]}
        assert deliver(f"https://hooks.test:{receiver.port}/", trust=trust, **options) == Answer(204, None)
        Webhook(SECRET).verify(receiver.body, receiver.headers)
        for answer in (
            deliver(f"https://other.test:{receiver.port}/", trust=trust, **options),
            deliver(f"https://hooks.test:{receiver.port}/", **options),
        ):
            assert answer.error is not None
            assert "CERTIFICATE_VERIFY_FAILED" in answer.error
    assert len(receiver.heard) == 1


def certify(place: Path, name: str) -> tuple[Path, Path]:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    built = x509.CertificateBuilder().subject_name(subject).issuer_name(subject).public_key(key.public_key())
    built = built.serial_number(1).not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=1))
    built = built.add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
    signed = built.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True).sign(
        key, hashes.SHA256()
    )
    (place / "cert.pem").write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    plain = serialization.NoEncryption()
    (place / "key.pem").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
    )
    return place / "cert.pem", place / "key.pem"


@pytest.mark.parametrize("secret", ["", "whsec_", "whsec_%%%%"])
def test_a_secret_that_is_none_is_told_without_being_shown(secret: str) -> None:
    with pytest.raises(ConfigurationError, match="24 to 64 random bytes") as refusal:
        send("http://127.0.0.1/", secret, delivery_id="1", body=b"{}", now=datetime.now(UTC))
    assert "%%%%" not in str(refusal.value)


def test_ten_attempts_are_spread_over_three_days_give_or_take_a_fifth() -> None:
    assert sum(SCHEDULE, timedelta()) == timedelta(hours=75, minutes=35, seconds=5)
    rng = random.Random(7)
    for attempt, planned in enumerate(SCHEDULE, start=1):
        waits = [retry_after(attempt, rng) for _ in range(200)]
        assert all(wait is not None and planned * 0.8 <= wait <= planned * 1.2 for wait in waits)
        assert len(set(waits)) > 100
    assert retry_after(10, rng) is None
    assert retry_after(11, rng) is None
