"""The file below it all: whole, and without a row that points at nothing."""

from __future__ import annotations

from shared.audit import Sheet
from shared.ledger.session import Ledger
from shared.ledger.tables import metadata

LEDGER = "ledger"


def integrity(ledger: Ledger, sheet: Sheet) -> None:
    """SQLite's own quick check and its foreign keys; PostgreSQL sees to both itself."""
    sheet.looked(LEDGER, "tables", len(metadata.tables))
    if ledger.engine.dialect.name != "sqlite":
        return
    do = "stop the stack, keep a copy of the file, and go back to the last backup (`sqlite3 ledger.db .recover` saves what can be saved)"
    with ledger.read() as tx:
        said = [str(row[0]) for row in tx.connection.exec_driver_sql("PRAGMA quick_check(20)")]
    for number, line in enumerate(said):
        if line != "ok":
            sheet.violated(LEDGER, "damaged", f"SQLite says of the ledger's file: {line[:300]}", do, line=number)
    with ledger.read() as tx:
        for row in tx.connection.exec_driver_sql("PRAGMA foreign_key_check").fetchmany(200):
            what = f"row {row[1]} of the table {row[0]} points at a row of {row[2]} that is not there"
            sheet.violated(
                LEDGER,
                "foreign_key",
                what,
                "somebody deleted rows beside Headrace: go back to a copy",
                table=row[0],
                row=row[1],
            )
