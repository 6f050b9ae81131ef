"""When a run is due: the rule of each setting at its boundary, and what holds whatever the facts are."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.catalog import Policy
from shared.policy import FIRST_RETRY, LONGEST_RETRY, Facts, due_at, retry_after
from tests.ledgers import START

MINUTE = timedelta(minutes=1)
SPANS = st.timedeltas(timedelta(0), timedelta(days=2))
MOMENTS = SPANS.map(lambda span: START + span)
POLICIES = st.builds(
    Policy,
    min_rows=st.integers(0, 2000),
    quiet=SPANS,
    cooldown=SPANS,
    max_wait=st.none() | st.timedeltas(timedelta(seconds=1), timedelta(days=2)),
)


@st.composite
def facts_of_arrivals(draw: st.DrawFn) -> Facts:
    first, last = sorted([draw(MOMENTS), draw(MOMENTS)])
    return Facts(
        arrivals=draw(st.integers(1, 50)),
        rows=draw(st.none() | st.integers(0, 3000)),
        first_at=first,
        last_at=last,
        last_ended_at=draw(st.none() | MOMENTS),
    )


def some(rows: int | None = 100, first: float = 0, last: float = 0, **more: object) -> Facts:
    """Facts with arrivals at so many minutes after START."""
    return Facts(1, rows, START + first * MINUTE, START + last * MINUTE, **more)  # type: ignore[arg-type]


def minutes(policy: Policy, facts: Facts) -> float | None:
    at = due_at(policy, facts).at
    return (at - START) / MINUTE if at is not None else None


def test_new_rows_are_due_at_once_by_default() -> None:
    assert minutes(Policy(), some(rows=1, last=3)) == 3


@pytest.mark.parametrize(("rows", "due"), [(99, None), (100, 3), (101, 3), (None, 3)])
def test_min_rows_are_reached_exactly_and_an_unknown_size_is_enough(rows: int | None, due: float | None) -> None:
    assert minutes(Policy(min_rows=100), some(rows=rows, last=3)) == due


def test_no_rows_at_all_are_enough_where_none_are_asked_for() -> None:
    assert minutes(Policy(min_rows=0), some(rows=0)) == 0


def test_quiet_counts_from_the_last_arrival() -> None:
    assert minutes(Policy(quiet=5 * MINUTE), some(first=0, last=7)) == 12


@pytest.mark.parametrize(("last", "due"), [(4, 9), (5, 10), (6, 10), (20, 10)])
def test_max_wait_counts_from_the_first_arrival_and_ends_the_quiet(last: float, due: float) -> None:
    assert minutes(Policy(quiet=5 * MINUTE, max_wait=10 * MINUTE), some(last=last)) == due


def test_max_wait_starts_a_run_that_has_too_few_rows() -> None:
    policy = Policy(min_rows=1000, max_wait=10 * MINUTE)
    assert minutes(policy, some(rows=1, first=2, last=3)) == 12
    assert "1 of 1,000 rows" in due_at(policy, some(rows=1)).sentence


@pytest.mark.parametrize(("ended", "due"), [(-11, 0), (-10, 0), (-9, 1), (3, 13)])
def test_cooldown_counts_from_the_end_of_the_last_run(ended: float, due: float) -> None:
    assert minutes(Policy(cooldown=10 * MINUTE), some(last_ended_at=START + ended * MINUTE)) == due


def test_cooldown_holds_against_max_wait_too() -> None:
    policy = Policy(min_rows=1000, cooldown=10 * MINUTE, max_wait=MINUTE)
    assert minutes(policy, some(rows=1, last_ended_at=START)) == 10


def test_what_was_asked_for_waits_for_nothing_but_its_data_and_the_run_before() -> None:
    policy = Policy(min_rows=1000, quiet=MINUTE, cooldown=MINUTE)
    asked = Facts(0, 0, None, None, asked_at=START, last_ended_at=START)
    assert due_at(policy, asked).at == START
    assert due_at(policy, replace(asked, busy=7)).at is None
    assert due_at(policy, replace(asked, without_data=("flights",))).at is None


def test_nothing_new_is_never_due() -> None:
    assert due_at(Policy(max_wait=MINUTE), Facts(0, 0, None, None)).at is None


@pytest.mark.parametrize(
    ("policy", "facts", "sentence"),
    [
        (Policy(), some(without_data=("flights", "weather")), "waits for the first rows of flights, weather"),
        (Policy(), some(unknown=("weather",)), "waits for dataset weather, which is not in the configuration"),
        (Policy(), some(busy=7), "waits for run 7 of the same model to end"),
        (Policy(min_rows=1000), some(rows=250), "has 250 new rows and waits for 1,000 (min_rows)"),
        (Policy(), some(rows=None), "has new data of unknown size, enough to start"),
        (
            Policy(quiet=90 * timedelta(seconds=1)),
            some(),
            "has 100 new rows and waits until none has come for 90 s (quiet)",
        ),
        (Policy(cooldown=2 * 60 * MINUTE), some(last_ended_at=START), "rests 2 h after the last run (cooldown)"),
        (
            Policy(quiet=9 * MINUTE, max_wait=MINUTE),
            some(),
            "has 100 new rows and waits no longer than 1 min (max_wait)",
        ),
        (Policy(), Facts(0, 0, None, None), "waits for new data"),
    ],
)
def test_the_sentence_says_what_it_waits_for(policy: Policy, facts: Facts, sentence: str) -> None:
    assert due_at(policy, facts).sentence == sentence


@given(POLICIES, facts_of_arrivals())
def test_it_is_never_due_before_the_first_arrival(policy: Policy, facts: Facts) -> None:
    at = due_at(policy, facts).at
    assert at is None or (facts.first_at is not None and at >= facts.first_at)


@given(POLICIES, facts_of_arrivals())
def test_max_wait_and_cooldown_bound_the_waiting(policy: Policy, facts: Facts) -> None:
    at = due_at(policy, facts).at
    if policy.max_wait is None:
        return
    assert at is not None
    assert facts.first_at is not None
    rested = facts.last_ended_at + policy.cooldown if facts.last_ended_at is not None else facts.first_at
    assert at <= max(facts.first_at + policy.max_wait, rested)


@given(POLICIES, facts_of_arrivals(), st.integers(0, 1000), SPANS)
def test_more_rows_never_make_it_later_and_later_arrivals_never_earlier(
    policy: Policy, facts: Facts, rows: int, span: timedelta
) -> None:
    assert facts.last_at is not None
    never = datetime.max.replace(tzinfo=START.tzinfo)
    at = due_at(policy, facts).at or never
    if facts.rows is not None:
        assert (due_at(policy, replace(facts, rows=facts.rows + rows)).at or never) <= at
        assert (due_at(policy, replace(facts, rows=None)).at or never) <= at
    assert (due_at(policy, replace(facts, last_at=facts.last_at + span)).at or never) >= at
    ended = (facts.last_ended_at or START) + span
    assert (due_at(policy, replace(facts, last_ended_at=ended)).at or never) >= at


@given(POLICIES, facts_of_arrivals(), st.integers(1, 9))
def test_a_busy_model_is_never_due(policy: Policy, facts: Facts, busy: int) -> None:
    assert due_at(policy, replace(facts, busy=busy)).at is None


def test_the_pause_before_a_retry_triples_up_to_its_limit() -> None:
    pauses = [retry_after(failures) for failures in range(1, 11)]
    assert pauses[:3] == [FIRST_RETRY, 3 * FIRST_RETRY, 9 * FIRST_RETRY]
    assert pauses == sorted(pauses)
    assert pauses[-1] == LONGEST_RETRY
