"""How far data is known, which of it a model trains on, and on which rows candidate and champion are compared (pure)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, Self

from shared.declaration import Use

Point = int | str | None


@dataclass(frozen=True)
class Cut:
    """A dataset up to a point, in its source's terms. Rows above `holdout_above` are the holdout, which nobody trains on."""

    upto: Point
    rows: int | None = None  # in all, up to `upto`
    holdout_above: Point = None
    holdout_rows: int | None = None
    newest_time: str | None = None  # the greatest value of the time column
    arrival: int | None = None  # the newest arrival that it covers
    newest: int | None = None  # of a sample: of the rows to train on only so many, the newest
    above: Point = None  # of a sample of what is only reported: where the newest reports begin that it trains on

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        return cls(**value)

    def to_json(self) -> dict[str, Any]:
        """Without what only a sample has: the digests of other cuts stay what they were before there were samples."""
        return {key: value for key, value in asdict(self).items() if key not in _OF_SAMPLES or value is not None}


_OF_SAMPLES = ("newest", "above")


@dataclass(frozen=True)
class Range:
    """Rows of one dataset above one point (None: from the first) up to another, in the source's terms; `rows` where it is known."""

    above: Point
    upto: Point
    rows: int | None = None
    newest: int | None = None  # only so many, the newest
    since: str | None = None  # only those whose time column is not below this


def training(cut: Cut, use: Use) -> Range:
    """What a model trains on: the cut without its holdout, or the newest part of that."""
    upto = cut.upto if cut.holdout_above is None else cut.holdout_above
    since = None
    if use.history is not None and cut.newest_time is not None:
        since = (datetime.fromisoformat(cut.newest_time) - use.history).isoformat(
            sep=" " if " " in cut.newest_time else "T"
        )
        since = since.replace("+00:00", "Z") if cut.newest_time.endswith("Z") else since
        since = (
            since[:10] if len(cut.newest_time) == 10 else since
        )  # a column of dates: compared as text, a date is below its midnight
    rows = cut.rows - cut.holdout_rows if cut.rows is not None and cut.holdout_rows is not None else cut.rows
    newest = min((most for most in (use.rows, cut.newest) if most is not None), default=None)
    if cut.newest is not None and rows is not None:
        rows = min(rows, cut.newest)
    if cut.above is not None:
        rows = None
    return Range(cut.above, upto, rows, newest, since)


def comparison(candidate: Mapping[str, Cut], champion: Mapping[str, Cut] | None) -> dict[str, Range]:
    """The holdout of the candidate's cut, less the rows that the champion was trained on. One range for each dataset."""
    return {name: _compare(cut, (champion or {}).get(name)) for name, cut in candidate.items()}


def _compare(cut: Cut, champion: Cut | None) -> Range:
    own = Range(cut.holdout_above, cut.upto, cut.holdout_rows)
    seen = champion.holdout_above if champion is not None else None
    if champion is None or seen is None or own.above is None or type(seen) is not type(own.above) or seen <= own.above:  # type: ignore[operator]
        return own
    rows = None
    if None not in (cut.rows, champion.rows, champion.holdout_rows):
        rows = max(0, cut.rows - (champion.rows - champion.holdout_rows))  # type: ignore[operator]
    return Range(seen, cut.upto, rows)


def digest(ranges: Mapping[str, Range]) -> str:
    """`sha256:…` of which rows: the same rows, the same digest, whoever asks."""
    which = {name: [one.above, one.upto] for name, one in ranges.items()}
    return "sha256:" + hashlib.sha256(json.dumps(which, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def total_rows(ranges: Mapping[str, Range]) -> int | None:
    """How many rows there are to compare on: of the smallest dataset, since the scarcest decides; None if that is not known."""
    known = [one.rows for one in ranges.values()]
    return None if None in known or not known else min(rows for rows in known if rows is not None)


def to_json(ranges: Mapping[str, Range]) -> dict[str, Any]:
    return {name: asdict(one) for name, one in ranges.items()}


def from_json(value: Mapping[str, Any]) -> dict[str, Range]:
    return {name: Range(**one) for name, one in value.items()}
