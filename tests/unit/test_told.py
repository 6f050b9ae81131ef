"""What a training tells while it goes on: bounded, checked, and soon in the ledger."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import pytest

from services.trainer.events import Events
from services.trainer.heart import Heart
from services.trainer.told import MOST_POINTS, MOST_SERIES, Metrics, Told

PATIENCE_S = 20.0


def test_a_long_series_is_thinned_out_and_keeps_its_first_and_its_newest_value() -> None:
    metrics = Metrics()
    for step in range(12_345):
        metrics.add("loss", step, 1.0 / (step + 1))
        assert len(metrics.shown()["loss"]) <= MOST_POINTS + 1
    shown = metrics.shown()["loss"]
    assert (shown[0], shown[-1]) == ([0, 1.0], [12_344, 1.0 / 12_345])
    assert len(shown) > MOST_POINTS // 2
    assert [step for step, _ in shown] == sorted({step for step, _ in shown})


def test_so_many_series_are_shown_and_no_more() -> None:
    metrics = Metrics()
    for n in range(MOST_SERIES + 5):
        metrics.add(f"m{n}", 0, 1.0)
    metrics.add("m0", 1, 2.0)
    assert len(metrics.shown()) == MOST_SERIES
    assert metrics.shown()["m0"] == [[0, 1.0], [1, 2.0]]


def test_values_without_a_step_are_counted() -> None:
    metrics = Metrics()
    for value in (0.5, 0.25):
        metrics.add("loss", None, value)
    assert metrics.shown() == {"loss": [[0, 0.5], [1, 0.25]]}


WRONG = [
    {"key": "", "step": 1, "value": 1.0},
    {"key": "x" * 251, "step": 1, "value": 1.0},
    {"key": "a\0", "step": 1, "value": 1.0},
    {"key": 7, "step": 1, "value": 1.0},
    {"key": "a", "step": 1.5, "value": 1.0},
    {"key": "a", "step": 10**30, "value": 1.0},
    {"key": "a", "step": 1, "value": float("nan")},
    {"key": "a", "step": 1, "value": 10**400},
    {"key": "a", "step": 1, "value": "1"},
    {"key": "a", "step": 1},
]


@pytest.mark.parametrize("wrong", WRONG, ids=str)
def test_a_line_that_is_no_event_of_ours_costs_that_line_only(tmp_path: Path, wrong: dict[str, object]) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text(
        "\n".join(
            [
                json.dumps({"event": "metric", **wrong}),
                "nonsense",
                '{"event": "metric", "key": "loss", "step": 3, "value": 0.5}',
                '{"event": "progress", "fraction": 7, "note": "epoch 3"}',
                '{"event": "progress", "frac',
            ]
        )
    )
    events = Events(path)
    assert events.read() == Told(1.0, "epoch 3", {"loss": [[3, 0.5]]})
    assert events.read() is None, "nothing new"


def test_news_is_told_within_a_second_and_the_last_of_it_at_the_end() -> None:
    beaten: list[Told] = []
    heard = threading.Event()

    def beat(told: Told) -> None:
        beaten.append(told)
        heard.set()

    first, last = Told(0.1, "first"), Told(1.0, "last")
    began = time.monotonic()
    with Heart(beat, 60.0, threading.Event()) as heart:
        heart.told = first
        assert heard.wait(PATIENCE_S)
        heart.told = last
    assert time.monotonic() - began < 5
    assert beaten == [first, last]
