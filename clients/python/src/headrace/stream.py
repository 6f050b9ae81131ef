"""An event onto the Redis stream, without a Redis library: one connection, a few words of its protocol (RESP), one reply each."""

from __future__ import annotations

import json
import os
import socket
import ssl
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Mapping, Optional, Tuple
from urllib.parse import unquote, urlsplit

from headrace.connection import Problem, Unreachable, find_state

STREAM = "headrace:arrivals"
TIMEOUT_S = 10.0
_MAX_LINE = 65_536
_ADVICE = {
    "NOAUTH": "the server wants a password: write it into the URL, redis://:PASSWORD@HOST:PORT/0",
    "WRONGPASS": "the user or the password of the URL was not accepted; ask the operator",
    "NOPERM": f"this user may not add to {STREAM}; the operator grants it with ACL SETUSER NAME ~{STREAM} +xadd",
    "OOM": "the server is full; the operator must look: are the watchers running?",
    "LOADING": "the server is starting; wait a moment and try again",
    "READONLY": "this is a replica; send to the primary server",
    "WRONGTYPE": f"the key {STREAM} holds something else than a stream; is this the stack's own server?",
}


@dataclass(frozen=True)
class Broker:
    """Where the stream is; `origin` says where the address was found."""

    host: str
    port: int
    database: int
    tls: bool
    user: Optional[str]
    password: Optional[str] = field(repr=False)
    origin: str

    @property
    def address(self) -> str:
        return f"{self.host}:{self.port}"


def find_broker(
    url: Optional[str] = None, environ: Optional[Mapping[str, str]] = None, directory: Optional[Path] = None
) -> Broker:
    """That of `url`, else of HEADRACE_REDIS_URL, else of the stack on this machine that `connect` would find. Raises `Problem`."""
    environ = os.environ if environ is None else environ
    if url:
        return parse(url, "--stream")
    if environ.get("HEADRACE_REDIS_URL"):
        return parse(environ["HEADRACE_REDIS_URL"], "HEADRACE_REDIS_URL")
    advice = "set HEADRACE_REDIS_URL, as in redis://:PASSWORD@HOST:6379/0, or give the URL after --stream"
    if environ.get("HEADRACE_URL") and not environ.get("HEADRACE_STATE"):
        raise Problem("the address of the stream is not known (HEADRACE_URL is that of the API)", advice)
    settings = find_state(environ, directory) / "settings.json"
    try:
        return parse(json.loads(settings.read_text(encoding="utf-8"))["redis_url"], str(settings))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Problem(
            f"can't read the address of the stream from {settings} ({type(error).__name__})", advice
        ) from None


def parse(url: str, origin: str) -> Broker:
    """Never shows the URL, which may hold a password; raises `Problem`."""
    advice = "it looks like redis://user:password@redis.example.com:6379/0, or rediss:// for TLS"
    try:
        parts = urlsplit(url)
        port, path = parts.port or 6379, parts.path.strip("/")
        if (
            parts.scheme not in ("redis", "rediss")
            or not parts.hostname
            or not (path == "" or (path.isascii() and path.isdigit()))
        ):
            raise ValueError
    except ValueError:
        raise Problem(f"the address of the stream (from {origin}) can't be read", advice) from None
    user, password = (unquote(text) if text else None for text in (parts.username, parts.password))
    return Broker(parts.hostname, port, int(path or 0), parts.scheme == "rediss", user, password, origin)


def add(broker: Broker, event: Mapping[str, Any]) -> str:
    """Add a CloudEvent; the id of its entry. Raises `Problem`, or `Unreachable` when it is not known whether it is there."""
    try:
        with _Wire(broker) as wire:
            if broker.password is not None:
                wire.ask("AUTH", *([broker.user] if broker.user else []), broker.password)
            if broker.database:
                wire.ask("SELECT", str(broker.database))
            return wire.ask("XADD", STREAM, "*", "event", json.dumps(event))
    except OSError as error:
        said = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise Unreachable(
            f"no answer from the broker at {broker.address} ({said}; address from {broker.origin})",
            f"try again with --id {event['id']}: if the event has come all the same, it is counted once",
        ) from error


class _Wire:
    """One connection with one deadline for all that is said on it."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._deadline = time.monotonic() + TIMEOUT_S
        self._received = b""

    def __enter__(self) -> _Wire:
        broker = self._broker
        self._socket = socket.create_connection((broker.host, broker.port), timeout=self._left_s())
        if broker.tls:
            try:
                self._socket = ssl.create_default_context().wrap_socket(self._socket, server_hostname=broker.host)
            except BaseException:
                self._socket.close()
                raise
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def ask(self, *words: str) -> str:
        """One command and its reply as text; an error of the server is a `Problem`."""
        encoded = [word.encode() for word in words]
        parts = [b"*%d\r\n" % len(words), *(b"$%d\r\n%b\r\n" % (len(word), word) for word in encoded)]
        self._socket.settimeout(self._left_s())
        self._socket.sendall(b"".join(parts))
        kind, told = self._line()
        if kind == "-":
            code = told.split(" ", 1)[0]
            raise Problem(f"the broker at {self._broker.address} refused {words[0]}: {told}", _ADVICE.get(code))
        if kind == "$":
            return self._take(int(told) + 2)[:-2].decode(errors="replace")
        return told

    def _line(self) -> Tuple[str, str]:
        while b"\r\n" not in self._received:
            if len(self._received) > _MAX_LINE:
                raise self._stranger()
            self._fill()
        line, _, self._received = self._received.partition(b"\r\n")
        told = line.decode(errors="replace")
        kind, rest = told[:1], told[1:]
        if kind not in ("+", "-", ":", "$") or (kind == "$" and not (rest.isdigit() and int(rest) < _MAX_LINE)):
            raise self._stranger()
        return kind, rest

    def _take(self, size_bytes: int) -> bytes:
        while len(self._received) < size_bytes:
            self._fill()
        taken, self._received = self._received[:size_bytes], self._received[size_bytes:]
        return taken

    def _fill(self) -> None:
        self._socket.settimeout(self._left_s())
        piece = self._socket.recv(_MAX_LINE)
        if not piece:
            raise ConnectionResetError("the connection was closed")
        self._received += piece

    def _left_s(self) -> float:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise socket.timeout("timed out")
        return left

    def _stranger(self) -> Problem:
        return Problem(f"what answers at {self._broker.address} is no Redis server", "check host and port of the URL")
