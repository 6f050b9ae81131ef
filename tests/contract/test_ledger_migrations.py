"""From every older schema to this one with rows in all tables, on both databases; all or nothing; and a copy first."""

from __future__ import annotations

import shutil
import sqlite3
import stat
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.script import ScriptDirectory
from sqlalchemy import inspect, select

from shared.arrivals import Report
from shared.errors import ConfigurationError
from shared.gates import Decision
from shared.ledger import (
    Ledger,
    arrivals,
    copies,
    fates,
    planning,
    rejections,
    retention,
    schema,
    scores,
    tokens,
    workers,
)
from shared.ledger.schema import check_schema, create_all, migrate
from shared.ledger.tables import metadata
from tests import ledgers
from tests.postgres_server import Postgres

NEWEST = schema._known()[-1]
OLDER = ["0001", "0002", "0003", "0004", "0005", "0006"]
Rows = dict[str, list[dict[str, Any]]]


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'ledger.db'}"
    server: Postgres = request.getfixturevalue("postgres")
    return server.new_database()


@pytest.fixture(scope="module")
def past() -> Rows:
    """Rows in all tables, as a life of the ledger leaves them."""
    ledger = Ledger("sqlite://", ledgers.HandClock())
    create_all(ledger)
    ledgers.put_config(ledger, ledgers.CONFIG)
    ledgers.adopt(ledger)
    ledgers.serve(ledger, 1)
    ledgers.register(ledger, ledgers.train(ledger), 2)
    ledgers.decide(ledger, 2, Decision.REJECT)
    ledgers.grow(ledger)
    with ledger.write() as tx:
        arrivals.receive(tx, Report(dataset="reported", source="batch", event_id="7", rows=5))
        arrivals.receive(tx, Report(dataset="reported", source="batch", event_id="8", rows=5), key=("shop", "key"))
        rejections.note(tx, rejections.Rejected("1-0", "batch", "no JSON", "{"))
        scores.store(tx, 1, "sha256:h", {}, "standard", {"auc": 0.7}, None)
        tokens.create(tx, "shop", (tokens.Scope.READ,), "carol")
        workers.seen(tx, "w1", "standard", 1, 0)
        assert retention.begin(tx, "bridge", {"runs": "1d"}, ledgers.LEASE) == 1
    ledgers.claim(ledger, ledgers.waiting(ledger))
    with ledger.read() as tx:
        found = {t.name: [dict(row._mapping) for row in tx.execute(select(t))] for t in metadata.sorted_tables}
    ledger.close()
    assert all(found.values()), [name for name, rows in found.items() if not rows]
    return found


def upgrade(url: str, revision: str) -> Ledger:
    ledger = Ledger(url, ledgers.HandClock())
    with ledger.engine.begin() as connection:
        config = schema._alembic()
        config.attributes["connection"] = connection
        command.upgrade(config, revision)
    return ledger


def fill(ledger: Ledger, past: Rows) -> Rows:
    """What of the past an older schema has room for."""
    kept: Rows = {}
    with ledger.engine.begin() as connection:
        known = inspect(connection)
        for table in metadata.sorted_tables:
            if known.has_table(table.name):
                columns = {column["name"] for column in known.get_columns(table.name)}
                kept[table.name] = [{key: row[key] for key in row if key in columns} for row in past[table.name]]
                connection.execute(table.insert(), kept[table.name])
        if connection.dialect.name == "postgresql":  # which does not see the numbers that were given by hand
            for name in {"run", "arrival", "configuration", "release", "history"} & kept.keys():
                connection.exec_driver_sql(f"SELECT setval('{name}_id_seq', (SELECT max(id) FROM {name}))")
    return kept


def test_the_schemas_that_a_service_knows_are_those_that_a_migration_makes() -> None:
    revisions = ScriptDirectory.from_config(schema._alembic()).walk_revisions()
    assert [script.revision for script in revisions][::-1] == schema._known() == [*OLDER, schema._known()[-1]]


