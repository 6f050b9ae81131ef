"""What the routers of all services share: who asks, what a body may be, pages and long polls.

FastAPI stays in here, in `problems`, in the `api` modules and in `stack.api`.
"""

from __future__ import annotations

import asyncio
import base64
import math
import re
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import ValidationError
from starlette.requests import ClientDisconnect

from shared.arrivals import parse_json
from shared.blobs import Blobs
from shared.errors import Refused
from shared.explain import dotted, explain
from shared.ledger import Ledger, tokens
from shared.ledger.intake import Intake
from shared.ledger.tokens import Scope
from shared.logs import Logs
from shared.problems import JSON, Rejection, Remark
from shared.rates import Rates
from shared.values import Strict

MAX_BODY_BYTES = 1024**2
BODY_S = 15.0
MAX_WAIT_S = 30
LOOK_S = 0.05

Row = TypeVar("Row")
Told = TypeVar("Told")
Read = TypeVar("Read", bound=Strict)


# What a handler works on, and for whom.


@dataclass(frozen=True)
class Stores:
    """What the handlers of a process read and write."""

    ledger: Ledger
    blobs: Blobs
    logs: Logs
    rates: Rates = field(default_factory=lambda: Rates(0))
    intake: Intake = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "intake", Intake(self.ledger))


def _stores(request: Request) -> Stores:
    stores = request.app.state.stores
    assert isinstance(stores, Stores)
    return stores


Here = Annotated[Stores, Depends(_stores)]


@dataclass(frozen=True)
class Caller:
    """Whose token it is: the actor of what is done with it."""

    name: str
    scopes: frozenset[Scope]


_bearer = HTTPBearer(auto_error=False, scheme_name="token", description="A token of the operator's.")


def allowed(scope: Scope) -> Any:
    """The caller, if the token has that scope. Put it first: what is not allowed is not read either."""

    def caller(stores: Here, given: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]) -> Caller:
        with stores.ledger.read() as tx:  # without a token too, so that the time tells nothing
            found = tokens.find(tx, given.credentials if given is not None else "")
        if found is None:
            advice = "send `Authorization: Bearer TOKEN`; `make up` keeps the operator's in STATE/operator.token"
            raise Rejection(401, "a known token is needed", advice, headers={"WWW-Authenticate": "Bearer"})
        name, scopes = found
        if wait_s := stores.rates.take(name):
            detail = f"the token {name!r} asks more often than the operator allows"
            later = {"Retry-After": str(math.ceil(wait_s))}
            raise Rejection(
                429, detail, "wait as long as Retry-After says; api_requests_per_s is the limit", headers=later
            )
        if scope not in scopes:
            has = ", ".join(sorted(scopes))
            raise Rejection(403, f"this needs the scope {scope}", f"the token {name!r} has {has}; ask the operator")
        return Caller(name, scopes)

    return Depends(caller)


Submitter = Annotated[Caller, allowed(Scope.SUBMIT)]
Reader = Annotated[Caller, allowed(Scope.READ)]
Operator = Annotated[Caller, allowed(Scope.OPERATE)]


# Bodies: bounded while they are read, and JSON that means one thing.


def body(model: type[Read], *, required: bool = True) -> Any:
    """The request's JSON as `model`; an optional body that is left away is an empty one."""

    async def read(request: Request) -> Read:
        length = request.headers.get("content-length", "0")
        absent = length == "0" and "transfer-encoding" not in request.headers
        return validate(model, {} if absent and not required else (await read_json(request, (JSON,)))[1])

    return Depends(read)


def takes(models: Mapping[str, type[Strict]], *, required: bool = True) -> dict[str, Any]:
    """The OpenAPI of a body, by media type."""
    content = {kind: {"schema": _inline(model.model_json_schema())} for kind, model in models.items()}
    return {"requestBody": {"required": required, "content": content}}


def _inline(schema: dict[str, Any]) -> dict[str, Any]:
    """A schema that refers to nothing, for a `#/$defs/…` of its own would mean the whole document's."""
    known = schema.pop("$defs", {})

    def resolve(node: Any) -> Any:
        if isinstance(node, list):
            return [resolve(one) for one in node]
        if not isinstance(node, dict):
            return node
        found = known.get(str(node.get("$ref", "")).rpartition("/")[2], {})
        return {key: resolve(value) for key, value in (found | node).items() if key != "$ref"}

    resolved = resolve(schema)
    assert isinstance(resolved, dict)
    return resolved


