"""The ledger in memory under any order of what can happen."""

from __future__ import annotations

from hypothesis.stateful import run_state_machine_as_test

from shared.ledger import Ledger
from shared.ledger.schema import create_all
from tests.state_machine import QUICK, Headrace


def test_the_ledger_does_what_its_plain_model_does() -> None:
    ledger = Ledger("sqlite://")  # kept for all examples: statements compile once an engine
    create_all(ledger)

    def machine() -> Headrace:  # `@reproduce_failure` goes above this line
        return Headrace(ledger)

    run_state_machine_as_test(machine, settings=QUICK)
