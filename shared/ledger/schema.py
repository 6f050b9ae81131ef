"""The schema of the ledger's tables: brought to what this code knows, or refused with the command that mends it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import structlog
from sqlalchemy import inspect, text

from shared.errors import ConfigurationError, Unavailable
from shared.ledger import copies
from shared.ledger.session import Ledger, Transaction
from shared.ledger.sqlite import Sqlite
from shared.ledger.tables import metadata

if TYPE_CHECKING:
    from alembic.config import Config

SCRIPTS = Path(__file__).parent / "migrations"
LOOK_S = 1.0
log = structlog.get_logger()


def migrate(url: str) -> Path | None:
    """Bring the ledger's tables to what this code knows, all or nothing; safe to call at every start, and by two processes in turn.

    A SQLite ledger whose tables are to change is copied first; answers with the copy. Raises `Unavailable` when the database stays locked or
    away, `ConfigurationError` for a ledger that is not ours to change: nothing was changed.
    """
    from alembic import command  # a tenth of what a service imports, and only one process in ten migrates

    path, copy = Sqlite.path_of(url), None
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
    ledger = Ledger(url)
    try:
        with ledger.write() as tx, tx.doing("schema.migrate"):
            tx.lock("schema")
            config, found, known = _alembic(), _revision(tx), _known()
            if found is not None and found not in known:
                raise ConfigurationError(_advice(found, known))
            if path and found not in (None, known[-1]):
                copy = copies.make(path, str(found))
            config.attributes["connection"] = tx.connection
            command.upgrade(config, "head")
    finally:
        ledger.close()
    return copy


def _revision(tx: Transaction) -> str | None:
    """The schema that the tables have; None where there are none."""
    if not inspect(tx.connection).has_table("alembic_version"):
        return None
    found: str | None = tx.connection.scalar(text("SELECT version_num FROM alembic_version"))
    return found


def _known() -> list[str]:
    """All schemas that this code knows, the oldest first: the files bear their numbers."""
    return sorted(script.name.partition("_")[0] for script in SCRIPTS.glob("versions/[0-9]*.py"))


def _advice(found: str | None, known: list[str]) -> str:
    if found is None or found in known:
        return f"the ledger has schema {found or 'none'}, this program needs {known[-1]}: run `python -m stack migrate`"
    return (
        f"the ledger has schema {found}, which this program does not know (it knows {known[0]} to {known[-1]}): start the version of Headrace that "
        "wrote it, or go back to a copy from before with `python -m stack restore COPY`"
    )


def check_schema(ledger: Ledger) -> None:
    """Raise `ConfigurationError` unless the tables are exactly those that this code knows."""
    known = _known()
    with ledger.read() as tx:
        found = _revision(tx)
    if found != known[-1]:
        raise ConfigurationError(_advice(found, known))


def await_schema(ledger: Ledger, patience_s: float) -> None:
    """`check_schema` for a process that starts: waits for a database that is still coming up, or is being migrated, and says so meanwhile."""
    deadline, told = time.monotonic() + patience_s, False
    while True:
        try:
            return check_schema(ledger)
        except (Unavailable, ConfigurationError) as error:
            if time.monotonic() > deadline:
                raise
            if not told:
                log.warning("ledger.awaited", why=error.message, patience_s=patience_s)
            told = True
        time.sleep(LOOK_S)


def create_all(ledger: Ledger) -> None:
    """The tables without alembic: for the in-memory twin."""
    metadata.create_all(ledger.engine)


def _alembic() -> Config:
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(SCRIPTS).replace("%", "%%"))
    return config
