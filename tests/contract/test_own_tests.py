"""A model's own tests before its training: real pytest and unittest in real children."""

from __future__ import annotations

import shlex
import sys
import threading
from datetime import timedelta
from pathlib import Path

import pytest

from services.trainer import child, own_tests
from services.trainer.checkout import Prepared
from services.trainer.failures import AttemptFailed
from services.trainer.heart import Heart
from services.trainer.users import Users
from shared.catalog import Limits
from shared.logs import DiskLogs
from tests.children import within

MODEL = "def add(a, b):\n    return a + b\n"
TESTS = """
import os, pathlib
from delays import add

def test_adds():
    assert add(1, 2) == 3
    pathlib.Path("left behind").touch()

def test_is_told_what_the_training_is_told():
    assert os.environ["HEADRACE_RUN_ID"] == "1"
    assert "HEADRACE_TOKEN" not in os.environ
"""
UNITTESTS = """
import unittest
from delays import add

class Sums(unittest.TestCase):
    def test_adds(self):
        self.assertEqual(add(1, 2), 3)
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A checkout with a model under `src` and its tests beside it."""
    for name, text in {"src/delays.py": MODEL, "tests/test_delays.py": TESTS, "unit/test_sums.py": UNITTESTS}.items():
        path = tmp_path / "checkout" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def run(place: Path, command: str, time_limit_s: float = 60.0) -> str:
    """The log of what the command said."""
    scratch, prepared = place / "scratch", Prepared(place / "checkout", Path(sys.executable), "")
    scratch.mkdir()
    env = child.environment((), 1, prepared, scratch)
    work = child.Work({}, scratch, "runs/1/1", timedelta(seconds=time_limit_s), env, Limits())
    logs = DiskLogs(place / "logs")
    with Heart(lambda _: None, 60.0, threading.Event()) as heart:
        try:
            within(
                lambda: own_tests.run(shlex.split(command), work, prepared, Users(None, place / "users"), logs, heart)
            )
        finally:
            said = logs.read("runs/1/1", 0, 100_000)[0].decode()
    return said


@pytest.mark.parametrize("command", ["pytest -q tests", "python -m unittest discover -q unit"])
def test_tests_that_pass_leave_the_training_to_begin_and_the_checkout_as_it_was(place: Path, command: str) -> None:
    before = sorted(path for path in (place / "checkout").rglob("*"))
    said = run(place, command)
    assert "2 passed" in said or "OK" in said
    assert sorted(path for path in (place / "checkout").rglob("*")) == before


@pytest.mark.parametrize(
    ("command", "named"),
    [
        ("pytest -q tests unit", "FAILED tests/test_delays.py::test_adds - assert -1 == 3"),
        ("python -m unittest discover unit", "FAIL: test_adds (test_sums.Sums"),
    ],
)
def test_a_test_that_fails_is_named_and_is_the_authors_to_mend(place: Path, command: str, named: str) -> None:
    (place / "checkout/src/delays.py").write_text(MODEL.replace("+", "-"))
    with pytest.raises(AttemptFailed) as failed:
        run(place, command)
    failure = failed.value.failure
    assert failure.kind == "test_failed"
    assert failure.message.splitlines()[0].startswith(named)
    assert "tag a new release" in failure.advice
    assert not failure.transient


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("no-such-runner -q", "there is no no-such-runner in the environment"),
        ("python -c 'print(\"half way\"); raise SystemExit(3)'", "ended with exit code 3\nhalf way"),
    ],
)
def test_what_is_no_test_run_is_said_as_it_ended(place: Path, command: str, says: str) -> None:
    with pytest.raises(AttemptFailed) as failed:
        run(place, command)
    assert (failed.value.failure.kind, says in failed.value.failure.message) == ("test_failed", True)


def test_tests_that_hang_are_stopped_at_the_models_own_limit(place: Path) -> None:
    with pytest.raises(AttemptFailed) as failed:
        run(place, "python -c 'while True: pass'", time_limit_s=0.3)
    assert failed.value.failure.kind == "time_limit"
