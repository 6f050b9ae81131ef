"""One open connection to an MLflow server: documented REST calls, each sent once.

Not `MlflowClient`: it repeats a POST by itself when a reply is lost (a second `create_model_version` is a second version), follows
redirects, takes its limits from the environment only and asks for the same run again before every upload.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit, urlunsplit

import urllib3

from shared.errors import HeadraceError, Permanent, Unavailable
from shared.points import Point

CONNECT_S = 3.0
READ_S = 30.0
MAX_REPLY_BYTES = 16 * 1024**2
_API = "/api/2.0/mlflow/"
_ARTIFACTS = "/api/2.0/mlflow-artifacts/artifacts/"
_LATER = frozenset({401, 403, 408, 409, 423, 425, 429})
"""4xx that are no fault of the request: credentials, the allowed hosts, a conflict with a neighbour, load."""
_DATABASE = "BAD_REQUEST"
"""What MLflow calls an error of its own database, such as two registrations that note the same dataset at the same time."""


class Answered(Permanent):
    """The server understood and refuses; `code` is MLflow's own (`RESOURCE_DOES_NOT_EXIST`)."""

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code


class MlflowRest:
    """Safe to use from several threads. `url` may carry `user:password@`; nothing else is read from anywhere.

    Whatever changes something over there names its point, where a test lets this process die.
    """

    def __init__(self, url: str, *, connect_s: float = CONNECT_S, read_s: float = READ_S) -> None:
        parts = urlsplit(url)
        self._url = urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path.rstrip("/"), "", ""))
        login = f"{parts.username}:{parts.password or ''}" if parts.username else None
        self._pool = urllib3.PoolManager(
            maxsize=8,
            retries=False,
            timeout=urllib3.Timeout(connect=connect_s, read=read_s),
            headers=urllib3.make_headers(basic_auth=login),
        )

    def get(self, path: str, **query: str) -> dict[str, Any]:
        return self._call("GET", _API + path, fields=query)

    def search(self, path: str, body: Mapping[str, object]) -> dict[str, Any]:
        return self._call("POST", _API + path, json=body)

    def post(self, point: Point, path: str, body: Mapping[str, object]) -> dict[str, Any]:
        with point:
            return self._call("POST", _API + path, json=body)

    def patch(self, point: Point, path: str, body: Mapping[str, object]) -> dict[str, Any]:
        with point:
            return self._call("PATCH", _API + path, json=body)

    def delete(self, point: Point, path: str, body: Mapping[str, object]) -> dict[str, Any]:
        with point:
            return self._call("DELETE", _API + path, json=body)

    def upload(self, point: Point, root: str, path: str, file: Path) -> None:
        """Put `file` at `path` under an artifact root of the server (`mlflow-artifacts:/…`); repeatable."""
        target = quote(f"{_place(root)}/{path}", safe="/")
        headers = {
            **self._pool.headers,
            "Content-Length": str(file.stat().st_size),
            "Content-Type": "application/octet-stream",
        }
        with point, file.open("rb") as stream:
            self._call("PUT", _ARTIFACTS + target, body=stream, headers=headers)

    def clear(self, point: Point, root: str) -> None:
        """Delete all that lies under an artifact root of the server; repeatable."""
        with point:
            self._call("DELETE", _ARTIFACTS + quote(_place(root), safe="/"))

    def _call(self, method: str, path: str, **content: Any) -> dict[str, Any]:
        try:
            reply = self._pool.request(method, self._url + path, redirect=False, preload_content=False, **content)
            text = reply.read(MAX_REPLY_BYTES + 1)
            reply.close() if len(text) > MAX_REPLY_BYTES else reply.release_conn()
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise Unavailable(f"MLflow at {self._url} did not answer {method} {path}: {error}") from error
        decoded = _decode(text)
        if reply.status == 200 and decoded is not None:
            return decoded
        raise _refusal(f"MLflow at {self._url} answered {method} {path} with {reply.status}", reply.status, decoded)


def _place(root: str) -> str:
    """The path of an artifact root on the server."""
    scheme, _, place = root.partition(":")
    if scheme != "mlflow-artifacts" or not place.strip("/"):
        raise Permanent(f"MLflow keeps artifacts at {root}, out of our reach; start its server with --serve-artifacts")
    return place.lstrip("/")


def _decode(text: bytes) -> dict[str, Any] | None:
    """The reply as an object; None for what MLflow never says (a proxy's page, a cut or endless answer)."""
    try:
        decoded = json.loads(text) if text else {}
    except ValueError:
        return None
    return decoded if isinstance(decoded, dict) and len(text) <= MAX_REPLY_BYTES else None


def _refusal(what: str, status: int, decoded: dict[str, Any] | None) -> HeadraceError:
    said = str((decoded or {}).get("message", "no MLflow message"))[:500]
    code = str((decoded or {}).get("error_code", ""))
    if 400 <= status < 500 and status not in _LATER and code not in {"", _DATABASE}:
        return Answered(f"{what}: {said}", code)
    return Unavailable(f"{what}: {said}; look whether this address is MLflow's, and at its log")
