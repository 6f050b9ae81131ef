"""What people and tokens did, over REST: only ever added to, and read with the scope `read`, for it holds no secret."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic import Field, JsonValue

from shared.http import Here, Paged, Reader
from shared.ledger import history
from shared.problems import EVERYWHERE
from shared.values import Strict

router = APIRouter(prefix="/v1", tags=["history"], responses=EVERYWHERE)
Model = Annotated[str, Query(max_length=64, description="Only what was done about this model.")]


class Deed(Strict):
    """One thing that a person or a token did."""

    id: int
    at: datetime
    actor: str = Field(description="name of the token, user of the command line, or `headrace`")
    action: str
    subject: str
    model: str | None
    reason: str
    before: dict[str, JsonValue] | None
    after: dict[str, JsonValue] | None


class HistoryPage(Strict):
    items: tuple[Deed, ...]
    next: str | None


@router.get("/history")
def list_history(_: Reader, stores: Here, page: Paged, model: Model | None = None) -> HistoryPage:
    """What was done, the newest first: by whom, when, why, and what it changed."""
    with stores.ledger.read() as tx:
        rows = history.find_all(tx, model=model, before=page.before, limit=page.limit + 1)
    shown, following = page.cut(rows, lambda row: row.id)
    return HistoryPage(items=tuple(_deed(row) for row in shown), next=following)


def _deed(row: Any) -> Deed:
    return Deed(**row._mapping)
