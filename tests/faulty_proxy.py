"""An HTTP proxy between a client and a server, which counts requests and loses what it is told to lose."""

from __future__ import annotations

import contextlib
import http.client
import threading
import time
from enum import Enum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit


class Fault(Enum):
    REFUSE_REQUEST = "the server never sees it"
    DROP_REPLY = "the server has done it, the client never hears"
    CUT_REPLY = "the reply breaks off in the middle of its body"
    ERROR_IN_200 = "the server never sees it, and the client is told 200 and an error, as S3 does it"


_ERROR = b"<?xml version='1.0'?><Error><Code>InternalError</Code><Message>half way</Message></Error>"
_OF_THE_CONNECTION = {"content-length", "connection", "transfer-encoding", "date", "server"}


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        """A client that is gone, as clients are that were killed, is nothing to tell."""


class FaultyProxy:
    """`fail(n, fault)` faults the n-th request from then on (1 is the next); `fail_path` the next one to a path.

    `keep_host` leaves the Host header as the client wrote it: S3's signatures are of it.
    """

    def __init__(self, target: str, *, keep_host: bool = False) -> None:
        self._keep_host = keep_host
        self.requests: list[str] = []
        self.connections = 0
        self.delay_s = 0.0  # before each request is passed on
        self._target = urlsplit(target).netloc
        self._lock = threading.Lock()
        self.struck = False  # since it was last told to fail
        self._nth: int | None = None
        self._path: str | None = None
        self._fault = Fault.DROP_REPLY
        self._server = _Server(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    def fail(self, nth: int, fault: Fault) -> None:
        with self._lock:
            self._nth, self._path, self._fault, self.struck = nth, None, fault, False

    def fail_path(self, path: str, fault: Fault) -> None:
        with self._lock:
            self._nth, self._path, self._fault, self.struck = None, path, fault, False

    def _judge(self, method: str, path: str) -> Fault | None:
        with self._lock:
            self.requests.append(f"{method} {path.partition('?')[0]}")
            if self._nth is not None:
                self._nth -= 1
            if self._nth == 0 or (self._path is not None and self._path in path):
                self._nth = self._path = None
                self.struck = True
                return self._fault
            return None

    def _handler(proxy) -> type[BaseHTTPRequestHandler]:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                super().setup()
                proxy.connections += 1

            def log_message(self, format: str, *args: object) -> None:
                """Tests read `requests` instead."""

            def _forward(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                fault = proxy._judge(self.command, self.path)
                time.sleep(proxy.delay_s)
                if fault is Fault.REFUSE_REQUEST:
                    self.close_connection = True
                    return
                if fault is Fault.ERROR_IN_200:
                    return self._reply(200, {}, _ERROR)
                headers = {
                    name: value for name, value in self.headers.items() if proxy._keep_host or name.lower() != "host"
                }
                with contextlib.closing(http.client.HTTPConnection(proxy._target, timeout=30)) as upstream:
                    upstream.request(self.command, self.path, body=body, headers=headers)
                    reply = upstream.getresponse()
                    content = reply.read()
                if fault is Fault.DROP_REPLY:
                    self.close_connection = True
                    return
                self._reply(reply.status, dict(reply.getheaders()), content, cut=fault is Fault.CUT_REPLY)

            def _reply(self, status: int, headers: dict[str, str], content: bytes, cut: bool = False) -> None:
                length = headers.get("Content-Length", "0") if self.command == "HEAD" else str(len(content))
                self.send_response(status)
                self.send_header("content-length", length)
                for name, value in headers.items():
                    if name.lower() not in _OF_THE_CONNECTION:
                        self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content[: len(content) // 2] if cut else content)
                self.close_connection = self.close_connection or cut

            do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = _forward

        return Handler
