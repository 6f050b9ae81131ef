"""The same audit on every database that the ledger stands on; and of a file that is damaged."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import text

from shared.audit import Sheet
from shared.ledger import Ledger
from shared.ledger.audit.integrity import integrity
from shared.ledger.audit.walk import walk
from tests import audited, ledgers
from tests.ledgers import CONFIG, HandClock

WRONG = (
    "UPDATE run SET token = 3 WHERE model = 'delays' AND state = 'failed'",
    "UPDATE promotion SET replaces_id = NULL",
    "UPDATE counter SET value = value + 1",
    "UPDATE arrival SET event_id = 'e-1', source = '/loader'",
    "DROP INDEX uq_run_waiting",
    "UPDATE run SET state = 'waiting', sentence = '' WHERE state = 'cancelled'",
    "UPDATE dataset SET lease_until = NULL",
)
KINDS = {"token", "chain", "counter", "arrival_twice", "two_waiting", "not_planned"}


def test_what_is_right_is_clean_and_what_is_wrong_is_told_on_every_database(ledger: Ledger, clock: HandClock) -> None:
    audited.furnish(ledger, clock)
    assert not audited.found(ledger)
    try:
        with ledger.engine.begin() as connection:
            for statement in WRONG:
                connection.execute(text(statement))
        assert {one.kind for one in audited.found(ledger)} >= KINDS
    finally:
        with ledger.engine.begin() as connection:
            connection.execute(text("UPDATE run SET state = 'cancelled'"))
            connection.execute(text("CREATE UNIQUE INDEX uq_run_waiting ON run (model) WHERE state = 'waiting'"))


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
def test_two_versions_of_a_run_are_told_where_the_index_is_gone(ledger: Ledger, clock: HandClock) -> None:
    audited.furnish(ledger, clock)
    with ledger.engine.begin() as connection:
        connection.execute(text("ALTER TABLE version DROP CONSTRAINT uq_version_run_id"))
        connection.execute(text("UPDATE version SET run_id = (SELECT min(run_id) FROM version)"))
    told = [one for one in audited.found(ledger) if one.kind == "two_versions"]
    with ledger.engine.begin() as connection:
        connection.execute(text("DELETE FROM verdict"))
        connection.execute(text("DELETE FROM promotion"))
        connection.execute(text("DELETE FROM version"))
        connection.execute(text("ALTER TABLE version ADD CONSTRAINT uq_version_run_id UNIQUE (run_id)"))
    assert len(told) == 1
    assert "has 4 versions" in told[0].what


def test_a_history_of_several_pages_is_walked_to_its_end(
    ledger: Ledger, clock: HandClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(walk, "__defaults__", (2,))
    audited.furnish(ledger, clock)
    sheet = audited.audited(ledger)
    assert not sheet.found
    assert sheet.counts["I5"]["runs"] == 7
    assert sheet.counts["I1"]["arrivals"] == 7


@pytest.mark.parametrize("tenth", range(1, 10))
def test_a_damaged_file_is_told(ledger_file: Path, tenth: int) -> None:
    ledger = Ledger(f"sqlite:///{ledger_file}", HandClock())
    ledgers.put_config(ledger, CONFIG)
    for _ in range(60):
        ledgers.grow(ledger)
    ledger.engine.dispose()
    with ledger_file.open("r+b") as file:
        file.seek(0, 2)
        file.seek(
            file.tell() * tenth // 10 // 4096 * 4096
        )  # a page of the schema too, without which nothing can be opened
        file.write(b"\xff" * 4096)
    sheet = Sheet()
    integrity(ledger, sheet)
    ledger.close()
    assert "damaged" in {one.kind for one in sheet.found.values()}
