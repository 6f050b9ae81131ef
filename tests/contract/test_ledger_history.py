"""History is only added to, on every database."""

from __future__ import annotations

import pytest
from sqlalchemy import delete, update
from sqlalchemy.exc import DBAPIError

from shared.ledger import Ledger, history, planning, retention
from shared.ledger.tables import history as rows
from tests.ledgers import LEASE, adopt


@pytest.mark.parametrize("spoil", [update(rows).values(actor="nobody"), delete(rows)])
def test_the_database_refuses_to_change_what_was_told(ledger: Ledger, spoil: object) -> None:
    adopt(ledger)
    with ledger.write() as tx:
        planning.ask(tx, "delays", "new gate", "alice")
    with pytest.raises(DBAPIError, match="history is only added to"), ledger.engine.begin() as by_hand:
        by_hand.execute(spoil)  # type: ignore[call-overload]
    with ledger.read() as tx:
        assert history.find_all(tx, model="delays", before=None, limit=9)[0].actor == "alice"


def test_a_turn_of_the_janitor_is_told_where_a_person_wants_it(ledger: Ledger) -> None:
    for by in (None, "carol"):
        with ledger.write() as tx:
            id = retention.begin(tx, "bridge", {"runs": "1d"}, LEASE, by)
            assert id is not None
            retention.end(tx, id, {}, None)
    with ledger.read() as tx:
        told = history.find_all(tx, model=None, before=None, limit=9)[:-1]  # the first is the configuration
    assert [(one.actor, one.action, one.subject) for one in told] == [("carol", "tidy", "turn 2 of the janitor")]


def test_what_is_undone_is_not_told(ledger: Ledger) -> None:
    adopt(ledger)
    with pytest.raises(ZeroDivisionError), ledger.write() as tx:
        planning.ask(tx, "delays", f"{1 // 0}", "alice")
    with ledger.read() as tx:
        assert [one.actor for one in history.find_all(tx, model=None, before=None, limit=9)] == ["test"]
