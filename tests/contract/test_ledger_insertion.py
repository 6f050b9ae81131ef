"""Rows that go in many at a time are what SQLAlchemy's own INSERT makes of them, on every database."""

from __future__ import annotations

from datetime import timedelta, timezone
from typing import Any

import pytest
from sqlalchemy import insert, select

from shared.ledger import Ledger
from shared.ledger.insertion import insert_all
from shared.ledger.tables import arrival, run
from tests.ledgers import START

KATHMANDU = timezone(timedelta(hours=5, minutes=45))
ROWS: list[dict[str, Any]] = [
    {"id": 1, "above": None, "upto": 2**62, "rows": None, "event_id": None},
    {"id": 2, "above": "a'b\\ %s :x ?", "upto": "ü\u2028", "rows": 2**62, "event_id": "%(id)s"},
    {"id": 3, "above": -1, "upto": "2013-02-01 00:00", "rows": 1, "event_id": "3"},
]
SAME: dict[str, Any] = {"dataset": "reported", "origin": "rest", "observed_at": START.astimezone(KATHMANDU)}


@pytest.mark.parametrize("count", [1, 3])
def test_rows_that_go_in_together_read_like_those_of_sqlalchemy(ledger: Ledger, count: int) -> None:
    with ledger.write() as tx, tx.doing("arrivals.receive"):
        insert_all(tx, arrival, ROWS[:count], **SAME)
        insert_all(tx, arrival, [], **SAME)
        tx.execute(insert(arrival), [{**row, **SAME, "id": row["id"] + 10} for row in ROWS[:count]])
    with ledger.read() as tx:
        rows = [row._asdict() for row in tx.execute(select(arrival).order_by(arrival.c.id))]
    assert [{**row, "id": row["id"] + 10} for row in rows[:count]] == rows[count:]
    assert (rows[0]["observed_at"], rows[0]["above"], len(rows)) == (START, None, 2 * count)


def test_a_column_whose_default_would_be_forgotten_is_named(ledger: Ledger) -> None:
    with pytest.raises(ValueError, match="run: give asked, failures, lost"), ledger.write() as tx:
        insert_all(tx, run, [{"id": 1, "model": "delays"}], state="waiting")
