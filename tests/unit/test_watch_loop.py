"""A loop goes on after an error, ends when it is told to, and is missed when it dies."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from services.ingest_watcher.loop import Loop, Wake


class Steps:
    """Does what `act` does at each step, and counts."""

    def __init__(self, act: Callable[[int], None]) -> None:
        self.act = act
        self.count = 0
        self.closed = threading.Event()

    def step(self) -> None:
        self.count += 1
        self.act(self.count)

    def close(self) -> None:
        self.closed.set()


def test_an_error_does_not_end_the_loop() -> None:
    again = threading.Event()

    def act(count: int) -> None:
        if count == 1:
            raise ValueError("the first step fails")
        again.set()
        wake.wait(10)

    wake = Wake()
    loop = Loop("loop", Steps(act), wake)
    assert again.wait(10)
    loop.stop()
    assert loop.join(10)
    assert not loop.died


def test_a_stopped_loop_gives_back_what_it_holds_at_once() -> None:
    wake = Wake()
    steps = Steps(lambda _count: wake.wait(60))
    loop = Loop("loop", steps, wake)
    loop.stop()
    assert loop.join(10)
    assert steps.closed.is_set()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_loop_that_ends_by_itself_is_dead() -> None:
    def act(_count: int) -> None:
        raise GeneratorExit

    loop = Loop("loop", steps := Steps(act), Wake())
    assert loop.join(10)
    assert loop.died
    assert steps.closed.is_set()


def test_a_call_made_before_the_wait_is_heard() -> None:
    wake = Wake()
    wake.call()
    wake.wait(3600)


def test_a_wait_after_the_end_returns() -> None:
    wake = Wake()
    wake.stop()
    wake.wait(3600)
    wake.wait(3600)
