"""The stream with a real server: every event is one arrival, whoever dies, and what can't be read is out of the way."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from services.ingest_watcher.sources import stream
from services.ingest_watcher.sources.stream import ARRIVALS, GROUP, REJECTED, StreamReader
from shared import points
from shared.arrivals import parse_cloudevent
from shared.errors import Unavailable
from shared.ledger import Ledger, Transaction, arrivals, datasets, fates, rejections, sqlite
from shared.ledger.reports import Sent
from tests.half_open import HalfOpen
from tests.ledgers import CONFIG, adopt, put_config
from tests.redis_server import Valkey, start_valkey

ROOT = Path(__file__).parents[2]
WAIT_S = 30.0
RECEIVE = "commit arrivals.receive"
LEASE = timedelta(seconds=30)
NO_LEASE = timedelta(milliseconds=1)
STREAMED = CONFIG + '\n[datasets.streamed]\nsource = { kind = "stream" }\n'


def event(number: int = 1, dataset: str = "reported", **changes: object) -> dict[str, Any]:
    base = {
        "specversion": "1.0",
        "id": f"e{number}",
        "source": "/loader",
        "type": "dataset.arrived",
        "subject": dataset,
    }
    return {**base, "data": {"from": number - 1, "to": number, "rows": 1}, **changes}


class Stream:
    """What producers and readers do to the stream of one server."""

    def __init__(self, server: Valkey) -> None:
        self.server = server
        self.client: Any = Redis.from_url(server.url)

    def add(self, *events: dict[str, Any] | bytes) -> None:
        for one in events:
            self.client.xadd(ARRIVALS, {"event": one if isinstance(one, bytes) else json.dumps(one)})

    def rejected(self) -> list[dict[bytes, bytes]]:
        return [fields for _, fields in self.client.xrange(REJECTED)]

    def pending(self) -> int:
        return int(self.client.xpending(ARRIVALS, GROUP)["pending"])

    def reader(
        self, ledger: Ledger, name: str = "reader", lease: timedelta = LEASE, port: int | None = None
    ) -> StreamReader:
        return StreamReader(ledger, f"redis://127.0.0.1:{port or self.server.port}/0", name, lease)


@pytest.fixture(scope="module")
def own_valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    server = start_valkey(tmp_path_factory.mktemp("stream"))
    yield server
    server.stop()


@pytest.fixture
def events(own_valkey: Valkey) -> Iterator[Stream]:
    opened = Stream(own_valkey)
    opened.client.flushall()
    yield opened
    opened.client.close()


@pytest.fixture
def file(ledger_file: Path) -> Iterator[Ledger]:
    opened = Ledger(f"sqlite:///{ledger_file}")
    put_config(opened, STREAMED)
    yield opened
    opened.close()


def stored(ledger: Ledger) -> list[str]:
    """Ids of the events that became arrivals, in their order."""
    with ledger.read() as tx:
        return [row.event_id for row in reversed(arrivals.find_all(tx, dataset=None, before=None, limit=2000))]


def told(ledger: Ledger) -> list[Any]:
    with ledger.read() as tx:
        return rejections.find_all(tx, before=None, limit=50)


def drain(reader: StreamReader, events: Stream) -> None:
    """Step until nothing is left."""
    deadline = time.monotonic() + WAIT_S
    reader.step()
    while events.client.xlen(ARRIVALS):
        assert time.monotonic() < deadline, "it is never done"
        reader.step()


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.005)


def test_an_event_becomes_an_arrival_and_leaves_the_stream(events: Stream, ledger: Ledger) -> None:
    adopt(ledger, dataset="reported")
    trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    events.add(event(7, traceparent=trace))
    drain(events.reader(ledger), events)
    with ledger.read() as tx:
        (row,) = arrivals.find_all(tx, dataset="reported", before=None, limit=9)
        assert (row.above, row.upto, row.rows, row.origin) == (6, 7, 1, "stream")
        assert (row.source, row.event_id, row.traceparent) == ("/loader", "e7", trace)
        assert fates.of_arrival(tx, row.id)[0].kind == "waits"
    assert events.pending() == 0


def test_the_same_event_is_one_arrival_by_whichever_ways_it_comes(events: Stream, ledger: Ledger) -> None:
    reader = events.reader(ledger)
    events.add(event(1), event(1))
    drain(reader, events)
    for number in (1, 2):
        with ledger.write() as tx:
            arrivals.receive(tx, parse_cloudevent(event(number)))
    events.add(event(2), event(1))
    drain(reader, events)
    assert stored(ledger) == ["e1", "e2"]
    assert events.rejected() == []


def test_an_event_about_a_dataset_that_can_be_looked_at_is_a_nudge(events: Stream, ledger: Ledger) -> None:
    events.add(event(1, "flights"))
    drain(events.reader(ledger), events)
    with ledger.read() as tx:
        assert [(row.name, row.nudged_at) for row in datasets.find_all(tx)] == [("flights", tx.now)]
    assert stored(ledger) == []


def test_a_thousand_are_taken_in_their_order_and_none_is_left(events: Stream, file: Ledger) -> None:
    events.add(*(event(number) for number in range(1000)))
    drain(events.reader(file), events)
    assert stored(file) == [f"e{number}" for number in range(1000)]
    assert (events.client.xlen(ARRIVALS), events.pending(), events.client.xlen(REJECTED)) == (0, 0, 0)


@pytest.fixture
def commits() -> Iterator[list[str]]:
    """The commits that reports were taken in."""
    made: list[str] = []
    points.arm(lambda names, side: made.extend(name for name in names if side == "after" and RECEIVE in name))
    yield made
    points.arm(None)


def test_what_one_read_brings_is_one_commit_also_when_some_of_it_cannot_be_taken(
    events: Stream, file: Ledger, commits: list[str]
) -> None:
    events.add(*(event(number) for number in range(10)), b"bad", event(3, "flights"), event(3), event(10))
    drain(events.reader(file), events)
    assert stored(file) == [f"e{number}" for number in range(11)]
    assert ["is not JSON" in row.reason for row in told(file)] == [False, True]
    assert (commits, events.pending(), len(events.rejected())) == ([RECEIVE], 0, 2)


def test_a_defect_that_one_of_them_meets_loses_none_of_the_others(
    events: Stream, file: Ledger, commits: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    receive_all = arrivals.receive_all

    def broken(tx: Transaction, sent: Sequence[Sent]) -> Any:
        answers = receive_all(tx, sent)
        if any(one.report.event_id == "e2" for one in sent):
            raise ZeroDivisionError
        return answers

    monkeypatch.setattr(arrivals, "receive_all", broken)
    reader = events.reader(file)
    events.add(*(event(number) for number in range(1, 5)))
    reader.step()  # which makes the group
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            reader.step()
    assert (stored(file), events.pending()) == (["e1"], 3)
    drain(reader, events)
    assert stored(file) == ["e1", "e3", "e4"]
    assert ["a defect of ours" in row.reason for row in told(file)] == [True]


POISON: dict[str, tuple[dict[str, bytes], str]] = {
    "no JSON": ({"event": b"dataset=reported"}, "is not JSON"),
    "no UTF-8": ({"event": b"\xff\xfe\x00"}, "is not UTF-8"),
    "deep": ({"event": b"[" * 100_000}, "nested deeper"),
    "NaN": ({"event": b'{"a": NaN}'}, "NaN is not JSON"),
    "NUL": ({"event": b'{"id": "a\\u0000b"}'}, "a NUL or half of a character"),
    "half a character": ({"event": b'{"source": "\\ud800"}'}, "a NUL or half of a character"),
    "a list": ({"event": b"[]"}, "is not a JSON object"),
    "the shorthand": ({"event": b'{"dataset": "reported"}'}, "specversion: is missing"),
    "nothing": ({"event": b""}, "is not JSON"),
    "no field of that name": ({"data": b"{}", "\x00": b"\xff"}, "no field `event`"),
    "too large": ({"event": b" " * (stream.MAX_EVENT_BYTES + 1)}, "at most 1,048,576 bytes"),
    "another type": ({"event": json.dumps(event(type="model.promote")).encode()}, 'type: "model.promote" is not'),
    "a rule broken": ({"event": json.dumps(event(data={"rows": 0})).encode()}, "data.rows: must be at least 1"),
    "a command": ({"event": json.dumps(event(command="rm")).encode()}, "the release says what is run"),
    "an unknown dataset": ({"event": json.dumps(event(dataset="unknown")).encode()}, "there is no dataset 'unknown'"),
}


@pytest.mark.parametrize("name", POISON)
def test_what_cannot_be_read_is_put_aside_with_its_reason_and_the_next_is_taken(
    events: Stream, ledger: Ledger, name: str
) -> None:
    fields, reason = POISON[name]
    entry = events.client.xadd(ARRIVALS, fields).decode()
    events.add(event(2))
    drain(events.reader(ledger), events)
    assert stored(ledger) == ["e2"]
    (kept,), (aside,) = told(ledger), events.rejected()
    assert (kept.entry, reason in kept.reason) == (entry, True), kept.reason
    assert (aside[b"entry"].decode(), aside[b"reason"].decode()) == (entry, kept.reason)
    if "event" not in fields:
        assert json.loads(aside[b"event"]) == {"data": "{}", "\x00": "\ufffd"}
    else:
        assert aside[b"event"] == fields["event"][: stream.REJECTED_BYTES]
    assert len(kept.excerpt) <= rejections.MAX_EXCERPT
    assert events.pending() == 0


def test_a_broker_that_is_full_does_not_let_a_bad_entry_hold_up_the_next(events: Stream, ledger: Ledger) -> None:
    reader = events.reader(ledger)
    reader.step()
    events.add(b"bad", event(1), b"{}", event(2))
    events.client.config_set("maxmemory", 1)
    try:
        drain(reader, events)
    finally:
        events.client.config_set("maxmemory", 0)
    assert stored(ledger) == ["e1", "e2"]
    assert (len(told(ledger)), events.rejected(), events.pending()) == (2, [], 0)


def test_an_id_that_another_dataset_used_is_put_aside_and_the_sender_is_named(events: Stream, ledger: Ledger) -> None:
    events.add(event(1), event(1, "flights"))
    drain(events.reader(ledger), events)
    (kept,) = told(ledger)
    assert (kept.source, "was used for dataset reported" in kept.reason) == ("/loader", True)


def test_an_event_that_was_put_aside_can_be_sent_again(events: Stream, ledger: Ledger) -> None:
    reader = events.reader(ledger)
    events.add(event(1, "late"))
    drain(reader, events)
    put_config(ledger, CONFIG + '\n[datasets.late]\nsource = { kind = "stream" }\n')
    events.add(events.rejected()[0][b"event"])
    drain(reader, events)
    assert stored(ledger) == ["e1"]


def test_an_event_that_was_cut_away_before_it_was_read_is_told(events: Stream, ledger: Ledger) -> None:
    reader = events.reader(ledger, lease=NO_LEASE)
    reader.step()
    events.add(event(1), event(2), event(3))
    events.client.xreadgroup(GROUP, "reader", {ARRIVALS: ">"}, count=1)
    events.client.xreadgroup(GROUP, "dead", {ARRIVALS: ">"}, count=1)
    events.client.xtrim(ARRIVALS, maxlen=1, approximate=False)
    drain(reader, events)
    assert stored(ledger) == ["e3"]
    assert ["was cut from the stream" in row.reason for row in told(ledger)] == [True, True]
    assert events.pending() == 0


@pytest.mark.parametrize("point", ["_receive", "_settle"])
def test_what_a_killed_reader_held_is_taken_over_and_counted_once(
    events: Stream, file: Ledger, tmp_path: Path, point: str
) -> None:
    """Killed with the entries in hand, before the ledger has heard of them or after its commit and before the acknowledgement."""
    events.add(event(1), event(2))
    argv = [sys.executable, "-m", "tests.integration.halting_reader", file.url, events.server.url, point]
    dying = subprocess.Popen([*argv, str(tmp_path / "ready")], cwd=ROOT, start_new_session=True)
    try:
        until((tmp_path / "ready").exists)
    finally:
        os.kill(dying.pid, signal.SIGKILL)
        dying.wait()
    assert (stored(file), events.pending()) == (["e1", "e2"] if point == "_settle" else [], 2)
    events.add(event(3))
    patient = events.reader(file, "patient")
    patient.step()
    assert events.pending() == 2, "what is held for less than the lease is left where it is"
    drain(events.reader(file, "heir", NO_LEASE), events)
    assert sorted(stored(file)) == ["e1", "e2", "e3"]
    assert (events.pending(), events.rejected()) == (0, [])


def test_two_readers_share_the_stream_and_each_event_counts_once(events: Stream, file: Ledger) -> None:
    events.add(*(event(number) for number in range(200)))
    threads = [threading.Thread(target=drain, args=(events.reader(file, name, NO_LEASE), events)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(stored(file)) == sorted(f"e{number}" for number in range(200))
    assert (events.pending(), events.rejected()) == (0, [])


def test_flushall_is_got_over_also_while_a_read_waits(events: Stream, ledger: Ledger) -> None:
    reader = events.reader(ledger)
    reader.step()
    events.client.flushall()
    events.add(event(1))
    drain(reader, events)
    flush = threading.Thread(
        target=lambda: (until(lambda: b"cmd=xreadgroup" in blocked(events)), events.client.flushall())
    )
    flush.start()
    reader.step()
    flush.join()
    events.add(event(2))
    drain(reader, events)
    assert stored(ledger) == ["e1", "e2"]


def blocked(events: Stream) -> bytes:
    return b"\n".join(repr(one).encode() for one in events.client.client_list() if "b" in one["flags"]).replace(
        b"'cmd': 'xreadgroup'", b"cmd=xreadgroup"
    )


def test_a_server_that_is_away_is_shown_with_the_datasets_and_heard_again(tmp_path: Path, ledger: Ledger) -> None:
    put_config(ledger, STREAMED)
    server = start_valkey(tmp_path / "valkey")
    try:
        events = Stream(server)
        reader = events.reader(ledger)
        reader.step()
        server.kill()
        with pytest.raises(Unavailable, match="events wait there"):
            reader.step()
        with ledger.read() as tx:
            assert {row.name: bool(row.error) for row in datasets.find_all(tx)} == {"streamed": True}
        server.restart()
        events.add(event(1, "streamed"))
        drain(reader, events)
        with ledger.read() as tx:
            assert [row.error for row in datasets.find_all(tx) if row.name == "streamed"] == [None]
        assert stored(ledger) == ["e1"]
    finally:
        server.stop()


def test_on_a_half_open_connection_nothing_is_lost_or_overtaken(
    events: Stream, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "ANSWER_S", 1.0)
    with HalfOpen(events.server.port) as proxy:
        reader = events.reader(ledger, port=proxy.port)
        reader.step()  # which makes the group
        reader.step()
        proxy.cut()
        events.add(event(1))  # given to the connection that nobody hears
        with pytest.raises(Unavailable):
            reader.step()
        assert events.pending() == 1
        events.add(event(2))
        drain(reader, events)
        assert stored(ledger) == ["e1", "e2"]
        reader.close()


def test_a_ledger_that_is_locked_for_a_while_keeps_the_events_waiting_in_order(
    events: Stream, file: Ledger, ledger_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = events.reader(file)
    reader.step()
    events.add(*(event(number) for number in range(1, 4)))
    monkeypatch.setattr(sqlite, "BUSY_TIMEOUT_S", 0.1)
    file.engine.dispose()
    blocker = sqlite3.connect(ledger_file, isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")
    for _ in range(2):
        with pytest.raises(Unavailable):
            reader.step()
    events.add(event(4))
    assert (stored(file), told(file)) == ([], [])
    blocker.execute("COMMIT")
    blocker.close()
    drain(reader, events)
    assert stored(file) == ["e1", "e2", "e3", "e4"]


def test_a_defect_of_ours_is_tried_again_and_then_put_aside(
    events: Stream, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = stream.parse_cloudevent

    def broken(value: Any) -> Any:
        if value["id"] == "e1":
            raise ZeroDivisionError
        return read(value)

    monkeypatch.setattr(stream, "parse_cloudevent", broken)
    reader = events.reader(ledger)
    events.add(event(1), event(2))
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            drain(reader, events)
    drain(reader, events)
    assert stored(ledger) == ["e2"]
    assert "a defect of ours (ZeroDivisionError())" in told(ledger)[0].reason


def test_consumers_that_are_long_gone_are_dropped_unless_something_is_left_with_them(
    events: Stream, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = events.reader(ledger)
    reader.step()
    events.client.xgroup_createconsumer(ARRIVALS, GROUP, "gone")
    events.add(event(1))
    events.client.xreadgroup(GROUP, "holds", {ARRIVALS: ">"})
    reader._tend_at = 0.0
    reader.step()
    assert {one["name"] for one in events.client.xinfo_consumers(ARRIVALS, GROUP)} == {b"reader", b"gone", b"holds"}
    monkeypatch.setattr(stream, "FORGET", timedelta(0))
    reader._tend_at = 0.0
    reader._forget_consumers()
    assert b"holds" in {one["name"] for one in events.client.xinfo_consumers(ARRIVALS, GROUP)}
    assert b"gone" not in {one["name"] for one in events.client.xinfo_consumers(ARRIVALS, GROUP)}
    assert events.pending() == 1
