"""The log of a run over REST, from an offset on and as it grows."""

from __future__ import annotations

import codecs
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from pydantic import Field

from services.registry_bridge.api.runs import RunId
from shared.errors import NotFound
from shared.http import Here, Reader, Stores, Wait, poll
from shared.ledger import attempts, runs
from shared.lifecycle import UNFINISHED
from shared.problems import EVERYWHERE, problems
from shared.values import Strict

router = APIRouter(prefix="/v1", tags=["runs"], responses=EVERYWHERE)

PIECE_BYTES = 256 * 1024

Number = Annotated[int, Query(ge=1, lt=2**31, description="Which attempt; the newest by default.")]
Offset = Annotated[
    int, Query(ge=0, lt=2**63, description="Where to begin, in bytes: the `offset` of the piece before.")
]


class LogPiece(Strict):
    """A part of the log of one attempt; whole characters only."""

    text: str
    offset: int = Field(description="where the next piece begins")
    attempt: int | None = Field(description="null before the first; when it changes, begin again at 0")
    done: bool = Field(description="nothing will follow")


@router.get("/runs/{id}/log", responses=problems(404))
async def read_log(
    request: Request,
    _: Reader,
    stores: Here,
    id: RunId,
    offset: Offset = 0,
    wait: Wait = 0,
    attempt: Number | None = None,
) -> LogPiece:
    """What the author's code has printed. With `wait`, the answer comes when there is more, when it is over, or when a new attempt begins."""
    seen: list[int | None] = []

    def look() -> LogPiece:
        piece = _look(stores, id, offset, attempt)
        seen.append(piece.attempt)
        return piece

    def news(piece: LogPiece) -> bool:
        return piece.done or piece.offset != offset or piece.attempt != seen[0]

    return await poll(request, look, news, wait, look_s=stores.logs.pace_s / 2)  # a look at S3 is a request, and costs


def _look(stores: Stores, id: int, offset: int, wanted: int | None) -> LogPiece:
    with stores.ledger.read() as tx:  # first, so that a log that has ended is read to its end
        run, tried = runs.find(tx, id), attempts.of_run(tx, id)
    chosen = _choose(tried, id, wanted)
    ended = chosen.ended_at is not None if wanted is not None else run.state not in UNFINISHED
    if chosen is None:
        return LogPiece(text="", offset=0, attempt=None, done=ended)
    data, size = stores.logs.read(f"runs/{id}/{chosen.number}", offset, PIECE_BYTES)
    text, used = decode(data, final=ended and offset + len(data) >= size)
    upto = min(offset, size) + used
    return LogPiece(text=text, offset=upto, attempt=chosen.number, done=ended and upto >= size)


def _choose(tried: list[Any], id: int, wanted: int | None) -> Any:
    if wanted is None:
        return tried[-1] if tried else None
    found = next((one for one in tried if one.number == wanted), None)
    if found is None:
        raise NotFound(f"run {id} has no attempt {wanted}; it has {len(tried)}")
    return found


def decode(data: bytes, *, final: bool) -> tuple[str, int]:
    """The text of the whole characters in `data`, and how many bytes they took; a character that is cut off is left for the next time."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    text = decoder.decode(data, final)
    return text, len(data) - len(decoder.getstate()[0])
