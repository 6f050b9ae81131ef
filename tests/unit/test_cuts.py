"""What a model trains on and is judged on: never the same row, and never a row that the champion has seen."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

from hypothesis import given
from hypothesis import strategies as st

from shared import cuts
from shared.cuts import Cut, Range
from shared.declaration import Use


@st.composite
def grown(draw: st.DrawFn) -> Cut:
    """A table with ids from 1, with the newest part as its holdout."""
    rows = draw(st.integers(1, 10_000))
    holdout = draw(st.integers(0, rows))
    return Cut(upto=rows, rows=rows, holdout_above=rows - holdout, holdout_rows=holdout, arrival=1)


OLD = Cut(upto=1000, rows=1000, holdout_above=900, holdout_rows=100)
NEW = Cut(upto=1500, rows=1500, holdout_above=1350, holdout_rows=150)


def test_a_model_trains_on_all_but_the_holdout() -> None:
    assert cuts.training(OLD, Use()) == Range(None, 900, 900)


def test_a_dataset_without_a_holdout_is_trained_on_whole() -> None:
    assert cuts.training(Cut(upto="2026-01-05", rows=7), Use()) == Range(None, "2026-01-05", 7)


def test_a_model_may_train_on_the_newest_part() -> None:
    assert cuts.training(OLD, Use(rows=50)) == Range(None, 900, 900, newest=50)


def test_history_counts_back_from_the_newest_row_in_the_columns_own_form() -> None:
    use = Use(history=timedelta(days=1))
    forms = {
        "2026-01-05T12:00:00": "2026-01-04T12:00:00",
        "2026-01-05 12:00:00": "2026-01-04 12:00:00",
        "2026-01-05T12:00:00Z": "2026-01-04T12:00:00Z",
        "2026-01-05 12:00:00.250000": "2026-01-04 12:00:00.250000",
        "2026-01-05T12:00:00+02:00": "2026-01-04T12:00:00+02:00",
    }
    for newest, since in forms.items():
        assert cuts.training(replace(OLD, newest_time=newest), use).since == since
    assert cuts.training(OLD, use).since is None


def test_history_of_a_column_of_dates_is_a_date() -> None:
    use = Use(history=timedelta(days=1))
    assert cuts.training(replace(OLD, newest_time="2026-01-05"), use).since == "2026-01-04"


@given(grown(), st.integers(0, 5000))
def test_champion_and_candidate_are_compared_on_rows_that_neither_was_trained_on(before: Cut, more: int) -> None:
    rows = (before.rows or 0) + more
    after = Cut(upto=rows, rows=rows, holdout_above=rows - rows // 10, holdout_rows=rows // 10)
    compared = cuts.comparison({"flights": after}, {"flights": before})["flights"]
    trained = [cuts.training(one, Use()) for one in (before, after)]
    assert isinstance(compared.above, int)
    assert all(isinstance(one.upto, int) and compared.above >= one.upto for one in trained)
    assert compared.rows == rows - compared.above


def test_the_first_version_is_judged_on_its_own_holdout() -> None:
    assert cuts.comparison({"flights": OLD}, None) == {"flights": Range(900, 1000, 100)}


def test_a_champion_that_was_trained_further_narrows_the_comparison() -> None:
    assert cuts.comparison({"flights": OLD}, {"flights": NEW})["flights"] == Range(1350, 1000, 0)


def test_a_champion_of_another_dataset_narrows_nothing() -> None:
    assert cuts.comparison({"flights": NEW}, {"weather": OLD}) == {"flights": Range(1350, 1500, 150)}


def test_a_cursor_that_changed_its_type_compares_nothing() -> None:
    timed = replace(OLD, upto="2026-01-02", holdout_above="2026-01-01")
    assert cuts.comparison({"flights": NEW}, {"flights": timed})["flights"] == Range(1350, 1500, 150)


def test_the_digest_is_of_the_rows_and_of_nothing_else() -> None:
    one = {"a": Range(1, 2, 10), "b": Range(None, "x")}
    same = {"b": Range(None, "x", 99), "a": Range(1, 2)}
    assert cuts.digest(one) == cuts.digest(same)
    assert cuts.digest(one) != cuts.digest({**one, "a": Range(1, 3)})


def test_the_scarcest_dataset_decides_how_many_rows_there_are() -> None:
    assert cuts.total_rows({"a": Range(1, 2, 10), "b": Range(1, 2, 3)}) == 3
    assert cuts.total_rows({"a": Range(1, 2, 10), "b": Range(1, 2)}) is None
    assert cuts.total_rows({}) is None


@given(grown())
def test_what_is_stored_is_read_back(cut: Cut) -> None:
    assert Cut.from_json(cut.to_json()) == cut
    ranges = cuts.comparison({"flights": cut}, None)
    assert cuts.from_json(cuts.to_json(ranges)) == ranges
