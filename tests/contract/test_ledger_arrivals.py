"""What came in is stored once, with its cursor and the runs that it makes due."""

from __future__ import annotations

from datetime import timedelta

import pytest

from shared.arrivals import Report
from shared.cuts import Cut
from shared.errors import Conflict, Fenced, NotFound
from shared.ledger import Ledger, arrivals, datasets, deliveries, planning, runs
from shared.ledger.arrivals import Receipt
from tests.ledgers import CONFIG, LEASE, HandClock, adopt, claim, declare, finish, grow, put_config, train, waiting


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
