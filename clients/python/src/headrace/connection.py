"""The way to a stack: where it is, one request to it, and what went wrong in words."""

from __future__ import annotations

import http.client
import json
import os
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, Iterator, List, Mapping, NoReturn, Optional, Tuple
from urllib.parse import quote, urlencode, urlsplit

TIMEOUT_S = 10.0
_ADVICE = {
    401: "the token was not accepted; check HEADRACE_TOKEN, or the token file that endpoints.json names",
    403: "this token may not do that; ask the operator for one with the scope",
    404: "see `headrace models` and `headrace runs` for what there is",
    429: "wait a moment and try again",
    503: "wait a moment and try again; `headrace status` shows what is away",
}


class Problem(Exception):
    """What went wrong (`message`) and what to do next (`advice`); `str()` says both.

    `status` is the HTTP status where a server answered; `errors` are its remarks on single fields.
    """

    def __init__(
        self, message: str, advice: Optional[str] = None, *, status: Optional[int] = None, errors: Tuple[str, ...] = ()
    ) -> None:
        super().__init__("; ".join(part for part in (message, *errors, advice) if part))
        self.message = message
        self.advice = advice
        self.status = status
        self.errors = errors


class Unreachable(Problem):
    """Nothing answered, or the answer broke off: trying again later may help."""


@dataclass(frozen=True)
class Connection:
    """One stack as seen with one token. `origin` says where the address was found. Safe for threads: it holds no socket."""

    url: str
    token: Optional[str] = field(default=None, repr=False)
    origin: str = "the program"

    def get(self, path: str, query: Optional[Mapping[str, object]] = None, *, wait_s: float = 0) -> Dict[str, Any]:
        """The JSON object at `path`; `wait_s` is how long the server may hold a long poll."""
        with self.open("GET", path, query, timeout_s=TIMEOUT_S + wait_s) as answer:
            return self._decode(answer)

    def post(
        self, path: str, body: Mapping[str, object], headers: Optional[Mapping[str, str]] = None
    ) -> Dict[str, Any]:
        with self.open("POST", path, body=body, headers=headers, timeout_s=TIMEOUT_S) as answer:
            return self._decode(answer)

    def items(
        self, path: str, query: Optional[Mapping[str, object]] = None, *, limit: int = 1000
    ) -> List[Dict[str, Any]]:
        """The first `limit` items of a list, page by page."""
        found: List[Dict[str, Any]] = []
        after: Optional[str] = None
        while len(found) < limit:
            page = self.get(path, {**(query or {}), "limit": min(100, limit - len(found)), "after": after})
            found.extend(page["items"])
            after = page.get("next")
            if after is None:
                break
        return found

    def open(
        self,
        method: str,
        path: str,
        query: Optional[Mapping[str, object]] = None,
        *,
        body: Optional[Mapping[str, object]] = None,
        headers: Optional[Mapping[str, str]] = None,
        timeout_s: float = TIMEOUT_S,
    ) -> _Answer:
        """The open answer of a request, to be closed by `with`. Raises `Problem`, or `Unreachable`."""
        request = urllib.request.Request(self.url + path + _query(query), method=method)
        for name, value in {"Accept": "application/json", **(headers or {})}.items():
            request.add_header(name, value)
        if self.token:
            request.add_header("Authorization", f"Bearer {self.token}")
        if body is not None:
            request.data = json.dumps(body).encode()
            request.add_header("Content-Type", "application/json")
        try:
            return _Answer(_opener(self.url).open(request, timeout=timeout_s), self)
        except urllib.error.HTTPError as error:
            with error:
                raise _problem(error) from None
        except (OSError, http.client.HTTPException) as error:
            self.lost(error)

    def lost(self, error: Exception) -> NoReturn:
        reason = getattr(error, "reason", None) or error
        said = getattr(reason, "strerror", None) or str(reason) or type(reason).__name__
        raise Unreachable(
            f"nothing answers at {self.url} ({said}; address from {self.origin})",
            "start the stack with `make up`, or set HEADRACE_URL to where it runs",
        ) from error

    def _decode(self, answer: _Answer) -> Dict[str, Any]:
        body = answer.read()
        try:
            value = json.loads(body)
        except ValueError:
            value = None
        if not isinstance(value, dict):
            raise Problem(f"{self.url} did not answer in JSON", "is HEADRACE_URL the address of a Headrace API?")
        return value


