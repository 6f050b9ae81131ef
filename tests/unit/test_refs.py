"""What a repository offers, for several models at once."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import pytest

from services.ingest_watcher.sources.refs import Refs
from shared.errors import NotFound, Transient

LONG_AGO = -1.0


class Server:
    """Counts who asks; `held` keeps an answer back."""

    def __init__(self, error: Exception | None = None) -> None:
        self.asked, self.error = 0, error
        self.begun, self.held = threading.Event(), threading.Event()
        self.held.set()

    def __call__(self) -> Mapping[str, str]:
        self.asked += 1
        self.begun.set()
        assert self.held.wait(10)
        if self.error is not None:
            raise self.error
        return {"refs/tags/v1": f"{self.asked:040x}"}


def test_who_comes_while_one_asks_shares_its_answer() -> None:
    refs, server = Refs(), Server()
    server.held.clear()
    with ThreadPoolExecutor(8) as models:
        came = [models.submit(refs.look, "churn", server, LONG_AGO) for _ in range(8)]
        assert server.begun.wait(10)
        server.held.set()
        assert len({id(answer.result(10)) for answer in came}) == 1
    assert server.asked == 1


def test_an_answer_that_is_too_old_is_asked_for_again_and_another_repositorys_is_none() -> None:
    refs, server = Refs(), Server()
    first = refs.look("churn", server, LONG_AGO)
    assert refs.look("churn", server, first.asked_at - 0.1) is first
    second = refs.look("churn", server, first.asked_at)
    assert (second.read() != first.read(), server.asked) == (True, 2)
    refs.look("heat", server, LONG_AGO)
    assert server.asked == 3
    assert time.monotonic() >= second.came_at >= second.asked_at >= first.came_at


def test_a_failure_is_shared_and_the_next_look_asks_again() -> None:
    refs, server = Refs(), Server(NotFound("no such repository"))
    first = refs.look("churn", server, LONG_AGO)
    for _ in range(2):
        with pytest.raises(NotFound, match="no such repository"):
            refs.look("churn", server, LONG_AGO).read()
    assert server.asked == 1
    server.error = None
    assert refs.look("churn", server, first.asked_at).read()


def test_a_defect_is_nobodys_answer() -> None:
    refs, server = Refs(), Server(ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        refs.look("churn", server, LONG_AGO)
    server.error = Transient("away")
    with pytest.raises(Transient, match="away"):
        refs.look("churn", server, LONG_AGO).read()
