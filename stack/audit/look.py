"""One audit: every part looks once, and those that found something look again a little later; what both saw is told."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from services.registry_bridge.mlflow_rest import MlflowRest
from shared.audit import Sheet
from shared.blobs import make_blobs
from shared.clock import SystemClock
from shared.errors import HeadraceError, Unavailable
from shared.ledger import Ledger
from shared.ledger.audit import CHECKS
from shared.ledger.schema import check_schema
from shared.settings import Settings
from stack.audit.blobs import BLOBS, BlobAudit
from stack.audit.broker import audit_broker
from stack.audit.mlflow import MlflowAudit
from stack.audit.processes import audit_processes
from stack.audit.report import INVARIANTS, Report, Unread

PAUSE_S = 3.0
"""Longer than a bridge's sweep and a worker's look, so that what was under way has moved on."""
Tell = Callable[[str, int], None]


@dataclass(frozen=True)
class Part:
    """One source of truth, or one check of the ledger; what it cannot prove when it cannot be read."""

    name: str
    invariants: tuple[str, ...]
    check: Callable[[Sheet], None]


def audit(
    settings: Settings, *, deep: bool = False, pause_s: float = PAUSE_S, tell: Tell = lambda what, done: None
) -> Report:
    """Look at everything that the settings name. Raises nothing for what cannot be read: the report says so."""
    began, started = SystemClock().now(), time.monotonic()
    sheets: list[Sheet] = []
    unread: list[Unread] = []
    try:
        ledger = _open(settings)
    except HeadraceError as error:
        unread.append(Unread("the ledger", error.message, tuple(INVARIANTS)))
    else:
        try:
            sheets, unread = _look(list(_parts(ledger, settings, deep)), pause_s, tell)
        finally:
            ledger.close()
    return Report(_shown(settings.ledger_url), began, time.monotonic() - started, tuple(sheets), tuple(unread))


def _open(settings: Settings) -> Ledger:
    """The ledger, if it is there: a file of SQLite's would be made otherwise, and this writes nothing."""
    path = urlsplit(settings.ledger_url).path[1:] if settings.ledger_url.startswith("sqlite:///") else None
    if path and not Path(path).is_file():
        raise Unavailable(f"there is no ledger {path}; name the right one with STATE=… or HEADRACE_LEDGER_URL")
    ledger = Ledger(settings.ledger_url)
    try:
        check_schema(ledger)
    except BaseException:
        ledger.close()
        raise
    return ledger


def _parts(ledger: Ledger, settings: Settings, deep: bool) -> Iterator[Part]:
    for check in CHECKS:
        yield Part("the ledger", tuple(INVARIANTS), lambda sheet, check=check: check(ledger, sheet))  # type: ignore[misc]
    mlflow = MlflowRest(settings.mlflow_url)
    yield Part("MLflow", ("I5", "I6", "I7"), lambda sheet: MlflowAudit(ledger, mlflow, sheet).run())
    yield Part("the blob store", (BLOBS,), lambda sheet: _blobs(ledger, settings, sheet, deep))
    yield Part("Redis", ("I9",), lambda sheet: audit_broker(ledger, settings.redis_url, sheet))
    yield Part(
        "the processes of this machine", ("I9",), lambda sheet: audit_processes(ledger, settings.state_dir, sheet)
    )


def _blobs(ledger: Ledger, settings: Settings, sheet: Sheet, deep: bool) -> None:
    BlobAudit(ledger, make_blobs(settings.blobs_url, reads_only=True), sheet, deep).run()


def _look(parts: list[Part], pause_s: float, tell: Tell) -> tuple[list[Sheet], list[Unread]]:
    first = [_carry_out(part, Sheet(tell)) for part in parts]
    doubted = any(isinstance(seen, Sheet) and seen.found for seen in first)
    if doubted:
        time.sleep(pause_s)
    seen = [_confirm(part, one, tell) for part, one in zip(parts, first, strict=True)]
    unread = {(one.what, one.why): one for one in seen if isinstance(one, Unread)}
    return [one for one in seen if isinstance(one, Sheet)], list(unread.values())


def _confirm(part: Part, first: Sheet | Unread, tell: Tell) -> Sheet | Unread:
    """Look again where something was found."""
    if isinstance(first, Unread) or not first.found:
        return first
    again = _carry_out(part, Sheet(tell))
    return first.confirmed(again) if isinstance(again, Sheet) else again


def _carry_out(part: Part, sheet: Sheet) -> Sheet | Unread:
    try:
        part.check(sheet)
    except HeadraceError as error:
        return Unread(part.name, error.message, part.invariants)
    except Exception as error:  # noqa: BLE001 -- the edge: one part that cannot be read, say a damaged file, hides no other
        return Unread(part.name, f"{type(error).__name__}: {str(error)[:500]}", part.invariants)
    return sheet


def _shown(url: str) -> str:
    """Where the ledger is, without a password."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{host}{unquote(parts.path)}"
