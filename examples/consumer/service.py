"""How likely is a flight to be late? A service that never stops answering while its model is replaced.

POST /predict        {"rows": [{"carrier": "UA", "distance": 1400, …}, …]}  →  {"version": 3, "probabilities": [0.21, …]}
POST /hooks/models   a signed notice of Headrace                            →  204, and the work begins after the answer
GET  /healthz        {"version": 3}, or 503 until there is one
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from headrace import webhooks
from keeper import Keeper

LONGEST_BODY_BYTES = 1 << 20
MOST_ROWS = 1_000


class Service(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128  # the default of 5 turns callers away when many come at once

    def __init__(self, address: tuple[str, int], keeper: Keeper, secrets: list[str]) -> None:
        super().__init__(address, Handler)
        self.keeper = keeper
        self.secrets = secrets


class Handler(BaseHTTPRequestHandler):
    server: Service
    protocol_version = "HTTP/1.1"
    timeout = 30
    disable_nagle_algorithm = True  # with it an answer in two packets waits 40 ms for the second
    wbufsize = -1

    def do_GET(self) -> None:
        if self.path != "/healthz":
            return self._answer(404, {"error": "there is GET /healthz, POST /predict and POST /hooks/models"})
        serving = self.server.keeper.serving
        self._answer(200 if serving else 503, {"version": serving.version if serving else None})

    def do_POST(self) -> None:
        body = self._body()
        if body is None:
            self.close_connection = True
            self._answer(413, {"error": f"a body has a Content-Length of at most {LONGEST_BODY_BYTES} bytes"})
        elif self.path == "/predict":
            self._predict(body)
        elif self.path == "/hooks/models":
            self._hear(body)
        else:
            self._answer(404, {"error": "there is POST /predict and POST /hooks/models"})

    def _predict(self, body: bytes) -> None:
        serving = self.server.keeper.serving  # this request's, to its end
        rows = _rows(body)
        if serving is None:
            return self._answer(503, {"error": "no model yet: waiting for the first version"})
        if rows is None:
            return self._answer(400, {"error": f'send {{"rows": [{{…}}, …]}} with 1 to {MOST_ROWS} rows'})
        try:
            self._answer(200, {"version": serving.version, "probabilities": serving.predict(rows)})
        except Exception as error:  # noqa: BLE001 - the model's own; the usual one is a missing column
            self._answer(422, {"error": f"version {serving.version} can't predict this: {error!r}"})

    def _hear(self, body: bytes) -> None:
        try:
            notice = webhooks.verify(body, self.headers, self.server.secrets)
        except webhooks.NotVerified as error:
            return self._answer(401, {"error": str(error)})
        # Answered before the work: who sends webhooks waits seconds, and fetching a model may take minutes.
        self.server.keeper.hear(notice)
        self._answer(204, None)

    def _body(self) -> bytes | None:
        length = self.headers.get("Content-Length", "")
        return self.rfile.read(int(length)) if length.isdigit() and int(length) <= LONGEST_BODY_BYTES else None

    def _answer(self, status: int, value: dict[str, Any] | None) -> None:
        body = b"" if value is None else json.dumps(value).encode()
        self.send_response(status)
        if value is not None:
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """What matters here is what is swapped; the keeper says that."""


def _rows(body: bytes) -> list[dict[str, Any]] | None:
    try:
        rows = json.loads(body)["rows"]
    except (ValueError, KeyError, TypeError):
        return None
    fits = isinstance(rows, list) and 0 < len(rows) <= MOST_ROWS and all(isinstance(row, dict) for row in rows)
    return rows if fits else None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8600, help="0 takes a free one (8600)")
    parser.add_argument("--model", default="flight-delays")
    parser.add_argument("--models", type=Path, default=Path("models.toml"), metavar="FILE", help="models.toml")
    parser.add_argument(
        "--into", type=Path, default=Path("models"), metavar="DIR", help="where versions are kept (models)"
    )
    chosen = parser.parse_args()
    secrets = os.environ.get("HEADRACE_HOOK_SECRET", "").split()
    if not secrets:
        parser.error(
            "set HEADRACE_HOOK_SECRET to the secret of your subscription (two, with a space, while it is being changed)"
        )
    chosen.into.mkdir(parents=True, exist_ok=True)
    keeper = Keeper(chosen.model, chosen.models, chosen.into, lambda words: print(words, flush=True))
    service = Service((chosen.host, chosen.port), keeper, secrets)
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    threading.Thread(target=service.serve_forever, name="service", daemon=True).start()
    print(f"listening on http://{chosen.host}:{service.server_port}", flush=True)
    keeper.start()
    stop.wait()
    service.shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
