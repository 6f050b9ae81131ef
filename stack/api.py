"""The API process: the routers of all services at one address, with one set of tokens and one OpenAPI document.

`python -m stack.serve` serves it; any ASGI server can (`uvicorn stack.api:create_app --factory`), behind a proxy that does not wait for slow senders.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Literal

from fastapi import FastAPI

from services.ingest_watcher.api import router as reports
from services.registry_bridge.api import routers as results
from shared import settings
from shared.blobs import make_blobs
from shared.http import Here, Stores
from shared.ledger import Ledger
from shared.ledger.schema import await_schema, check_schema
from shared.logs import make_logs
from shared.problems import Application, problems
from shared.rates import Rates
from shared.values import Strict


class Health(Strict):
    status: Literal["ok"] = "ok"


def create_app(stores: Stores | None = None) -> FastAPI:
    """The application; without `stores` it opens those of the settings when it starts, and then says that it is ready."""
    app = Application(
        title="Headrace",
        version="1",
        description="New data in, better models out. Times are UTC; every error is a problem answer (RFC 9457).",
        lifespan=_lifespan if stores is None else None,
    )
    if stores is not None:
        app.state.stores = stores
    for router in (reports, *results):
        app.include_router(router)
    app.get("/healthz", tags=["health"])(healthz)
    app.get("/readyz", tags=["health"], responses=problems(503))(readyz)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    told = settings.load()
    ledger = Ledger(told.ledger_url)
    await_schema(ledger, told.patience_s)
    rates = Rates(told.api_requests_per_s)
    app.state.stores = Stores(ledger, make_blobs(told.blobs_url), make_logs(told.logs_url), rates)
    told.announce_ready()
    yield
    ledger.close()


async def healthz() -> Health:
    """The process answers."""
    return Health()


def readyz(stores: Here) -> Health:
    """The ledger answers, and has the tables that this program knows."""
    check_schema(stores.ledger)
    return Health()
