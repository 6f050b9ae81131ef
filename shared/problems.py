"""Errors as answers: whatever goes wrong, also before a handler is reached, is told as RFC 9457 has it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Final

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import Field
from starlette.exceptions import HTTPException

from shared.errors import ConfigurationError, Conflict, Fenced, Gone, HeadraceError, NotFound, Refused, Transient
from shared.explain import dotted
from shared.values import Strict

JSON: Final = "application/json"
PROBLEM_JSON: Final = "application/problem+json"
RETRY_AFTER_S = 2

_STATUS = {NotFound: 404, Gone: 410, Conflict: 409, Fenced: 409, Refused: 422, ConfigurationError: 503, Transient: 503}


class Remark(Strict):
    """One thing that is wrong, and where."""

    field: str
    message: str


class Problem(Strict):
    """An error as RFC 9457 has it; `advice` says what to do about it."""

    type: str = "about:blank"
    title: str
    status: int = Field(ge=400, le=599)
    detail: str
    advice: str | None = None
    errors: tuple[Remark, ...] | None = None


@dataclass
class Rejection(Exception):
    """A request that comes no further: answered with this problem."""

    status: int
    detail: str
    advice: str | None = None
    errors: tuple[Remark, ...] | None = None
    headers: dict[str, str] = field(default_factory=dict)


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The problem answers of an operation or of a whole router, for the OpenAPI document."""
    return {status: {"model": Problem, "description": HTTPStatus(status).phrase} for status in statuses}


EVERYWHERE = problems(401, 403, 422, 429, 500, 503)
"""What any operation under /v1 may answer."""
WITH_BODY = problems(400, 408, 413, 415)
"""What an operation that takes a body may answer besides."""


class Application(FastAPI):
    """A FastAPI application whose every error is a problem answer, also in its OpenAPI document."""

    def __init__(self, **options: Any) -> None:
        super().__init__(docs_url=None, redoc_url=None, redirect_slashes=False, **options)
        self.add_exception_handler(Rejection, _rejected)
        self.add_exception_handler(HeadraceError, _mapped)
        self.add_exception_handler(RequestValidationError, _invalid)
        self.add_exception_handler(HTTPException, _unrouted)
        self.add_exception_handler(Exception, _broken)

    def openapi(self) -> dict[str, Any]:
        document = super().openapi()
        operations = [operation for path in document["paths"].values() for operation in path.values()]
        for status, answer in [pair for operation in operations for pair in operation["responses"].items()]:
            if status >= "400" and JSON in answer.get("content", {}):
                answer["content"] = {PROBLEM_JSON: answer["content"].pop(JSON)}
        return document


def _rejected(_request: Request, error: Exception) -> Response:
    assert isinstance(error, Rejection)
    told = Problem(
        title=HTTPStatus(error.status).phrase,
        status=error.status,
        detail=error.detail,
        advice=error.advice,
        errors=error.errors,
    )
    return Response(told.model_dump_json(exclude_none=True), error.status, error.headers, PROBLEM_JSON)


def _mapped(request: Request, error: Exception) -> Response:
    """The one place where an error of ours becomes a status."""
    assert isinstance(error, HeadraceError)
    status = next((_STATUS[kind] for kind in type(error).__mro__ if kind in _STATUS), 500)
    headers = {"Retry-After": str(RETRY_AFTER_S)} if status == 503 else {}
    lines = error.message.splitlines()
    if len(lines) < 2:
        return _rejected(request, Rejection(status, error.message, headers=headers))
    return _rejected(request, Rejection(status, f"{len(lines)} things are wrong", None, _remarks(lines), headers))


def _remarks(lines: Sequence[str]) -> tuple[Remark, ...]:
    placed = [re.fullmatch(r"(?:([\w.\[\]-]+): )?(.*)", line, re.DOTALL) for line in lines]
    return tuple(Remark(field=found[1] or "", message=found[2]) for found in placed if found)


def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    remarks = tuple(Remark(field=dotted(one["loc"][1:]), message=one["msg"]) for one in error.errors())
    return _rejected(request, Rejection(422, "the address or its parameters break a rule", None, remarks))


def _unrouted(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    detail = f"{request.method} {request.url.path[:200]}: {error.detail}"
    advice = "/openapi.json lists what there is"
    return _rejected(request, Rejection(error.status_code, detail, advice, None, dict(error.headers or {})))


def _broken(request: Request, _error: Exception) -> Response:
    """The server raises the error again after this answer, so that the log has it."""
    advice = "the traceback is in the log of the api"
    close = {"Connection": "close"}  # the server closes it, since the error is raised again
    return _rejected(request, Rejection(500, "this is a defect of ours", advice, headers=close))
