"""The API's server does not wait for those who never finish what they say: each is closed in time, and others are answered meanwhile."""

from __future__ import annotations

import http.client
import socket
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import uvicorn

from shared.blobs import DiskBlobs
from shared.http import Stores
from shared.logs import DiskLogs
from stack import serve
from stack.api import create_app
from tests import ledgers
from tests.apis import make_tokens

HEAD_S = 0.5


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[uvicorn.Server]:
    monkeypatch.setattr(serve, "HEAD_S", HEAD_S)
    ledger, _ = ledgers.in_memory(ledgers.CONFIG)
    app = create_app(Stores(ledger, DiskBlobs(tmp_path / "blobs"), DiskLogs(tmp_path / "logs")))
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(app, http=serve.Impatient, log_level="warning", lifespan="off", timeout_keep_alive=60)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: server.run([listener]))
    thread.start()
    server.port, server.token = int(listener.getsockname()[1]), make_tokens(ledger)["all"]
    yield server
    server.should_exit = True
    thread.join(20)
    listener.close()
    ledger.close()


@pytest.fixture
def port(server: uvicorn.Server) -> int:
    return int(server.port)


WHOLE = b"GET /healthz HTTP/1.1\r\nHost: h\r\n\r\n"
SLOW = {
    "nothing": b"",
    "half a head": b"GET /healthz HTTP/1.1\r\nHost: h\r\n",
    "a second head": WHOLE + b"G",
    "a body that nobody wants": b"GET /healthz HTTP/1.1\r\nHost: h\r\nContent-Length: 100000\r\n\r\nx",
}


@pytest.mark.parametrize("name", SLOW)
def test_a_sender_that_trickles_is_closed_in_time(port: int, name: str) -> None:
    began = time.monotonic()
    with socket.create_connection(("127.0.0.1", port), timeout=0.05) as connection:
        connection.sendall(SLOW[name])
        received = b""
        while time.monotonic() - began < 10:
            try:
                connection.sendall(b"x" if name != "nothing" else b"")
                if not (piece := connection.recv(65536)):
                    break
                received += piece
            except TimeoutError:
                continue
            except OSError:
                break
        else:
            raise AssertionError("it is still waited for")
    took = time.monotonic() - began
    assert HEAD_S * 0.8 < took < 8
    assert received.count(b"HTTP/1.1 200") == (
        1 if SLOW[name].startswith(b"GET /healthz HTTP/1.1") and name not in ("half a head",) else 0
    )


def test_three_hundred_that_connect_and_reset_leave_it_serving(port: int) -> None:
    for _ in range(300):
        connection = socket.create_connection(("127.0.0.1", port), timeout=5)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        connection.sendall(b"GET /v1/notices?wait=30 HTTP/1.1\r\nHost: h\r\n")
        connection.close()
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=5) as answer:
        assert answer.status == 200


def test_those_who_leave_while_they_wait_for_news_leave_nothing_behind(server: uvicorn.Server) -> None:
    head = f"GET /v1/notices?wait=30 HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer {server.token}\r\n\r\n".encode()
    waiting = [socket.create_connection(("127.0.0.1", server.port), timeout=5) for _ in range(60)]
    for connection in waiting:
        connection.sendall(head)
    _eventually(lambda: len(server.server_state.tasks) == 60)
    for connection in waiting:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        connection.close()
    _eventually(lambda: not server.server_state.tasks and not server.server_state.connections)


def _eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 15
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_slow_answer_is_no_slow_sender(port: int) -> None:
    """A connection that is used again after its time is not closed in the middle."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    deadline = time.monotonic() + 3 * HEAD_S
    while time.monotonic() < deadline:
        connection.request("GET", "/healthz")
        assert connection.getresponse().read() == b'{"status":"ok"}'
    connection.close()
