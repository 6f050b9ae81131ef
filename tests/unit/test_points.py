"""Where a process may be killed by a test: declared by the code, reached in order, and not to be armed from outside."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import timeit
from collections.abc import Iterator
from pathlib import Path

import pytest

from shared import points
from shared.points import POINTS, Side, point
from shared.settings import Settings
from tests import ledgers

LIST = "import shared.points as p, services.trainer.app, services.registry_bridge.app, services.ingest_watcher.app, stack.api; print(p._strike, *p.POINTS, sep='\\n')"


@pytest.fixture
def reached() -> Iterator[list[tuple[tuple[str, ...], Side]]]:
    seen: list[tuple[tuple[str, ...], Side]] = []
    points.arm(lambda names, side: seen.append((names, side)))
    yield seen
    points.arm(None)


@pytest.fixture
def mine() -> Iterator[points.Point]:
    yield point("test point", __name__)
    del POINTS["test point"]


def test_both_sides_of_a_call_are_reached_and_only_the_first_of_one_that_fails(
    reached: list[object], mine: points.Point
) -> None:
    with mine:
        reached.append("the call")
    with pytest.raises(OSError, match="away"), mine:
        raise OSError("away")
    name = ("test point",)
    assert reached == [(name, "before"), "the call", (name, "after"), (name, "before")]


def test_a_name_is_declared_once(mine: points.Point) -> None:
    with pytest.raises(ValueError, match=f"is a point of {__name__} already; give that of elsewhere another name"):
        point("test point", "elsewhere")


def test_a_commit_is_named_by_the_steps_that_were_taken_in_it(reached: list[tuple[tuple[str, ...], Side]]) -> None:
    ledger, _ = ledgers.in_memory()
    ledgers.adopt(ledger)
    ledgers.grow(ledger)
    reached.clear()
    assert ledgers.claim(ledger, ledgers.waiting(ledger)) is not None
    assert [side for names, side in reached if "commit attempts.claim" in names] == ["before", "after"]


def test_a_commit_that_fails_is_never_said_to_have_been_made(reached: list[tuple[tuple[str, ...], Side]]) -> None:
    ledger, _ = ledgers.in_memory()
    reached.clear()
    with pytest.raises(RuntimeError, match="half-way"), ledger.write():
        raise RuntimeError("half-way")
    assert reached == []


def test_nothing_outside_the_process_arms_it(tmp_path: Path) -> None:
    """Whatever a variable or a settings file says: each process that comes up has no function at its points."""
    names = {name: "1" for name in ("HEADRACE_POINTS", "HEADRACE_ARM", "HEADRACE_STRIKE", "HEADRACE_CRASH")}
    done = subprocess.run(
        [sys.executable, "-c", LIST], env={**os.environ, **names}, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[0] == "None"
    assert len(done.stdout.splitlines()) > 30
    settings = tmp_path / "settings.json"
    settings.write_text(json.dumps({"points": "commit attempts.claim"}))
    assert not {"points", "arm", "strike", "crash"} & set(Settings.model_fields)


def test_a_point_costs_less_than_a_microsecond(mine: points.Point) -> None:
    def reach() -> None:
        with mine:
            pass

    assert min(timeit.repeat(reach, number=10_000, repeat=5)) / 10_000 < 1e-6
