"""Which steps are legal, and that none leads into a trap."""

from __future__ import annotations

import re

import pytest

from shared import lifecycle
from shared.errors import Conflict
from shared.lifecycle import TRANSITIONS, UNFINISHED, DeliveryState, RunState, State, VersionState, check

NOUNS = (RunState, VersionState, DeliveryState)
STATES: list[State] = [state for noun in NOUNS for state in noun]
ENDS = {
    RunState.TRAINED,
    RunState.FAILED,
    RunState.CANCELLED,
    VersionState.PROMOTED,
    VersionState.REJECTED,
    VersionState.SAMPLE,
}


def reached(state: State) -> set[State]:
    found: set[State] = set()
    ahead = {state}
    while ahead:
        found |= ahead
        ahead = {after for one in ahead for after in TRANSITIONS[type(one)][one]} - found
    return found


def test_every_state_has_its_steps_within_its_noun() -> None:
    for noun in NOUNS:
        steps = TRANSITIONS[noun]
        assert sorted(map(repr, steps)) == sorted(map(repr, noun))
        assert all(type(after) is noun for afters in steps.values() for after in afters)


@pytest.mark.parametrize("state", STATES)
def test_no_state_is_a_trap(state: State) -> None:
    assert reached(state) & (ENDS | {DeliveryState.DELIVERED})


@pytest.mark.parametrize(
    ("first", "noun"), [("waiting", RunState), ("candidate", VersionState), ("pending", DeliveryState)]
)
def test_every_state_can_be_reached(first: str, noun: type[RunState | VersionState | DeliveryState]) -> None:
    """A sample is one from its beginning to its end."""
    assert reached(noun(first)) == set(noun) - {VersionState.SAMPLE}


def test_an_end_is_an_end() -> None:
    ends = {noun: [repr(one) for one in noun if not TRANSITIONS[noun][one]] for noun in NOUNS}
    assert ends == {
        RunState: ["<RunState.TRAINED: 'trained'>", "<RunState.FAILED: 'failed'>", "<RunState.CANCELLED: 'cancelled'>"],
        VersionState: [
            "<VersionState.PROMOTED: 'promoted'>",
            "<VersionState.REJECTED: 'rejected'>",
            "<VersionState.SAMPLE: 'sample'>",
        ],
        DeliveryState: ["<DeliveryState.DELIVERED: 'delivered'>"],
    }
    assert set(UNFINISHED) == set(RunState) - ENDS


@pytest.mark.parametrize("before", STATES)
def test_exactly_the_steps_of_the_table_are_allowed(before: State) -> None:
    for after in type(before):
        if after in TRANSITIONS[type(before)][before]:
            check(before, after)
        else:
            with pytest.raises(Conflict, match=f"a {before} .* cannot become {after}"):
                check(before, after)


def test_the_picture_in_the_docstring_shows_the_states_of_the_table() -> None:
    picture = (lifecycle.__doc__ or "").split("\n\n")[1]
    assert set(re.findall(r"[a-z]+", picture)) >= {str(state) for state in STATES}
