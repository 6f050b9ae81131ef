"""`headrace send --stream` against a real server: what it adds, what it needs to know, and what it says when that is wrong."""

from __future__ import annotations

import json
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from headrace import Problem, stream
from headrace.cli import main
from headrace.connection import Unreachable
from headrace.stream import find_broker, parse
from redis import Redis

from shared.arrivals import parse_cloudevent, parse_shorthand
from tests.redis_server import Valkey, start_valkey

EVENT = {"id": "e1"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    started = start_valkey(tmp_path_factory.mktemp("valkey"))
    started.command("ACL", "SETUSER", "loader", "on", ">p@ss/w:ord", "~headrace:arrivals", "+xadd", "+select")
    started.command("ACL", "SETUSER", "reader", "on", ">r", "~headrace:arrivals", "+xlen")
    yield started
    started.stop()


@pytest.fixture
def client(server: Valkey) -> Iterator[Any]:
    with closing(Redis.from_url(server.url, decode_responses=True)) as opened:
        opened.flushall()
        yield opened


def sent(client: Any) -> list[tuple[str, dict[str, Any]]]:
    return [(entry, json.loads(fields["event"])) for entry, fields in client.xrange("headrace:arrivals")]


def test_send_adds_an_event_that_the_watcher_reads_and_says_where_it_is(
    server: Valkey, client: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["send", "clicks", "--from", "0", "--to", "9", "--rows", "9", "--id", "b1", "--stream", server.url]
    assert main(words) == 0
    ((entry, event),) = sent(client)
    read = parse_cloudevent(event)
    shorthand = parse_shorthand({"dataset": "clicks", "from": 0, "to": 9, "rows": 9, "id": "b1"})
    assert read.model_copy(update={"occurred_at": None}) == shorthand, "the same --id is the same report by either way"
    assert read.occurred_at is not None
    said = capsys.readouterr().out
    assert f"entry {entry} of headrace:arrivals at 127.0.0.1:{server.port}" in said
    assert "headrace status" in said


def test_without_an_id_each_event_has_a_fresh_one(
    server: Valkey, client: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEADRACE_REDIS_URL", server.url)
    assert [main(["send", "clicks", "--stream", "--json"]) for _ in range(2)] == [0, 0]
    ids = [event["id"] for _, event in sent(client)]
    assert len(set(ids)) == 2
    assert ids[0] in capsys.readouterr().out


def test_user_password_and_database_of_the_url_are_used(server: Valkey, client: Any) -> None:
    client.select(3)
    url = f"redis://loader:p%40ss%2Fw%3Aord@127.0.0.1:{server.port}/3"
    entry = stream.add(parse(url, "the test"), EVENT)
    assert [one for one, _ in sent(client)] == [entry]


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("redis://loader:wrong@127.0.0.1:{port}", "WRONGPASS.*was not accepted"),
        ("redis://reader:r@127.0.0.1:{port}", "NOPERM.*ACL SETUSER"),
        ("redis://127.0.0.1:{port}/99", "refused SELECT"),
    ],
)
def test_what_the_server_refuses_is_said_with_advice_and_without_the_password(
    server: Valkey, client: Any, url: str, says: str
) -> None:
    with pytest.raises(Problem, match=says) as caught:
        stream.add(parse(url.format(port=server.port), "the test"), EVENT)
    assert "wrong" not in str(caught.value).replace("WRONGPASS", "")


def test_a_server_that_wants_a_password_and_a_key_of_another_kind_are_said(server: Valkey, client: Any) -> None:
    client.set("headrace:arrivals", "text")
    with pytest.raises(Problem, match="holds something else than a stream"):
        stream.add(parse(server.url, "the test"), EVENT)
    client.config_set("requirepass", "secret")
    try:
        with pytest.raises(Problem, match=r"NOAUTH.*wants a password"):
            stream.add(parse(server.url, "the test"), EVENT)
    finally:
        client.config_set("requirepass", "")


@pytest.mark.parametrize(
    "url",
    ["http://x", "redis://", "redis://h:pw99/0", "redis://:pw@h:99999", "redis://h/x", "redis://h/²", "unix:///s"],
)
def test_what_is_no_address_of_a_stream_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(Problem, match=r"the address of the stream .*can't be read") as caught:
        parse(url, "--stream")
    assert "pw" not in str(caught.value)


def test_the_address_is_that_of_the_flag_the_environment_or_the_stack_here(tmp_path: Path) -> None:
    state = tmp_path / ".headrace"
    state.mkdir()
    (state / "settings.json").write_text('{"redis_url": "redis://:pw@127.0.0.1:3/0"}')
    environ = {"HEADRACE_REDIS_URL": "redis://127.0.0.1:2"}
    assert find_broker("redis://127.0.0.1:1", environ, tmp_path).port == 1
    assert find_broker("", environ, tmp_path).port == 2
    found = find_broker(None, {}, tmp_path)
    assert (found.port, found.password, found.origin) == (3, "pw", str(state / "settings.json"))
    assert "pw" not in repr(found)
    assert find_broker(None, {"HEADRACE_STATE": str(state), "HEADRACE_URL": "http://127.0.0.1:1"}).port == 3
    with pytest.raises(Problem, match="set HEADRACE_REDIS_URL"):
        find_broker(None, {"HEADRACE_URL": "http://127.0.0.1:1"}, tmp_path)
    (state / "settings.json").write_text("{")
    with pytest.raises(Problem, match=r"can't read the address .*settings.json"):
        find_broker(None, {}, tmp_path)


def test_a_server_that_is_away_is_one_line_with_the_id_to_send_again(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["send", "clicks", "--id", "b7", "--stream", "redis://:pw@127.0.0.1:1"]) == 1
    said = capsys.readouterr().err
    assert "no answer from the broker at 127.0.0.1:1 (Connection refused; address from --stream)" in said
    assert "try again with --id b7" in said
    assert "pw" not in said


@pytest.mark.parametrize(
    ("answer", "error"),
    [(b"", Unreachable), (b"+OK", Unreachable), (b"$9\r\nabc", Unreachable), (b"HTTP/1.1 400 Bad\r\n", Problem), (b"$-1\r\n", Problem), (b"x" * 99_999, Problem)],
)  # fmt: skip
def test_who_trickles_or_speaks_another_language_is_given_up(
    answer: bytes, error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "TIMEOUT_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        over = threading.Event()

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.sendall(answer)
                over.wait(20)

        thread = threading.Thread(target=serve)
        thread.start()
        began = time.monotonic()
        with pytest.raises(error):
            stream.add(parse(f"redis://127.0.0.1:{listener.getsockname()[1]}", "the test"), EVENT)
        assert time.monotonic() - began < 5
        over.set()
        thread.join()


def make_certificate(directory: Path) -> Path:
    """A certificate of its own for 127.0.0.1, with its key, in one file."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(1).not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    plain = serialization.NoEncryption()
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
    (path := directory / "own.pem").write_bytes(private + made.public_bytes(serialization.Encoding.PEM))
    return path


def test_tls_is_spoken_and_the_certificate_checked(
    server: Valkey, client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate = make_certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    listener = socket.create_server(("127.0.0.1", 0))
    broker = parse(f"rediss://127.0.0.1:{listener.getsockname()[1]}", "the test")

    def serve() -> None:
        """Passes one command and one reply, for the first client that trusts it."""
        for _ in range(2):
            accepted, _ = listener.accept()
            try:
                with (
                    context.wrap_socket(accepted, server_side=True) as secured,
                    socket.create_connection(("127.0.0.1", server.port)) as inner,
                ):
                    if command := secured.recv(65536):
                        inner.sendall(command)
                        secured.sendall(inner.recv(65536))
            except OSError:
                accepted.close()

    thread = threading.Thread(target=serve)
    thread.start()
    with pytest.raises(Unreachable, match="certificate verify failed"):
        stream.add(broker, EVENT)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    entry = stream.add(broker, EVENT)
    thread.join()
    listener.close()
    assert [one for one, _ in sent(client)] == [entry]
