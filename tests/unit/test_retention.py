"""What may be taken away: the rules as a table, and what no configuration can make them take."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.catalog import Keep
from shared.lifecycle import VersionState
from shared.retention import REPORTS_AT_LEAST, Kept, Place, Run, Version, fit, reports_before, sort_out, takes_log
from shared.values import Bytes

NOW = datetime(2026, 11, 24, tzinfo=UTC)
DAY = timedelta(days=1)
KEEP = Keep(runs=180 * DAY, rejected=1)
HARSH = Keep(runs=timedelta(seconds=1), rejected=0, logs=timedelta(seconds=1), environments=Bytes(1))
OLD = NOW - 400 * DAY
REJECTED = Version(1, VersionState.REJECTED)


def choose(run: Run, keep: Keep = KEEP) -> tuple[Kept | None, Kept | None]:
    """The choice for a run behind a newer one that was rejected too."""
    newer = Run(1000, NOW, replace(REJECTED, number=1000))
    _, choice = sort_out([newer, run], keep, NOW)
    return choice.files, choice.bundle


@pytest.mark.parametrize(
    ("run", "files", "bundle"),
    [
        (Run(1, OLD, REJECTED), None, None),
        (Run(1, NOW - 179 * DAY, REJECTED), None, Kept.YOUNG),
        (Run(1, OLD, None), Kept.UNREGISTERED, Kept.UNREGISTERED),
        (Run(1, OLD, Version(1, VersionState.PROMOTED)), Kept.PROMOTED, Kept.PROMOTED),
        (Run(1, OLD, replace(REJECTED, promoted=True)), Kept.PROMOTED, Kept.PROMOTED),
        (Run(1, OLD, replace(REJECTED, pinned=True)), Kept.PINNED, Kept.PINNED),
        (Run(1, OLD, Version(1, VersionState.CANDIDATE)), Kept.UNJUDGED, Kept.UNJUDGED),
        (Run(1, OLD, Version(1, VersionState.AWAITING)), Kept.AWAITING, Kept.AWAITING),
        (Run(1, OLD, replace(REJECTED, state=VersionState.SAMPLE)), Kept.NEWEST_SAMPLE, Kept.NEWEST_SAMPLE),
        (Run(1, OLD, REJECTED, scored=True), Kept.SCORED, Kept.SCORED),
        (Run(1, OLD, replace(REJECTED, tidied=True)), None, None),
    ],
)
def test_a_run_is_taken_when_no_rule_speaks_for_it(run: Run, files: Kept | None, bundle: Kept | None) -> None:
    assert choose(run) == (files, bundle)


def test_the_newest_rejected_versions_keep_their_files_and_the_newest_run_its_bundle() -> None:
    runs = [Run(number, OLD, replace(REJECTED, number=number)) for number in (5, 4, 3, 2, 1)]
    choices = list(sort_out(runs, Keep(runs=DAY, rejected=2), NOW))
    assert [choice.takes_files for choice in choices] == [False, False, True, True, True]
    harsh = list(sort_out(runs, HARSH, NOW))
    assert [choice.takes_files for choice in harsh] == [True] * 5
    assert [choice.takes_bundle for choice in harsh] == [False, True, True, True, True]
    assert harsh[0].bundle is Kept.NEWEST_RUN


def test_a_pinned_version_takes_no_place_of_a_rejected_one() -> None:
    runs = [Run(3, OLD, replace(REJECTED, pinned=True)), Run(2, OLD, REJECTED), Run(1, OLD, REJECTED)]
    assert [choice.takes_files for choice in sort_out(runs, KEEP, NOW)] == [False, False, True]


versions = st.none() | st.builds(
    Version, st.integers(1, 99), st.sampled_from(VersionState), st.booleans(), st.booleans(), st.booleans()
)
runs = st.builds(
    Run,
    st.integers(1, 99),
    st.integers(0, 400).map(lambda days: NOW - days * DAY),
    versions,
    st.booleans(),
    st.booleans(),
)
keeps = st.builds(
    Keep,
    runs=st.integers(1, 10**7).map(lambda s: timedelta(seconds=s)),
    rejected=st.integers(0, 5),
    logs=st.just(DAY),
)


@given(st.lists(runs, max_size=12), keeps)
def test_whatever_the_operator_says_what_serves_or_waits_or_is_relied_on_stays(found: list[Run], keep: Keep) -> None:
    choices = list(sort_out(found, keep, NOW))
    assert [choice.run for choice in choices] == found
    for index, choice in enumerate(choices):
        version = choice.run.version
        if choice.takes_files or choice.takes_bundle:
            assert version is not None
            assert version.state in (VersionState.REJECTED, VersionState.SAMPLE)
            assert not version.promoted
            assert not version.pinned
            assert not choice.run.scored
        if choice.takes_bundle:
            assert index > 0
            assert choice.run.finished_at <= NOW - keep.runs
            assert version is not None
            assert version.tidied or choice.takes_files, "a version with files has a run with a bundle"
    standing = [one for one in choices if one.run.version and not one.run.version.tidied and one.files is not None]
    taken = [one for one in choices if one.takes_files]
    assert not taken or sum(one.files is Kept.NEWEST_REJECTED for one in standing) == keep.rejected


@pytest.mark.parametrize(
    ("ended", "written", "taken"),
    [
        (None, OLD, False),
        (OLD, OLD, True),
        (OLD, NOW - 29 * DAY, False),
        (NOW - 29 * DAY, OLD, False),
        (NOW - 30 * DAY, NOW - 30 * DAY, True),
    ],
)
def test_a_log_goes_when_run_and_last_line_are_old(ended: datetime | None, written: datetime, taken: bool) -> None:
    assert takes_log(ended, written, Keep(), NOW) is taken


def test_a_report_is_known_again_for_a_month_at_least() -> None:
    assert reports_before(HARSH, NOW) == NOW - REPORTS_AT_LEAST
    assert reports_before(Keep(), NOW) == NOW - 180 * DAY


def test_the_longest_unused_goes_first_and_what_is_in_use_is_passed_over() -> None:
    places = [Place("b", 10, 2.0), Place("a", 10, 1.0), Place("c", 10, 3.0), Place("d", 10, 4.0)]
    asked: list[str] = []

    def take(place: Place) -> bool:
        asked.append(place.name)
        return place.name != "a"

    fit(places, 25, take)
    assert asked == ["a", "b", "c"]
    fit(places, 40, take)
    assert asked == ["a", "b", "c"]