@pytest.mark.parametrize("revision", OLDER)
def test_rows_of_an_older_schema_are_kept_and_work_goes_on(url: str, revision: str, past: Rows) -> None:
    ledger = upgrade(url, revision)
    kept = fill(ledger, past)
    with pytest.raises(ConfigurationError, match=f"has schema {revision}, .* run `python -m stack migrate`"):
        check_schema(ledger)
    migrate(url)
    check_schema(ledger)
    with ledger.read() as tx:
        for name, rows in kept.items():
            table = metadata.tables[name]
            found = [dict(row._mapping) for row in tx.execute(select(table).order_by(*table.primary_key))]
            order = [column.name for column in table.primary_key]
            wanted = sorted(rows, key=lambda row: tuple(row[key] for key in order))
            assert [{key: row[key] for key in wanted[0]} for row in found] == wanted, name
        assert [fate.kind for fate in fates.of_arrival(tx, 1)] == ["trained"]
    ledgers.grow(ledger)
    with ledger.write() as tx:
        assert planning.ask(tx, "delays", "goes on", "carol") == ledgers.waiting(ledger)
    ledger.close()


@pytest.fixture
def broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A later version whose migration fails in its middle."""
    scripts = tmp_path / "migrations"
    shutil.copytree(Path(schema.__file__).parent / "migrations", scripts)
    (scripts / "versions" / "9999_bad.py").write_text(
        f"from alembic import op\nimport sqlalchemy as sa\nrevision, down_revision = '9999', '{NEWEST}'\n"
        "def upgrade():\n    op.create_table('half', sa.Column('id', sa.Integer))\n    op.execute('UPDATE run SET sentence = 1')\n"
        "    op.execute('SELECT no_such_thing')\n"
    )

    with monkeypatch.context() as patch:
        patch.setattr(schema, "SCRIPTS", scripts)
        yield


def test_a_migration_that_fails_leaves_the_ledger_as_it_was(url: str, past: Rows, broken: None) -> None:
    ledger = upgrade(url, NEWEST)
    kept = fill(ledger, past)
    with pytest.raises(Exception, match="no_such_thing"):
        migrate(url)
    with ledger.read() as tx:
        assert not inspect(tx.connection).has_table("half")
        assert [row.sentence for row in tx.execute(select(metadata.tables["run"]))] == [
            row["sentence"] for row in kept["run"]
        ]
        assert schema._revision(tx) == NEWEST
    ledger.close()


def look(url: str) -> None:
    ledger = Ledger(url)
    try:
        check_schema(ledger)
    finally:
        ledger.close()


@pytest.mark.parametrize("act", [migrate, look])
def test_a_ledger_of_a_later_version_is_refused_and_left_alone(url: str, act: Callable[[str], object]) -> None:
    migrate(url)
    ledger = Ledger(url)
    with ledger.engine.begin() as by_hand:
        by_hand.exec_driver_sql("UPDATE alembic_version SET version_num = '0999'")
    said = rf"has schema 0999, which this program does not know \(it knows 0001 to {NEWEST}\).*`python -m stack restore COPY`"
    with pytest.raises(ConfigurationError, match=said):
        act(url)
    ledger.close()


def test_a_sqlite_ledger_is_copied_before_its_tables_change(tmp_path: Path, past: Rows) -> None:
    path = tmp_path / "ledger.db"
    ledger = upgrade(f"sqlite:///{path}", "0002")
    kept = fill(ledger, past)
    copy = migrate(f"sqlite:///{path}")
    assert copy is not None
    assert copy.parent == tmp_path / "copies"
    assert copy.name.startswith("ledger-0002-20")
    assert stat.S_IMODE(copy.stat().st_mode) == 0o600
    assert copies.check(copy) == "0002"
    with closing(sqlite3.connect(copy)) as opened:
        for name, rows in kept.items():
            assert opened.execute(f"SELECT count(*) FROM {name}").fetchone() == (len(rows),)
    assert sorted(path.name for path in copy.parent.iterdir()) == [copy.name]
    assert migrate(f"sqlite:///{path}") is None, "nothing changes, so nothing is copied"
    ledger.close()


def test_a_new_ledger_needs_no_copy(tmp_path: Path) -> None:
    assert migrate(f"sqlite:///{tmp_path / 'ledger.db'}") is None
    assert not (tmp_path / "copies").exists()


def test_the_newest_few_copies_are_kept(ledger_file: Path) -> None:
    made = [copies.make(ledger_file, "0003") for _ in range(copies.KEPT + 2)]
    assert sorted(made[0].parent.iterdir()) == made[2:]
