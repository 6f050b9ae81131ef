"""The file below it all: whole, and without a row that points at nothing."""

from __future__ import annotations

from sqlalchemy.exc import DatabaseError

from shared.audit import Sheet
from shared.ledger.session import Ledger, Transaction
from shared.ledger.tables import metadata

LEDGER = "ledger"
MOST = 200
_BACK = "stop the stack, keep the file (`sqlite3 ledger.db .recover` saves what can be saved) and go back to a copy: `python -m stack restore COPY`"
_GONE = "rows were deleted beside Headrace: go back to a copy of the ledger with `python -m stack restore COPY`"


def integrity(ledger: Ledger, sheet: Sheet) -> None:
    """SQLite's own quick check and its foreign keys; PostgreSQL sees to both itself."""
    sheet.looked(LEDGER, "tables", len(metadata.tables))
    if ledger.engine.dialect.name != "sqlite":
        return
    if _is_whole(ledger, sheet):
        with ledger.read() as tx:
            _check_references(tx, sheet)


def _is_whole(ledger: Ledger, sheet: Sheet) -> bool:
    try:
        with ledger.read() as tx:
            said = [str(row[0]) for row in tx.connection.exec_driver_sql(f"PRAGMA quick_check({MOST})")]
    except DatabaseError as error:  # so damaged that even this is not answered, or that it cannot be opened
        said = [str(error.orig)]
    for number, line in enumerate(said):
        if line != "ok":
            sheet.violated(LEDGER, "damaged", f"SQLite says of the ledger's file: {line[:300]}", _BACK, line=number)
    return said == ["ok"]


def _check_references(tx: Transaction, sheet: Sheet) -> None:
    for row in tx.connection.exec_driver_sql("PRAGMA foreign_key_check").fetchmany(MOST):
        what = f"row {row[1]} of the table {row[0]} points at a row of {row[2]} that is not there"
        sheet.violated(LEDGER, "foreign_key", what, _GONE, table=row[0], row=row[1])
