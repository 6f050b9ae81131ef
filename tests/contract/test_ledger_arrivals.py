"""What came in is stored once, with its cursor and the runs that it makes due."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import select

from shared.arrivals import Report
from shared.cuts import Cut
from shared.declaration import Use
from shared.errors import Conflict, Fenced, NotFound, Permanent, Refused
from shared.ledger import Ledger, arrivals, datasets, deliveries, planning, runs
from shared.ledger.arrivals import Receipt
from shared.ledger.reports import Sent
from shared.ledger.tables import report as report_rows
from tests.ledgers import (
    CONFIG,
    LEASE,
    HandClock,
    adopt,
    claim,
    declare,
    empty,
    finish,
    grow,
    put_config,
    train,
    waiting,
)


def report(ledger: Ledger, dataset: str = "reported", **more: object) -> Receipt:
    with ledger.write() as tx:
        return arrivals.receive(tx, Report(dataset=dataset, source="/loader", **more))  # type: ignore[arg-type]


def cut(ledger: Ledger, dataset: str = "reported") -> Cut:
    with ledger.read() as tx:
        return datasets.known(tx, [dataset])[dataset]


def test_the_same_report_twice_is_one_arrival(ledger: Ledger) -> None:
    adopt(ledger, dataset="reported")
    first = report(ledger, rows=500, event_id="1")
    assert (first.repeated, first.runs) == (False, (waiting(ledger),))
    again = report(ledger, rows=500, event_id="1")
    assert (again.repeated, again.arrival, again.runs) == (True, first.arrival, ())
    with ledger.read() as tx:
        assert [row.id for row in arrivals.find_all(tx, dataset="reported", before=None, limit=9)] == [first.arrival]
        assert [notice.type for notice in deliveries.read(tx, 0, 9)] == ["arrival.observed"]
    assert cut(ledger).rows == 500


@pytest.mark.parametrize("kind", ["rest", "stream"])
@pytest.mark.parametrize("way", ["rest", "stream"])
def test_a_dataset_without_a_source_of_its_own_takes_the_range_by_either_way(
    ledger: Ledger, kind: str, way: str
) -> None:
    put_config(ledger, f'[datasets.reported]\nsource = {{ kind = "{kind}" }}\n')
    with ledger.write() as tx:
        told = arrivals.receive(tx, Report(dataset="reported", source="/loader", event_id="1", to_point=9), way)
    assert (told.nudged, cut(ledger).upto) == (False, 9)
    assert report(ledger, event_id="1", to_point=9).repeated
    with ledger.read() as tx:
        assert [row.origin for row in arrivals.find_all(tx, dataset=None, before=None, limit=9)] == [way]


def test_a_report_without_an_id_is_new_each_time(ledger: Ledger) -> None:
    assert report(ledger).arrival != report(ledger).arrival


def test_the_same_id_from_another_source_is_another_report(ledger: Ledger) -> None:
    first = report(ledger, event_id="1")
    with ledger.write() as tx:
        other = arrivals.receive(tx, Report(dataset="reported", source="/other", event_id="1"))
    assert (other.repeated, other.arrival) == (False, (first.arrival or 0) + 1)


def test_an_id_that_another_dataset_used_is_a_conflict(ledger: Ledger) -> None:
    report(ledger, event_id="1")
    with pytest.raises(Conflict, match="was used for dataset reported"):
        report(ledger, dataset="flights", event_id="1")


def test_a_report_of_an_unknown_dataset_is_refused_and_stores_nothing(ledger: Ledger) -> None:
    with pytest.raises(NotFound, match="known are: flights, reported"):
        report(ledger, dataset="unknown", event_id="1")
    with ledger.read() as tx:
        assert arrivals.find_all(tx, dataset=None, before=None, limit=9) == []


def test_where_a_source_can_be_looked_at_a_report_is_a_nudge_that_the_next_look_answers(ledger: Ledger) -> None:
    told = report(ledger, dataset="flights", rows=1_000_000, event_id="1")
    assert (told.arrival, told.nudged) == (None, True)
    assert report(ledger, dataset="flights", event_id="1") == Receipt(None, repeated=True, nudged=True)
    seen = grow(ledger, 50)
    again = report(ledger, dataset="flights", event_id="1")
    assert (again.arrival, again.repeated) == (seen, True)
    with ledger.read() as tx:
        row = arrivals.find(tx, seen)
        assert (row.rows, row.source, row.event_id, row.origin) == (50, "/loader", "1", "sql")
        assert datasets.find_all(tx)[0].nudged_at == tx.now


def test_a_report_of_unknown_size_is_enough_and_the_total_is_not_known_from_then_on(ledger: Ledger) -> None:
    adopt(ledger, dataset="reported")
    train_of_report(ledger)
    report(ledger, event_id="2")
    run = waiting(ledger)
    with ledger.read() as tx:
        assert runs.find(tx, run).due_at == tx.now
    report(ledger, rows=5, event_id="3")
    assert cut(ledger).rows is None


def train_of_report(ledger: Ledger) -> None:
    report(ledger, rows=200, event_id="1")
    claimed = claim(ledger, waiting(ledger))
    assert claimed is not None
    finish(ledger, claimed)


def test_a_report_that_comes_late_does_not_take_the_cut_back(ledger: Ledger) -> None:
    report(ledger, from_point=10, to_point=20, rows=10, event_id="2")
    report(ledger, from_point=0, to_point=10, rows=10, event_id="1")
    report(ledger, rows=1)
    assert (cut(ledger).upto, cut(ledger).rows) == (20, 21)


def test_an_arrival_and_its_cursor_are_one(ledger: Ledger) -> None:
    seen = grow(ledger, 70)
    assert cut(ledger, "flights") == Cut(upto=70, rows=70, holdout_above=63, holdout_rows=7, arrival=seen)


def test_of_two_watchers_that_saw_the_same_rows_one_tells(ledger: Ledger) -> None:
    grow(ledger, 10)
    before = cut(ledger, "flights")
    grow(ledger, 10)
    with pytest.raises(Fenced), ledger.write() as tx:
        arrivals.observe(tx, "flights", before, Cut(upto=20, rows=20), 10, "watcher")
    with ledger.read() as tx:
        assert len(arrivals.find_all(tx, dataset="flights", before=None, limit=9)) == 2


def test_a_watcher_whose_lease_has_passed_to_another_tells_nothing(ledger: Ledger, clock: HandClock) -> None:
    grow(ledger, 10)
    before = cut(ledger, "flights")
    clock.forward(seconds=31)
    with ledger.write() as tx:
        assert datasets.take(tx, "flights", "other", LEASE)
    with pytest.raises(Fenced, match="passed to other"), ledger.write() as tx:
        arrivals.observe(tx, "flights", before, Cut(upto=20, rows=20), 10, "watcher")
    assert cut(ledger, "flights") == before


def test_a_dataset_is_watched_by_one_until_its_lease_runs_out(ledger: Ledger, clock: HandClock) -> None:
    def take(owner: str, lease: timedelta = LEASE) -> bool:
        with ledger.write() as tx:
            return datasets.take(tx, "flights", owner, lease)

    assert (take("a"), take("b"), take("a")) == (True, False, True)
    clock.forward(seconds=30)
    assert not take("b")
    clock.forward(seconds=0.001)
    assert (take("b"), take("a")) == (True, False)
    assert take("b", timedelta(0))
    clock.forward(seconds=0.001)
    assert take("a")


def test_every_model_that_uses_the_dataset_gets_a_run_and_no_other(ledger: Ledger) -> None:
    put_config(ledger, CONFIG + _model("second") + _model("unreleased"))
    adopt(ledger)
    adopt(ledger, "second", dataset="reported")
    grow(ledger, 500)
    with ledger.read() as tx:
        assert runs.find_waiting(tx, "delays").due_at == tx.now
        assert runs.find_waiting(tx, "second").due_at is None
        assert runs.find_waiting(tx, "unreleased") is None
    assert report(ledger, rows=500).runs == (waiting(ledger, "second"),)


def _model(name: str) -> str:
    return f'\n[models.{name}]\nrepository = "file:///nowhere/{name}.git"\n'


def test_an_arrival_joins_the_run_that_waits(ledger: Ledger) -> None:
    adopt(ledger)
    train(ledger)
    grow(ledger, 60)
    first = waiting(ledger)
    with ledger.read() as tx:
        assert runs.find(tx, first).due_at is None
    grow(ledger, 60)
    assert waiting(ledger) == first
    with ledger.read() as tx:
        row = runs.find(tx, first)
        assert (row.due_at, row.reason) == (tx.now, "60 new rows in flights")


def test_an_arrival_during_a_run_waits_in_the_next_one(ledger: Ledger) -> None:
    adopt(ledger)
    grow(ledger)
    claimed = claim(ledger, waiting(ledger))
    assert claimed is not None
    grow(ledger)
    following = waiting(ledger)
    with ledger.read() as tx:
        row = runs.find(tx, following)
        assert (row.due_at, row.sentence) == (None, f"waits for run {claimed.run} of the same model to end")
    assert claim(ledger, following) is None
    finish(ledger, claimed)
    with ledger.read() as tx:
        assert runs.find(tx, following).due_at == tx.now
        assert runs.find(tx, claimed.run).cut["flights"]["upto"] == 1000
    again = claim(ledger, following)
    assert again is not None
    assert again.cut["flights"].upto == 2000


def test_a_version_is_told_of_the_arrivals_that_are_new_in_its_cut(ledger: Ledger) -> None:
    adopt(ledger)
    train(ledger)
    ids = [grow(ledger), grow(ledger)]
    claimed = claim(ledger, waiting(ledger))
    assert claimed is not None
    finish(ledger, claimed)
    with ledger.read() as tx:
        row = runs.find(tx, claimed.run)
        assert arrivals.covered_by(tx, row.cut, runs.trained_cut_before(tx, "delays", claimed.run)) == ids


def test_the_trace_of_a_report_reaches_the_run(ledger: Ledger) -> None:
    trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    with ledger.write() as tx:
        planning.adopt(tx, "delays", "v1", "a" * 40, declare("reported"))
    assert claim(ledger, waiting(ledger)) is None  # no data yet
    report(ledger, rows=200, traceparent=trace)
    claimed = claim(ledger, waiting(ledger))
    assert claimed is not None
    assert claimed.traceparent == trace
    with ledger.read() as tx:
        assert deliveries.read(tx, 0, 9)[0].traceparent == trace


def sent(
    id: str | None, dataset: str = "reported", key: str | None = None, source: str = "/loader", **more: Any
) -> Sent:
    told = Report(dataset=dataset, source=source, event_id=id, **more)
    return Sent(told, key=("shop", key) if key is not None else None)


def receive_all(ledger: Ledger, *told: Sent) -> list[Receipt | Permanent]:
    with ledger.write() as tx:
        return arrivals.receive_all(tx, told)


def outcome(ledger: Ledger) -> dict[str, Any]:
    """All that reports leave behind, but for what is drawn by lot."""
    with ledger.read() as tx:
        rows = reversed(arrivals.find_all(tx, dataset=None, before=None, limit=99))
        told = [(one.type, one.sequence, one.data, one.traceparent, one.time) for one in deliveries.read(tx, 0, 99)]
        sends = deliveries.find_all(tx, state=None, subject=None, after=None, limit=99)
        filed = tx.execute(select(report_rows).order_by(report_rows.c.source, report_rows.c.event_id)).all()
        return {
            "arrivals": [row._asdict() for row in rows],
            "notices": told,
            "deliveries": sorted((row.sequence, row.subscription, row.state, row.due_at) for row in sends),
            "reports": [{**row._asdict(), "id": None} for row in filed],
            "datasets": [row._asdict() for row in datasets.find_all(tx)],
            "runs": [{**row._asdict(), "reason": None} for row in runs.find_all(tx)],
        }


TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
MIXED = (
    sent("1", from_point=0, to_point=10, rows=10),
    sent("2", dataset="flights"),
    sent("1", from_point=0, to_point=10, rows=10),
    sent("1", dataset="flights"),
    sent("1", source="/other", to_point=7, rows=60),
    sent("3", dataset="unknown"),
    sent(None, rows=5),
    sent(None, rows=5),
    sent(None, key="a", rows=7, traceparent=TRACE),
    sent(None, key="a", rows=7),
    sent(None, key="a", rows=8),
    sent("1", key="b", from_point=0, to_point=10, rows=10),
    sent("1", key="b", from_point=0, to_point=10, rows=10),
    sent("9", dataset="second"),
    sent("2", dataset="flights", key="c"),
)


def test_many_in_one_commit_leave_and_answer_what_each_by_itself_does(ledger: Ledger) -> None:
    def prepare() -> None:
        empty(ledger)
        put_config(ledger, CONFIG + _model("other") + '\n[datasets.second]\nsource = { kind = "stream" }\n')
        adopt(ledger, dataset="reported")
        adopt(ledger, "other", datasets={"reported": Use(), "second": Use()})

    prepare()
    singly = [receive_all(ledger, one)[0] for one in MIXED]
    left = outcome(ledger)
    prepare()
    together = receive_all(ledger, *MIXED)
    assert [_said(one) for one in together] == [_said(one) for one in singly]
    assert outcome(ledger) == left
    assert [type(one) for one in singly if not isinstance(one, Receipt)] == [Conflict, NotFound, Refused]
    assert [row["rows"] for row in left["arrivals"]] == [10, 60, 5, 5, 7, None]
    assert [row["cut"]["rows"] for row in left["datasets"] if row["name"] == "reported"] == [87]


def _said(one: Receipt | Permanent) -> object:
    return one if isinstance(one, Receipt) else (type(one), one.message)


def test_many_again_change_nothing_and_get_the_first_answers(ledger: Ledger) -> None:
    named = [one for one in MIXED if one.names]
    put_config(ledger, CONFIG + '\n[datasets.second]\nsource = { kind = "stream" }\n')
    first = receive_all(ledger, *named)
    left = outcome(ledger)
    again = receive_all(ledger, *named)
    taken = [one for one in again if isinstance(one, Receipt)]
    assert all(one.repeated and not one.runs for one in taken)
    assert [one.arrival for one in taken] == [one.arrival for one in first if isinstance(one, Receipt)]
    assert outcome(ledger) == left | {"datasets": outcome(ledger)["datasets"]}


def test_a_dataset_that_many_report_is_planned_once_and_the_run_says_how_much_came(ledger: Ledger) -> None:
    adopt(ledger, dataset="reported")
    told = receive_all(ledger, *(sent(str(number), rows=number) for number in range(40, 43)))
    run = waiting(ledger)
    assert [(one.arrival, one.runs) for one in told if isinstance(one, Receipt)] == [(n, (run,)) for n in (1, 2, 3)]
    with ledger.read() as tx:
        assert (runs.find(tx, run).reason, runs.find(tx, run).due_at) == (
            "new release v1.0.0; 123 new rows in reported",
            tx.now,
        )


def test_many_that_are_all_refused_leave_nothing(ledger: Ledger) -> None:
    before = outcome(ledger)
    refused = receive_all(ledger, sent("1", dataset="unknown"), sent(None, dataset="unknown", key="a"))
    assert [type(one) for one in refused] == [NotFound, NotFound]
    assert receive_all(ledger) == []
    assert outcome(ledger) == before
