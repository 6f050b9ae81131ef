"""How much of the data a sample is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared import cuts, sampling
from shared.cuts import Cut, Range
from shared.declaration import Use


@pytest.mark.parametrize(("text", "found"), [("1%", "1%"), ("0.50%", "0.5%"), ("50%", "50%"), ("20000", "20000")])
def test_a_sample_is_a_share_or_a_number_in_its_shortest_spelling(text: str, found: str) -> None:
    assert sampling.check(text) == found


@pytest.mark.parametrize("text", ["0%", "51%", "100%", "0", "-1", "1 %", "1.5", "1e3", "", "all", "%", "1%\n", "٣%"])
def test_anything_else_is_none(text: str) -> None:
    with pytest.raises(ValueError, match=r"a sample is|a share is"):
        sampling.check(text)


@pytest.mark.parametrize(
    ("sample", "of", "rows"),
    [
        ("1%", 27_004, 271),
        ("1%", 3, 1),
        ("1%", 0, 1),
        ("1%", None, sampling.OF_UNKNOWN),
        ("20000", 27_004, 20_000),
        ("20000", 500, 500),
        ("20000", None, 20_000),
    ],
)
def test_so_many_rows_are_a_sample(sample: str, of: int | None, rows: int) -> None:
    assert sampling.rows(sample, of) == rows


@given(st.integers(1, 500).map(lambda tenths: f"{tenths / 10}%"), st.integers(1, 10**9))
def test_a_share_is_never_more_than_it_says_by_a_whole_row(sample: str, of: int) -> None:
    assert 1 <= sampling.rows(sample, of) < of * float(sample[:-1]) / 100 + 1


def test_a_sample_says_what_it_is() -> None:
    assert sampling.describe("1%") == "a sample of 1% of the rows"
    assert sampling.describe("20000") == "a sample of 20,000 rows"


def test_a_narrowed_cut_gives_its_newest_rows_to_a_training_and_never_more_than_the_model_takes() -> None:
    whole = Cut(upto=1000, rows=1000, holdout_above=900, holdout_rows=100)
    narrow = Cut(upto=1000, rows=1000, holdout_above=900, holdout_rows=100, newest=9)
    assert cuts.training(narrow, Use()) == Range(None, 900, 9, newest=9)
    assert cuts.training(narrow, Use(rows=5)).newest == 5
    assert cuts.training(Cut(upto=1000, rows=1000, above=800), Use()) == Range(800, 1000, None)
    assert cuts.comparison({"flights": narrow}, None) == cuts.comparison({"flights": whole}, None)


def test_a_cut_that_is_not_narrowed_reads_as_it_did_before_there_were_samples() -> None:
    whole = Cut(upto=9, rows=9)
    assert set(whole.to_json()) == {"upto", "rows", "holdout_above", "holdout_rows", "newest_time", "arrival"}
    narrow = Cut(upto=9, rows=9, newest=2, above=7)
    assert Cut.from_json(narrow.to_json()) == narrow
