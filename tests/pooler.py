"""A transaction pooler between a client and PostgreSQL: each transaction gets any session, as PgBouncer gives it (pool_mode=transaction)."""

from __future__ import annotations

import os
import random
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import psycopg

SESSIONS = 6
_WELCOME = {
    "server_version": "16.0",
    "client_encoding": "UTF8",
    "DateStyle": "ISO, MDY",
    "TimeZone": "UTC",
    "integer_datetimes": "on",
}
_WELCOME |= {"standard_conforming_strings": "on", "server_encoding": "UTF8"}


class Pooler:
    """Sessions with the server are opened once and shared out anew for each transaction, at random, so that nobody can rely on having the same."""

    def __init__(self, url: str, port: int) -> None:
        self.url = url.replace(url.rpartition("@")[2].partition("/")[0], f"127.0.0.1:{port}")
        self._free = threading.Condition()
        self._held = [psycopg.connect(url, autocommit=True) for _ in range(SESSIONS)]
        self._sessions = [socket.socket(fileno=os.dup(connection.pgconn.socket)) for connection in self._held]
        for session in self._sessions:
            session.setblocking(True)
            session.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def close(self) -> None:
        for session in self._sessions:
            session.close()
        for connection in self._held:
            connection.close()

    def serve(self, client: socket.socket) -> None:
        with client, suppress(ConnectionError, EOFError):
            while (length := struct.unpack("!i", _exactly(client, 4))[0]) == 8:  # TLS or GSS is asked for
                _exactly(client, 4)
                client.sendall(b"N")
            _exactly(client, length - 4)
            client.sendall(_message(b"R", struct.pack("!i", 0)))
            for name, value in _WELCOME.items():
                client.sendall(_message(b"S", f"{name}\0{value}\0".encode()))
            client.sendall(_message(b"K", struct.pack("!ii", 1, 1)) + _message(b"Z", b"I"))
            while True:
                first = _read(client)
                if first[:1] == b"X":
                    return
                self._transaction(client, first)

    def _transaction(self, client: socket.socket, first: bytes) -> None:
        with self._session() as session:
            pending = first
            while True:
                session.sendall(pending)
                while pending[:1] not in b"QS":  # a simple query, or the sync after an extended one
                    pending = _read(client)
                    session.sendall(pending)
                while (answer := _read(session))[:1] != b"Z":
                    client.sendall(answer)
                client.sendall(answer)
                if answer[5:] == b"I":
                    return
                pending = _read(client)

    @contextmanager
    def _session(self) -> Iterator[socket.socket]:
        with self._free:
            self._free.wait_for(lambda: bool(self._sessions))
            session = self._sessions.pop(random.randrange(len(self._sessions)))
        try:
            yield session
        finally:
            with self._free:
                self._sessions.append(session)
                self._free.notify()


@contextmanager
def transaction_pooler(url: str) -> Iterator[str]:
    """The URL of the same database by way of a pooler, for as long as this is open."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        pooler = Pooler(url, listener.getsockname()[1])

        def accept() -> None:
            with suppress(OSError):
                while True:
                    client, _ = listener.accept()
                    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    threading.Thread(target=pooler.serve, args=(client,), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        yield pooler.url
        listener.shutdown(socket.SHUT_RDWR)
        pooler.close()


def _message(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("!i", len(body) + 4) + body


def _read(stream: socket.socket) -> bytes:
    head = _exactly(stream, 5)
    return head + _exactly(stream, struct.unpack("!i", head[1:])[0] - 4)


def _exactly(stream: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        if not (piece := stream.recv(count - len(data))):
            raise EOFError
        data += piece
    return data
