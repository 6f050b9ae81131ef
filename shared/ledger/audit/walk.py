"""The way through a long table: a page and a transaction at a time, so that neither memory nor a snapshot grows with the history."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Select

from shared.ledger.session import Ledger, Transaction

PAGE = 1000
Look = Callable[[Transaction, Sequence[Any]], None]


def walk(ledger: Ledger, query: Select[Any], key: ColumnElement[Any], look: Look, size: int = PAGE) -> None:
    """Call `look` with each page of the query, in the order of `key`, one of its columns; the page's transaction is open meanwhile."""
    after: Any = None
    while True:
        paged = query if after is None else query.where(key > after)
        with ledger.read() as tx:
            rows = tx.execute(paged.order_by(key).limit(size)).all()
            if rows:
                look(tx, rows)
                after = rows[-1]._mapping[key]
        if len(rows) < size:
            return