class _Answer:
    """A response whose reading raises `Unreachable` when the connection breaks."""

    def __init__(self, response: http.client.HTTPResponse, connection: Connection) -> None:
        self._response = response
        self._connection = connection

    def __enter__(self) -> _Answer:
        return self

    def __exit__(self, *_: object) -> None:
        self._response.close()

    def read(self, size_bytes: Optional[int] = None) -> bytes:
        try:
            return self._response.read(size_bytes)
        except (OSError, http.client.HTTPException) as error:
            self._connection.lost(error)

    def chunks(self, size_bytes: int = 1 << 18) -> Iterator[bytes]:
        chunk = self.read(size_bytes)
        while chunk:
            yield chunk
            chunk = self.read(size_bytes)


def connect(environ: Optional[Mapping[str, str]] = None, directory: Optional[Path] = None) -> Connection:
    """The stack of HEADRACE_URL and HEADRACE_TOKEN, else of HEADRACE_STATE, else of `.headrace` here or in a parent."""
    environ = os.environ if environ is None else environ
    if environ.get("HEADRACE_URL"):
        return _checked(environ["HEADRACE_URL"], environ.get("HEADRACE_TOKEN"), "HEADRACE_URL")
    return _local(find_state(environ, directory), environ)


def find_state(environ: Mapping[str, str], directory: Optional[Path] = None) -> Path:
    """The directory of a stack on this machine: of HEADRACE_STATE, else `.headrace` here or in a parent. Raises `Problem`."""
    if environ.get("HEADRACE_STATE"):
        return Path(environ["HEADRACE_STATE"])
    here = (directory or Path.cwd()).resolve()
    states = [place / ".headrace" for place in (here, *here.parents) if (place / ".headrace").is_dir()]
    running = [state for state in states if (state / "endpoints.json").is_file()]
    if not states:
        raise Problem(
            "no Headrace found: HEADRACE_URL is not set, and there is no .headrace here or above",
            "set HEADRACE_URL and HEADRACE_TOKEN, or start a stack with `make up` and come back to its directory",
        )
    return (running or states)[0]


def api_path(*parts: object) -> str:
    """`/v1/…` with every part quoted: a name can't reach another address."""
    return "/v1/" + "/".join(quote(str(part), safe="") for part in parts)


def _local(state: Path, environ: Mapping[str, str]) -> Connection:
    endpoints = state / "endpoints.json"
    try:
        found = json.loads(endpoints.read_text(encoding="utf-8"))
        token = environ.get("HEADRACE_TOKEN") or Path(found["token_file"]).read_text(encoding="utf-8").strip()
    except FileNotFoundError as error:
        advice = f"start it with `make up STATE={state}`"
        raise Problem(f"the stack of {state} is not running (there is no {error.filename})", advice) from None
    except (OSError, ValueError, KeyError) as error:
        raise Problem(f"can't read {endpoints}: {error}", "are you the user who runs the stack?") from error
    return _checked(found["api"], token, str(endpoints))


def _checked(url: str, token: Optional[str], origin: str) -> Connection:
    if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
        raise Problem(f"{url!r} (from {origin}) is no address", "it looks like https://headrace.example.com")
    return Connection(url.rstrip("/"), token, origin)


class _StayHere(urllib.request.HTTPRedirectHandler):
    """Follows no redirect: the token would go along to wherever it points."""

    def redirect_request(self, *_: object) -> None:
        return None


def _opener(url: str) -> urllib.request.OpenerDirector:
    loopback = urlsplit(url).hostname in ("127.0.0.1", "::1", "localhost")
    # A proxy of the environment can't reach this machine's own loopback.
    return urllib.request.build_opener(_StayHere, *([urllib.request.ProxyHandler({})] if loopback else []))


def _query(query: Optional[Mapping[str, object]]) -> str:
    given = {key: value for key, value in (query or {}).items() if value is not None}
    return "?" + urlencode(given) if given else ""


def _problem(error: urllib.error.HTTPError) -> Problem:
    """A problem+json as an exception; an answer of another kind (a proxy's page) by its status."""
    try:
        told = json.loads(error.read(1 << 20))
    except (OSError, ValueError, http.client.HTTPException):
        told = None
    if not isinstance(told, dict):
        told = {"title": f"the server answered {error.code} {error.reason}"}
    message = str(told.get("detail") or told.get("title") or f"the server answered {error.code}")
    advice = told.get("advice") or _ADVICE.get(error.code)
    return Problem(
        message, advice, status=error.code, errors=tuple(_remark(remark) for remark in told.get("errors") or ())
    )


def _remark(remark: object) -> str:
    if not isinstance(remark, dict):
        return str(remark)
    where = remark.get("field") or remark.get("pointer") or remark.get("loc") or ""
    where = ".".join(map(str, where)) if isinstance(where, list) else str(where)
    what = str(remark.get("message") or remark.get("detail") or remark.get("msg") or remark)
    return f"{where}: {what}" if where else what
