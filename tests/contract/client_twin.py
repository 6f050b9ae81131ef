"""A twin of the API for the client's own tests: versions and their files, notices, and the faults of a network."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from headrace.connection import Connection

TOKEN = "hr_twin"

Files = dict[str, bytes]


def files_of(answer: float, *, refuses: bool = False) -> Files:
    """A version whose model answers `answer` for every row; its package is called alike in every version."""
    loader = (
        "import sys\n"
        "def _load_pyfunc(path):\n"
        "    sys.path.insert(0, path + '/source')\n"
        "    import twin_delays\n"
        "    return twin_delays.Model()\n"
    )
    if refuses:
        loader = "import a_package_that_nobody_has\n"
    package = f"class Model:\n    def predict(self, frame):\n        return [{answer}] * len(frame)\n"
    example = {"columns": ["carrier", "distance"], "data": [["UA", 1400], ["AA", 200]]}
    return {
        "MLmodel": b"flavors: {}\n",
        "code/headrace_loader.py": loader.encode(),
        "data/source/twin_delays.py": package.encode(),
        "input_example.json": json.dumps(example).encode(),
        "requirements.txt": b"scikit-learn==1.7.2\n",
    }


def describe(model: str, number: int, files: Files) -> dict[str, Any]:
    """A version as the API tells it."""
    listed = [
        {"path": path, "sha256": hashlib.sha256(data).hexdigest(), "size_bytes": len(data)}
        for path, data in sorted(files.items())
    ]
    canonical = json.dumps({"files": listed}, sort_keys=True, separators=(",", ":")).encode()
    return {
        "model": model,
        "version": number,
        "state": "promoted",
        "champion": False,
        "run": 17,
        "release": {"name": "v1.4.0", "commit": "c0ffee" * 6 + "c0ff"},
        "digest": "sha256:" + hashlib.sha256(canonical).hexdigest(),
        "registered_at": "2026-11-23T18:00:00Z",
        "metrics": {"auc": 0.71},
        "verdict": {
            "decision": "promote",
            "reasons": ["auc 0.71 is at least 0.6"],
            "champion": None,
            "at": "2026-11-23T18:00:01Z",
        },
        "lineage": {"cut": {"flights": {"upto": 27004}}, "cut_digest": "sha256:aa", "arrivals": [12]},
        "requirements_file": "requirements.txt",
        "mlflow": {"run_id": "r", "model_id": "m"},
        "files": listed,
    }


class Twin:
    """What the server knows and how it fails; change it while it serves."""

    def __init__(self) -> None:
        self.versions: dict[str, dict[str, Any]] = {}
        self.files: dict[str, bytes] = {}
        self.answers: dict[str, tuple[int, dict[str, Any]]] = {}
        self.turns: dict[str, Iterator[dict[str, Any]]] = {}
        self.notices: list[dict[str, Any]] = []
        self.cut: dict[str, int] = {}
        self.requests: list[str] = []
        self.bodies: list[Any] = []
        self.keys: list[str | None] = []
        self.url = ""

    @property
    def connection(self) -> Connection:
        return Connection(self.url, TOKEN, "the test")

    @property
    def downloads(self) -> list[str]:
        return [path for path in self.requests if "/files/" in path]

    def publish(self, model: str, number: int, files: Files, *, champion: bool = True) -> str:
        """Add a version; its digest."""
        told = describe(model, number, files)
        home = f"/v1/models/{model}/versions"
        self.versions[f"{home}/{number}"] = told
        if champion:
            self.versions[f"{home}/champion"] = told
        self.files.update({f"{home}/{number}/files/{path}": data for path, data in files.items()})
        return str(told["digest"])


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    twin: Twin

    def do_GET(self) -> None:
        address = urlsplit(self.path)
        path = unquote(address.path)
        self.twin.requests.append(self.path)
        if self.headers["Authorization"] != f"Bearer {TOKEN}":
            self._json(401, {"title": "Unauthorized", "status": 401, "detail": "this token is not known"})
        elif f"{self.command} {path}" in self.twin.answers:
            self._json(*self.twin.answers[f"{self.command} {path}"])
        elif f"{self.command} {path}" in self.twin.turns:
            self._json(202, next(self.twin.turns[f"{self.command} {path}"]))
        elif path in self.twin.turns:
            self._json(200, next(self.twin.turns[path]))
        elif path in self.twin.answers:
            self._json(*self.twin.answers[path])
        elif path in self.twin.versions:
            self._json(200, self.twin.versions[path])
        elif path in self.twin.files:
            self._file(self.twin.files[path], self.twin.cut.get(path))
        elif path == "/v1/notices":
            after = int(parse_qs(address.query).get("after", ["0"])[0])
            items = [notice for notice in self.twin.notices if int(notice["sequence"]) > after]
            following = int(items[-1]["sequence"]) if items else after
            self._json(200, {"items": items, "next": following, "newest": len(self.twin.notices)})
        else:
            self._json(404, {"title": "Not Found", "status": 404, "detail": f"there is no {path}"})

    def do_POST(self) -> None:
        self.twin.keys.append(self.headers["Idempotency-Key"])
        self.twin.bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.do_GET()

    def _json(self, status: int, value: dict[str, Any]) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json" if status < 400 else "application/problem+json")
        if 300 <= status < 400:
            self.send_header("Location", value["location"])
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _file(self, data: bytes, cut: int | None) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data[:cut])
        self.close_connection = cut is not None

    def log_message(self, *_: object) -> None:
        """Quiet."""


@contextmanager
def serve(port: int = 0) -> Iterator[Twin]:
    twin = Twin()
    server = ThreadingHTTPServer(("127.0.0.1", port), type("Handler", (_Handler,), {"twin": twin}))
    server.daemon_threads = True
    server.handle_error = lambda *_: None  # type: ignore[method-assign]  # a client that hangs up is part of these tests
    twin.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield twin
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
