"""Reports of many threads at once: they share commits, and each gets its own answer, whatever becomes of whoever writes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as StillWaiting
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from shared import points
from shared.arrivals import Report
from shared.errors import Permanent, Unavailable
from shared.ledger import Ledger, Transaction, arrivals, intake
from shared.ledger.arrivals import Receipt
from shared.ledger.intake import Intake
from shared.ledger.reports import Sent
from shared.points import Side
from tests.apis import Api, serve
from tests.ledgers import CONFIG, adopt, put_config

WAIT_S = 20.0


@dataclass
class Gate:
    """The first commit of reports waits here until it is let go; `fail` is called before each of the later ones."""

    reached: threading.Event = field(default_factory=threading.Event)
    go: threading.Event = field(default_factory=threading.Event)
    fail: Callable[[], None] = lambda: None
    commits: int = 0

    def strike(self, names: tuple[str, ...], side: Side) -> None:
        if "commit arrivals.receive" not in names:
            return
        if side == "after":
            self.commits += 1
        elif not self.reached.is_set():
            self.reached.set()
            assert self.go.wait(WAIT_S)
        else:
            self.fail()


@pytest.fixture
def gate() -> Iterator[Gate]:
    made = Gate()
    points.arm(made.strike)
    yield made
    made.go.set()
    points.arm(None)


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(20) as made:
        yield made


@pytest.fixture
def file(ledger_file: Path) -> Iterator[Ledger]:
    opened = Ledger(f"sqlite:///{ledger_file}")
    put_config(opened, CONFIG)
    yield opened
    opened.close()


def until_waiting(taking: Intake, count: int) -> None:
    deadline = time.monotonic() + WAIT_S
    while len(taking._waiting) < count:
        assert time.monotonic() < deadline, "they never came"
        time.sleep(0.001)


def send(pool: ThreadPoolExecutor, taking: Intake, gate: Gate, count: int) -> list[Future[Receipt]]:
    """One is about to be committed, and the others wait for their turn."""
    first = pool.submit(taking.take, sent(0))
    assert gate.reached.wait(WAIT_S)
    others = [pool.submit(taking.take, sent(number)) for number in range(1, count)]
    until_waiting(taking, count - 1)
    return [first, *others]


def sent(number: int) -> Sent:
    return Sent(Report(dataset="reported", source="/loader", event_id=str(number), rows=1))


def stored(ledger: Ledger) -> set[str]:
    with ledger.read() as tx:
        return {row.event_id for row in arrivals.find_all(tx, dataset=None, before=None, limit=99)}


def post(api: Api, pool: ThreadPoolExecutor, *bodies: dict[str, Any]) -> list[Future[Any]]:
    return [pool.submit(api.post, "/v1/events", {"dataset": "reported"} | body) for body in bodies]


def test_requests_that_come_at_once_share_a_commit_and_each_gets_its_own_answer(
    ledger_file: Path, tmp_path: Path, gate: Gate, pool: ThreadPoolExecutor
) -> None:
    with serve(tmp_path, database=ledger_file) as api:
        adopt(api.ledger, dataset="reported")
        (first,) = post(api, pool, {"id": "0", "rows": 7})
        assert gate.reached.wait(WAIT_S)
        good = post(api, pool, *({"id": str(number), "rows": 7} for number in range(1, 11)))
        again = post(api, pool, {"id": "0", "rows": 7})
        bad = post(api, pool, {"dataset": "unknown", "id": "98"}, {"dataset": "flights", "id": "0"})
        until_waiting(api.stores.intake, 13)
        with pytest.raises(StillWaiting):
            first.result(timeout=0.05)
        assert not any(one.done() for one in (first, *good, *again, *bad)), "answered before the commit"
        assert stored(api.ledger) == set()
        gate.go.set()
        told = [one.result(WAIT_S) for one in (first, *good, *again)]
        assert {one.status_code for one in told} == {202}
        answers = [one.json() for one in told]
        assert [one["repeated"] for one in answers] == [False] * 11 + [True]
        assert sorted(one["arrival"] for one in answers) == [1, *range(1, 12)]
        assert {tuple(one["runs"]) for one in answers} == {(1,)}
        assert [one.result(WAIT_S).status_code for one in bad] == [404, 409]
        assert gate.commits == 2
        assert stored(api.ledger) == {str(number) for number in range(11)}


def test_a_commit_that_fails_is_answered_to_all_in_it_and_to_no_others(
    ledger_file: Path, tmp_path: Path, gate: Gate, pool: ThreadPoolExecutor
) -> None:
    def away() -> None:
        raise Unavailable("the ledger is away")

    gate.fail = away
    with serve(tmp_path, database=ledger_file) as api:
        (first,) = post(api, pool, {"id": "0"})
        assert gate.reached.wait(WAIT_S)
        others = post(api, pool, *({"id": str(number)} for number in range(1, 6)))
        until_waiting(api.stores.intake, 5)
        gate.go.set()
        assert first.result(WAIT_S).status_code == 202
        answers = [one.result(WAIT_S) for one in others]
        assert {(one.status_code, one.json()["detail"]) for one in answers} == {(503, "the ledger is away")}
        assert (stored(api.ledger), gate.commits) == ({"0"}, 1)
        gate.fail = lambda: None
        assert [one.result(WAIT_S).json()["repeated"] for one in post(api, pool, {"id": "0"}, {"id": "1"})] == [
            True,
            False,
        ]


def test_a_defect_that_one_meets_costs_the_others_nothing(
    file: Ledger, gate: Gate, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    receive_all = arrivals.receive_all

    def broken(tx: Transaction, told: Sequence[Sent]) -> list[Receipt | Permanent]:
        answers = receive_all(tx, told)
        if any(one.report.event_id == "3" for one in told):
            raise ZeroDivisionError
        return answers

    monkeypatch.setattr(arrivals, "receive_all", broken)
    told = send(pool, Intake(file), gate, 6)
    gate.go.set()
    assert [type(one.exception(WAIT_S)) for one in told] == [type(None)] * 3 + [ZeroDivisionError] + [type(None)] * 2
    assert stored(file) == {"0", "1", "2", "4", "5"}


def test_when_whoever_writes_ends_in_the_middle_nobody_waits_for_ever(
    file: Ledger, gate: Gate, pool: ThreadPoolExecutor
) -> None:
    taking = Intake(file)
    told = send(pool, taking, gate, 6)

    def end() -> None:
        gate.fail = lambda: None
        raise SystemExit

    gate.fail = end
    gate.go.set()
    ends = [one.exception(WAIT_S) for one in told]
    assert ends[0] is None
    assert sorted(type(one).__name__ for one in ends[1:]) == ["SystemExit", *["Unavailable"] * 4]
    assert stored(file) == {"0"}
    assert not taking.take(sent(1)).repeated


def test_more_than_fit_into_a_commit_take_the_next_in_their_order(
    file: Ledger, gate: Gate, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intake, "MOST", 2)
    taking = Intake(file)
    told = send(pool, taking, gate, 6)
    gate.go.set()
    assert sorted(one.result(WAIT_S).arrival or 0 for one in told) == [1, 2, 3, 4, 5, 6]
    assert gate.commits == 4


def test_one_that_comes_alone_is_written_at_once(file: Ledger) -> None:
    taking = Intake(file)
    assert [taking.take(sent(number)).repeated for number in (1, 1, 2)] == [False, True, False]
    assert stored(file) == {"1", "2"}