def validate(model: type[Read], value: dict[str, object]) -> Read:
    """`value` as `model`; what is wrong is said in the words of our configuration errors."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        found = explain(error, model, value, {}, assignment='"{key}": {value}')
        remarks = tuple(Remark(field=dotted(one.path), message=one.sentence) for one in found)
        raise Rejection(422, "the body breaks a rule", None, remarks) from None


async def read_json(request: Request, kinds: Collection[str]) -> tuple[str, dict[str, object]]:
    """The body's media type, one of `kinds`, and its JSON object."""
    kind, value = await read_value(request, kinds)
    if not isinstance(value, dict):
        raise Rejection(422, "the body is not a JSON object", 'send one, as in {"dataset": "flights"}')
    return kind, value


async def read_value(request: Request, kinds: Collection[str]) -> tuple[str, object]:
    """The body's media type, one of `kinds`, and its JSON, whatever that is."""
    kind, _, parameters = request.headers.get("content-type", "").lower().partition(";")
    kind, charset = kind.strip(), re.search(r'charset="?([^";\s]+)', parameters)
    if kind not in kinds or (charset and charset[1] not in ("utf-8", "utf8", "us-ascii")):
        raise Rejection(415, "a body of this kind is not taken", f"send {' or '.join(kinds)}, in UTF-8")
    try:
        value = await run_in_threadpool(parse_json, await _read(request))
    except Refused as error:
        raise Rejection(400, error.message) from None
    return kind, value


async def _read(request: Request) -> bytes:
    close = {"Connection": "close"}  # what the sender still has to say is not listened to
    length = request.headers.get("content-length", "0")
    if not re.fullmatch(r"[0-9]{1,18}", length):
        raise Rejection(400, f"Content-Length is no number of bytes: {length[:40]}", headers=close)
    if int(length) > MAX_BODY_BYTES:
        raise Rejection(413, f"a body has at most {MAX_BODY_BYTES:,} bytes", "send ranges, not rows", headers=close)
    received = bytearray()
    try:
        async with asyncio.timeout(BODY_S):
            async for piece in request.stream():
                received += piece
                if len(received) > MAX_BODY_BYTES:
                    raise Rejection(413, f"a body has at most {MAX_BODY_BYTES:,} bytes", headers=close)
    except TimeoutError:
        raise Rejection(408, f"the body did not come within {BODY_S:.0f} s", headers=close) from None
    except ClientDisconnect:
        raise Rejection(400, "the body broke off", headers=close) from None
    return bytes(received)


# Pages and long polls.


@dataclass(frozen=True)
class Page:
    """Which part of a list is asked for; ask the ledger for one row more than `limit`."""

    path: str
    limit: int
    after: str | None

    @property
    def before(self) -> int | None:
        """The number that the last item of the page before had, where a list goes downwards."""
        if self.after is not None and not re.fullmatch(r"[0-9]{1,18}", self.after):
            raise _bad_cursor()
        return int(self.after) if self.after is not None else None

    def cut(self, rows: Sequence[Row], key: Callable[[Row], object]) -> tuple[Sequence[Row], str | None]:
        """The rows of this page, and the cursor of the next one if there is one."""
        shown = rows[: self.limit]
        if len(rows) <= self.limit:
            return shown, None
        return shown, base64.urlsafe_b64encode(f"{key(shown[-1])} {self.path}".encode()).decode().rstrip("=")


def _page(
    request: Request,
    limit: Annotated[int, Query(ge=1, le=200, description="So many items at most.")] = 50,
    after: Annotated[str | None, Query(max_length=400, description="The `next` of the page before.")] = None,
) -> Page:
    return Page(request.url.path, limit, _decode(after, request.url.path) if after is not None else None)


Paged = Annotated[Page, Depends(_page)]


def _decode(cursor: str, path: str) -> str:
    """The key in a cursor of this very list."""
    try:
        key, _, of = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode().partition(" ")
    except ValueError:
        raise _bad_cursor() from None
    if of != path:
        raise _bad_cursor()
    return key


def _bad_cursor() -> Rejection:
    return Rejection(422, "`after` is no cursor of this list", "take the `next` of the page before as it is")


Wait = Annotated[float, Query(ge=0, le=MAX_WAIT_S, description="Seconds to wait for something new.")]


async def poll(
    request: Request,
    look: Callable[[], Told],
    news: Callable[[Told], bool],
    wait_s: float,
    changed: Callable[[], bool] = lambda: True,
    look_s: float = LOOK_S,
) -> Told:
    """What `look` finds, as soon as that is news, or when the time is over; between two looks no transaction is open."""
    deadline = time.monotonic() + wait_s
    found = await run_in_threadpool(look)
    while not news(found) and (left := deadline - time.monotonic()) > 0 and not await request.is_disconnected():
        await asyncio.sleep(min(look_s, left))
        if changed():
            found = await run_in_threadpool(look)
    return found
