"""Following the operator's file."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from shared.errors import ConfigurationError, Unavailable
from stack.follow import Follower


class Watched:
    """A followed file whose every change is looked at, as if a second had passed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.path.write_text("one")
        self.applied: list[str] = []
        self.told: list[str] = []
        self.error: Exception | None = None
        self.now = 0.0
        self.follower = Follower(path, self._apply, self.told.append, clock=lambda: self.now)

    def _apply(self) -> None:
        if self.error:
            raise self.error
        self.applied.append(self.path.read_text())

    def look(self) -> None:
        self.now += 1.0
        self.follower.look()


@pytest.fixture
def watched(tmp_path: Path) -> Watched:
    return Watched(tmp_path / "headrace.toml")


def test_what_has_not_changed_is_not_applied_again(watched: Watched) -> None:
    watched.look()
    os.utime(watched.path)
    watched.look()
    assert watched.applied == []


def test_a_change_is_applied_once(watched: Watched) -> None:
    watched.path.write_text("two")
    watched.look()
    watched.look()
    assert watched.applied == ["two"]


def test_a_file_put_in_its_place_with_the_same_length_and_time_is_a_change(watched: Watched) -> None:
    before = watched.path.stat()
    other = watched.path.with_name("other")
    other.write_text("eno")
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.replace(watched.path)
    watched.look()
    assert watched.applied == ["eno"]


def test_a_wrong_file_is_told_once_and_the_next_change_is_taken(watched: Watched) -> None:
    watched.error = ConfigurationError("no such key", file="headrace.toml", line=3)
    watched.path.write_text("wrong")
    watched.look()
    watched.look()
    assert len(watched.told) == 1
    assert watched.told[0].startswith("headrace.toml:3: no such key")
    assert "stays in force" in watched.told[0]
    watched.error = None
    watched.path.write_text("right")
    watched.look()
    assert watched.applied == ["right"]


def test_a_ledger_that_is_away_is_asked_again(watched: Watched) -> None:
    watched.error = Unavailable("the ledger did not answer")
    watched.path.write_text("two")
    watched.look()
    watched.error = None
    watched.look()
    assert watched.applied == ["two"]


def test_a_file_that_vanishes_is_told_once_and_taken_when_it_is_back(watched: Watched) -> None:
    watched.path.unlink()
    watched.look()
    watched.look()
    assert len(watched.told) == 1
    watched.path.write_text("two")
    watched.look()
    assert watched.applied == ["two"]


def test_it_looks_once_a_second(watched: Watched) -> None:
    watched.path.write_text("two")
    watched.follower.look()
    assert watched.applied == []
    watched.look()
    assert watched.applied == ["two"]
