"""Numbers of runs, arrivals and notices after the ledger was restored: above all that may have been given since the copy was made.

They stand in other systems (MLflow's tags, names of logs, answers to producers, consumers' `after=`), so none may come twice. Nobody knows how many were
given since, so the next ones begin at a new million.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Integer, Table, bindparam, cast, func, insert, select, update
from sqlalchemy.dialects.postgresql import REGCLASS

from shared.ledger.session import Transaction
from shared.ledger.tables import arrival, counter, run

STEP = 1_000_000


def lift(tx: Transaction) -> int:
    """Let the numbers of all three begin anew, above the next million; that million."""
    newest = [tx.execute(select(func.max(table.c.id))).scalar() or 0 for table in (run, arrival)]
    notices = tx.execute(select(counter.c.value).where(counter.c.name == "notice")).scalar() or 0
    kept = tx.execute(select(counter.c.value).where(counter.c.name == "above")).scalar() or 0
    floor = (max(*newest, notices, kept) // STEP + 1) * STEP
    for name in ("notice", "above"):
        if not tx.execute(update(counter).where(counter.c.name == name).values(value=floor)).rowcount:
            tx.execute(insert(counter).values(name=name, value=floor))
    if tx.connection.dialect.name == "postgresql":
        for table in (run, arrival):
            sequence = cast(func.pg_get_serial_sequence(table.name, "id"), REGCLASS)
            tx.execute(select(func.setval(sequence, floor)))
    return floor


def next_ids(tx: Transaction, table: Table, count: int) -> Sequence[int]:
    """The numbers of so many new rows, rising, for who writes them at once; SQLite alone would take the highest there is, plus one."""
    if tx.connection.dialect.name == "postgresql":
        return list(tx.execute(_DRAW, {"of": table.name, "count": count}).scalars())
    floor, newest = tx.execute(_HIGHEST[table]).one()
    first = max(floor or 0, newest or 0) + 1
    return range(first, first + count)


_FLOOR = select(counter.c.value).where(counter.c.name == "above").scalar_subquery()
_HIGHEST = {table: select(_FLOOR, select(func.max(table.c.id)).scalar_subquery()) for table in (run, arrival)}
_SEQUENCE = cast(func.pg_get_serial_sequence(bindparam("of"), "id"), REGCLASS)
_DRAW = select(func.nextval(_SEQUENCE)).select_from(func.generate_series(1, bindparam("count", type_=Integer)))
