"""The API's server: `python -m stack.serve --host 127.0.0.1 --port 8420`. uvicorn, less patient with those who never finish what they say.

uvicorn waits for the head of a request without a limit, so that anybody could hold connections with a byte now and then. The time for a body
is limited where it is read (`shared.http`).
"""

from __future__ import annotations

import argparse
import asyncio

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_S = 15.0
LATE = b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


class Impatient(H11Protocol):
    """Closes a connection on which no whole head of a request, or the rest of a body that nobody wants, has come within `HEAD_S`."""

    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._late = self.loop.call_later(HEAD_S, self._give_up)

    def data_received(self, data: bytes) -> None:
        if self._late is None and (self.cycle is None or self.cycle.response_complete):
            self._late = self.loop.call_later(HEAD_S, self._give_up)
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._forgive()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forgive()
        super().connection_lost(exc)

    def _give_up(self) -> None:
        self._late = None
        if not self.transport.is_closing():
            self.transport.write(LATE)
            self.transport.close()

    def _forgive(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None


def main() -> None:
    parser = argparse.ArgumentParser(description="serve the API")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8420)
    where = parser.parse_args()
    uvicorn.run(
        "stack.api:create_app",
        factory=True,
        host=where.host,
        port=where.port,
        http=Impatient,
        access_log=False,
        log_level="warning",
        timeout_graceful_shutdown=2,  # long polls end with it
    )


if __name__ == "__main__":
    main()
