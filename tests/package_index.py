"""A package index over HTTP on loopback, with wheels that are made on the spot."""

from __future__ import annotations

import base64
import hashlib
import io
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


def wheel(name: str, version: str, says: str, needs: tuple[str, ...] = ()) -> bytes:
    """A package of one module that `says` who published it."""
    info, kept = f"{name}-{version}.dist-info", io.BytesIO()
    requires = "".join(f"Requires-Dist: {need}\n" for need in needs)
    files = {
        f"{name}.py": f"SAYS = {says!r}\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{requires}",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{path},," + "\n" for path in (*files, f"{info}/RECORD"))
    with zipfile.ZipFile(kept, "w") as archive:
        for path, text in {**files, f"{info}/RECORD": record}.items():
            archive.writestr(zipfile.ZipInfo(path), text)
    return kept.getvalue()


def on_command_lines(text: str) -> list[str]:
    """Command lines of this machine that hold a text."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
            found += [line] if text in line else []
    return found


class Index:
    """What it serves, which packages were asked for by name, and the command lines on which its password stood meanwhile."""

    def __init__(self, password: str | None) -> None:
        self.asked: list[str] = []
        self.told: list[str] = []
        self._files: dict[str, bytes] = {}
        index = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                expected = f"Basic {base64.b64encode(f'ci:{password}'.encode()).decode()}"
                allowed = password is None or self.headers.get("Authorization") == expected
                found = index.answer(self.path) if allowed else None
                self.send_response(200 if found is not None else 404 if allowed else 401)
                self.send_header("Content-Type", "text/html" if self.path.endswith("/") else "application/octet-stream")
                self.send_header("Content-Length", str(len(found or b"")))
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(found or b"")

            do_HEAD = do_GET

            def log_message(self, *_: object) -> None:
                """Nobody reads it."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.password = password

    @property
    def url(self) -> str:
        """Without a password, as a repository names it."""
        return f"http://127.0.0.1:{self.server.server_port}/simple"

    @property
    def own_url(self) -> str:
        """As the operator names it."""
        return self.url.replace("//", f"//ci:{self.password}@", 1) if self.password else self.url

    def add(self, name: str, version: str, says: str, needs: tuple[str, ...] = ()) -> None:
        self._files[f"{name}-{version}-py3-none-any.whl"] = wheel(name, version, says, needs)

    def answer(self, path: str) -> bytes | None:
        if self.password and not self.asked:
            self.told += on_command_lines(self.password)
        folder, _, last = path.rstrip("/").rpartition("/")
        if folder == "/files":
            return self._files.get(last)
        self.asked.append(last)
        links = [
            f'<a href="/files/{file}#sha256={hashlib.sha256(data).hexdigest()}">{file}</a>'
            for file, data in self._files.items()
            if file.startswith(f"{last}-")
        ]
        return f"<!DOCTYPE html><html><body>{''.join(links)}</body></html>".encode() if links else None


@contextmanager
def serving(password: str | None = None) -> Iterator[Index]:
    index = Index(password)
    thread = threading.Thread(target=index.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield index
    finally:
        index.server.shutdown()
        index.server.server_close()
        thread.join()
