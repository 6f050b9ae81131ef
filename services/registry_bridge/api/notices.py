"""What went out, over REST: notices in their order, and deliveries, which a person may have sent again."""

from __future__ import annotations

from contextlib import closing
from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Query, Request
from pydantic import Field, JsonValue

from shared.errors import Refused
from shared.http import Here, Operator, Paged, Reader, Wait, poll
from shared.ledger import deliveries, repeats
from shared.lifecycle import DeliveryState
from shared.notices import NoticeType
from shared.problems import EVERYWHERE, problems
from shared.values import Strict

router = APIRouter(prefix="/v1", tags=["notices"], responses=EVERYWHERE)

Listed = Annotated[
    str, Query(max_length=2000, pattern=r"^[a-z0-9._-]*(,[a-z0-9._-]+)*$", description="Separated by commas.")
]
Subject = Annotated[str, Query(max_length=64, description="Name of a model or dataset.")]


class CloudEvent(Strict):
    """A notice as CloudEvents 1.0 has it; the same bytes go to subscriptions."""

    specversion: Literal["1.0"]
    id: str
    source: str
    type: str
    subject: str
    time: Annotated[str, Field(json_schema_extra={"format": "date-time"})]
    sequence: str = Field(description="a number that rises from notice to notice")
    datacontenttype: Literal["application/json"]
    traceparent: str | None = None
    data: dict[str, JsonValue]


class NoticePage(Strict):
    items: tuple[CloudEvent, ...]
    next: int = Field(description="`after` of the next request")
    newest: int = Field(
        description="sequence of the newest notice of all: `after` of who begins now; 0 before the first"
    )


class Delivery(Strict):
    """A notice on its way to one subscription."""

    id: str = Field(description="the same for every try: `webhook-id`")
    sequence: int
    type: NoticeType
    subscription: str
    state: DeliveryState
    attempts: int
    due_at: datetime | None
    ended_at: datetime | None
    answer: int | None = Field(description="HTTP status of the last answer")
    error: str | None


class DeliveryPage(Strict):
    items: tuple[Delivery, ...]
    next: str | None


@router.get("/notices", response_model_exclude_unset=True)
async def read_notices(
    request: Request,
    _: Reader,
    stores: Here,
    after: Annotated[int, Query(ge=0, lt=2**63, description="The sequence number to begin behind.")] = 0,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    wait: Wait = 0,
    types: Listed = "",
    models: Listed = "",
) -> NoticePage:
    """Notices in the order of their sequence numbers. With `wait`, the answer comes with the first one, as soon as it is committed."""
    kinds, names = _kinds(types), tuple(filter(None, models.split(",")))

    def look() -> NoticePage:
        with stores.ledger.read() as tx:
            found, newest = deliveries.read(tx, after, limit, kinds, names), deliveries.newest(tx)
        events = tuple(CloudEvent.model_validate(one.to_cloudevent()) for one in found)
        return NoticePage(items=events, next=found[-1].sequence if found else after, newest=newest)

    with closing(stores.ledger.watch()) as changes:
        return await poll(request, look, lambda page: bool(page.items), wait, changes.poll)


def _kinds(types: str) -> tuple[NoticeType, ...]:
    try:
        return tuple(NoticeType(one) for one in types.split(",") if one)
    except ValueError as error:
        raise Refused(f"types: {error}; there are {', '.join(NoticeType)}") from None


@router.get("/deliveries")
def list_deliveries(
    _: Reader, stores: Here, page: Paged, state: DeliveryState | None = None, subject: Subject | None = None
) -> DeliveryPage:
    """Deliveries, newest notice first; those that were given up are `failed`."""
    with stores.ledger.read() as tx:
        after = deliveries.find(tx, page.after) if page.after is not None else None
        rows = deliveries.find_all(tx, state=state, subject=subject, after=after, limit=page.limit + 1)
    shown, following = page.cut(rows, lambda row: row.id)
    return DeliveryPage(items=tuple(_read(row) for row in shown), next=following)


def _read(row: Any) -> Delivery:
    return Delivery(
        id=row.id,
        sequence=row.sequence,
        type=NoticeType(row.type),
        subscription=row.subscription,
        state=DeliveryState(row.state),
        attempts=row.attempts,
        due_at=row.due_at,
        ended_at=row.ended_at,
        answer=row.answer,
        error=row.error,
    )


@router.post("/deliveries/{id}/replay", status_code=202, responses=problems(404, 409))
@repeats
def replay(caller: Operator, stores: Here, id: Annotated[str, Path(pattern=r"^msg_[0-9a-f]{32}$")]) -> Delivery:
    """Send a delivery again that was given up; it keeps its id."""
    with stores.ledger.write() as tx:
        deliveries.replay(tx, id, caller.name)
        return _read(deliveries.find(tx, id))
