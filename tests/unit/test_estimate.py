"""How long a run will still train: by its own progress, else by the last runs."""

from __future__ import annotations

import pytest

from shared.estimate import left_s


@pytest.mark.parametrize(
    ("elapsed_s", "progress", "past_s", "wanted"),
    [
        (60, 0.25, [], 180),
        (60, 0.25, [10, 10], 180),
        (60, 1.0, [], 0),
        (60, 0.04, [100, 80, 300], 40),
        (60, None, [100, 80, 300], 40),
        (120, None, [100], 0),
        (60, None, [], None),
        (60, 0.0, [], None),
    ],
)
def test_what_is_left(elapsed_s: float, progress: float | None, past_s: list[float], wanted: float | None) -> None:
    found = left_s(elapsed_s, progress, past_s)
    assert found == (pytest.approx(wanted) if wanted is not None else None)
