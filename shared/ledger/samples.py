"""Which rows a run on a sample sees: frozen with its cut at the first claim, so that each attempt sees the same."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from sqlalchemy import select

from shared import sampling
from shared.cuts import Cut, Point
from shared.ledger import configuration, unchanged
from shared.ledger.releases import Release
from shared.ledger.session import Transaction
from shared.ledger.tables import arrival

MOST_ARRIVALS = 1_000


def freeze(tx: Transaction, release: Release, sample: str) -> dict[str, Any]:
    """`unchanged.freeze`, with the cut narrowed down to the newest rows of what the model may train on. The holdout stays whole."""
    frozen = unchanged.freeze(tx, release)
    datasets = configuration.in_force(tx).catalog.datasets
    cut = {}
    for name, part in frozen["cut"].items():
        whole = Cut.from_json(part)
        wanted = sampling.rows(sample, _trainable(whole, release.declaration.datasets[name].rows))
        narrowed = _of_reported(tx, name, whole, wanted) if datasets[name].reported else replace(whole, newest=wanted)
        cut[name] = narrowed.to_json()
    return frozen | {"cut": cut, "cut_digest": unchanged.digest(cut)}


def _trainable(cut: Cut, most: int | None) -> int | None:
    """How many rows the model would train on, as far as that is known."""
    rows = cut.rows - (cut.holdout_rows or 0) if cut.rows is not None else None
    return most if rows is None else min(rows, most) if most is not None else rows


def _of_reported(tx: Transaction, dataset: str, cut: Cut, wanted: int) -> Cut:
    """From where the newest reports begin that hold so many rows; one that does not say how many has enough."""
    newest = select(arrival.c.above, arrival.c.rows).where(arrival.c.dataset == dataset, arrival.c.id <= cut.arrival)
    above: Point = None
    found = 0
    for row in tx.execute(newest.order_by(arrival.c.id.desc()).limit(MOST_ARRIVALS)):
        above, found = row.above, found + (row.rows if row.rows is not None else wanted)
        if found >= wanted:
            break
    return replace(cut, above=above)
