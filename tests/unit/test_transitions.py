"""What the transitions' docstrings say is legal, complete, and what the document says; and the guard that holds the code to it."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import update

from shared.ledger import Ledger, steps, tokens
from shared.ledger.tables import metadata, run
from shared.ledger.transitions import TRANSITIONS
from shared.lifecycle import TRANSITIONS as LEGAL
from tests import ledgers
from tests.guard import GUARD

DOCUMENT = Path(__file__).parents[2] / "docs" / "lifecycle.md"
TAKEN = {step for one in steps.described() for step in one.steps}
RENDER = "python -c \"import pathlib; from shared.ledger import steps; p = pathlib.Path('docs/lifecycle.md'); p.write_text(steps.page(p.read_text()))\""


@pytest.fixture
def ledger() -> Iterator[Ledger]:
    opened, _ = ledgers.in_memory()
    yield opened
    opened.close()


@pytest.fixture
def broken() -> Iterator[list[str]]:
    """What the guard has found, which this test wants it to find."""
    yield GUARD.found
    GUARD.found.clear()


def test_the_document_says_what_the_docstrings_say() -> None:
    text = DOCUMENT.read_text()
    assert text == steps.page(text), f"the docstrings have changed; render the page again: {RENDER}"


def test_every_change_is_one_of_a_table() -> None:
    assert {step.noun for step in TAKEN} <= set(metadata.tables)


@pytest.mark.parametrize("noun", steps.NOUNS)
def test_every_step_that_a_docstring_names_is_legal(noun: str) -> None:
    legal = LEGAL[steps.NOUNS[noun]]
    first = {"version": ("candidate", "sample")}.get(noun, (next(iter(steps.NOUNS[noun])),))
    for step in (one for one in TAKEN if one.noun == noun):
        if step.before == steps.NONE:
            assert step.after in first
        else:
            assert step.after in (steps.SAME, steps.NONE, *legal[steps.NOUNS[noun](step.before)]), step


@pytest.mark.parametrize("noun", steps.NOUNS)
def test_every_legal_step_is_taken_by_a_transition(noun: str) -> None:
    for before, afters in LEGAL[steps.NOUNS[noun]].items():
        for after in afters:
            assert steps.Step(noun, before, after) in TAKEN, f"{noun}: nothing leads from {before} to {after}"


@pytest.mark.parametrize("line", ["run: waiting → running", "By: a trainer", "Fence: token", "Again: refused"])
def test_a_docstring_that_lacks_a_line_is_refused(line: str) -> None:
    def step() -> None:
        """Take it.

        run: waiting → running
        By: a trainer
        Fence: token
        Again: refused
        """

    assert steps.describe("runs.step", step).by == "a trainer"
    step.__doc__ = str(step.__doc__).replace(line, "")
    with pytest.raises(ValueError, match=r"the docstring of runs\.step lacks"):
        steps.describe("runs.step", step)


def test_what_a_transition_calls_in_turn_leaves_no_name_of_its_own(ledger: Ledger) -> None:
    with ledger.write() as tx:
        tokens.create(tx, "shop", (tokens.Scope.READ,))
        tokens.revoke(tx, "shop")
        tokens.create(tx, "shop", (tokens.Scope.READ,))
    assert tx.did == ["tokens.create", "tokens.revoke"]


def test_a_commit_without_a_name_is_found(ledger: Ledger, broken: list[str]) -> None:
    ledgers.adopt(ledger)
    with pytest.raises(AssertionError, match="by no transition"), ledger.write() as tx:
        tx.execute(update(run).values(progress=0.5))
    assert "by no transition" in broken[0]
    with ledger.read() as tx:
        assert tx.execute(run.select()).one().progress is None


def test_a_commit_that_changes_nothing_needs_no_name(ledger: Ledger) -> None:
    with ledger.write() as tx:
        tx.execute(update(run).values(progress=0.5))


def test_a_step_that_no_docstring_of_the_commit_names_is_found(ledger: Ledger, broken: list[str]) -> None:
    ledgers.adopt(ledger)
    with pytest.raises(AssertionError, match="waiting → trained"), ledger.write() as tx, tx.doing("attempts.finish"):
        tx.execute(update(run).values(state="trained"))
    assert "attempts.finish does not name" in broken[0]


@pytest.mark.parametrize("writes", [True, False])
def test_whatever_leaves_the_process_while_a_transaction_is_open_is_found(
    ledger: Ledger, broken: list[str], writes: bool
) -> None:
    with ledger.write() if writes else ledger.read():
        with pytest.raises(AssertionError, match=r"subprocess\.Popen"):
            subprocess.run([sys.executable, "-c", ""], check=True)
        with pytest.raises(AssertionError, match=r"socket\.connect"), socket.socket() as client:
            client.connect(("127.0.0.1", 1))
    assert len(broken) == 2


def test_every_transition_is_described() -> None:
    assert {one.name for one in steps.described()} == set(TRANSITIONS)
