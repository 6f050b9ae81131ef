"""Numbers of runs, arrivals and notices after the ledger was restored: above all that may have been given since the copy was made.

They stand in other systems (MLflow's tags, names of logs, answers to producers, consumers' `after=`), so none may come twice. Nobody knows how many were
given since, so the next ones begin at a new million.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Table, cast, func, insert, select, update
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


def lifted(tx: Transaction, table: Table) -> dict[str, Any]:
    """The number of a new row where the database's own would be too low: SQLite takes the highest there is, plus one."""
    if tx.connection.dialect.name == "postgresql":
        return {}
    floor = tx.execute(select(counter.c.value).where(counter.c.name == "above")).scalar()
    if floor is None or (tx.execute(select(func.max(table.c.id))).scalar() or 0) >= floor:
        return {}
    return {"id": floor + 1}
