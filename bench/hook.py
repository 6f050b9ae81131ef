"""The consumer: takes webhooks, checks their signatures and notes when each came."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self

from headrace.webhooks import Notice, NotVerified, verify

PATIENCE_S = 300.0


class NotTold(Exception):
    """No webhook came in time."""


@dataclass(frozen=True)
class Receipt:
    at: float  # wall time
    notice: Notice


class Hook:
    """A web server on a free port of loopback. `with` has it serve."""

    def __init__(self, secret: str) -> None:
        self._secret = secret
        self._receipts: list[Receipt] = []
        self._came = threading.Condition()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/hook"

    def wait_promoted(self, subject: str, since: float) -> Receipt:
        """The first promotion of `subject` received after the wall time `since`. Raises `NotTold`."""
        with self._came:
            if self._came.wait_for(lambda: self._find(subject, since) is not None, PATIENCE_S):
                found = self._find(subject, since)
                assert found is not None
                return found
        kinds = [f"{one.notice.subject}: {one.notice.type} {dict(one.notice.data)}" for one in self._receipts[-3:]]
        raise NotTold(
            f"no promotion of {subject} within {PATIENCE_S:g} s; the last that came: {'; '.join(kinds) or 'none'}"
        )

    def _find(self, subject: str, since: float) -> Receipt | None:
        wanted = (
            one
            for one in self._receipts
            if one.at > since and (one.notice.subject, one.notice.type) == (subject, "version.promoted")
        )
        return next(wanted, None)

    def _receive(self, body: bytes, headers: dict[str, str]) -> int:
        try:
            notice = verify(body, headers, self._secret)
        except NotVerified:
            return 401
        with self._came:
            self._receipts.append(Receipt(time.time(), notice))
            self._came.notify_all()
        return 204

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        hook = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                self.send_response(hook._receive(body, dict(self.headers)))
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        return Handler

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
