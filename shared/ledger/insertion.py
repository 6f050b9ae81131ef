"""Many rows of a table at once, in a third of the time that SQLAlchemy takes, which looks at each value of each row anew."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from operator import itemgetter
from typing import Any

from sqlalchemy import Dialect, Table, insert

from shared.ledger.session import Transaction

Convert = Callable[[Any], Any]


def insert_all(tx: Transaction, table: Table, rows: Sequence[Mapping[str, Any]], **same: Any) -> None:
    """Insert rows that have the same columns, and these values in each of them. A column's own default is not applied."""
    if not rows:
        return
    statement, converts, order = _compiled(table, tx.connection.dialect, (*rows[0], *same))
    shared = {name: converts[name](value) if name in converts else value for name, value in same.items()}
    own = [(name, convert) for name, convert in converts.items() if name not in same]
    values: list[Any] = []
    for row in rows:
        value = {**row, **shared}
        for name, convert in own:
            value[name] = convert(value[name])
        values.append(value if order is None else order(value))
    tx.connection.exec_driver_sql(statement, values)


@lru_cache(64)
def _compiled(
    table: Table, dialect: Dialect, columns: tuple[str, ...]
) -> tuple[str, dict[str, Convert], Convert | None]:
    """The statement, what makes of a column's value that of the database, and what orders them where parameters have no names."""
    made: Any = insert(table).inline().compile(dialect=dialect, column_keys=list(columns))
    if missing := sorted(set(made.params) - set(columns)):
        raise ValueError(f"{table.name}: give {', '.join(missing)} too")
    found = {name: table.c[name].type.dialect_impl(dialect).bind_processor(dialect) for name in columns}
    converts: dict[str, Convert] = {name: convert for name, convert in found.items() if convert is not None}
    order: Convert | None = itemgetter(*made.positiontup) if made.positional else None
    return str(made), converts, order
