"""The same on a server; on SQLite it is a unit test, in memory."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test

from shared.ledger import Ledger
from tests.state_machine import QUICK, Headrace


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
def test_the_ledger_does_what_its_plain_model_does(database: Ledger) -> None:
    def machine() -> Headrace:  # `@reproduce_failure` goes above this line
        return Headrace(database)

    run_state_machine_as_test(machine, settings=settings(QUICK, max_examples=6))
