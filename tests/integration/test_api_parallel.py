"""The API as a real process on a SQLite file: many callers at once, other writers, other processes."""

from __future__ import annotations

import os
import socket
import sqlite3
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as StillRunning
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from sqlalchemy import event

from shared.ledger import Ledger, arrivals, deliveries
from shared.ledger.schema import migrate
from shared.notices import NoticeType
from tests.apis import make_tokens, serve
from tests.forks import Forks
from tests.ledgers import CONFIG, adopt, grow, put_config
from tests.servers import Server, free_port, wait_for_http

REPORT = {"dataset": "reported", "rows": 7, "id": "batch-1"}


@dataclass(frozen=True)
class Running:
    server: Server
    ledger: Ledger
    database: Path
    token: str
    state: Path

    def client(self) -> httpx.Client:
        headers = {"Authorization": f"Bearer {self.token}"}
        return httpx.Client(base_url=self.server.url, headers=headers, timeout=60, trust_env=False)


@pytest.fixture(scope="module")
def forks() -> Iterator[Forks]:
    forks = Forks("stack.api", "uvicorn.lifespan.on", "uvicorn.protocols.http.h11_impl")
    yield forks
    forks.stop()


@pytest.fixture
def running(tmp_path: Path, forks: Forks) -> Iterator[Running]:
    database = tmp_path / "ledger.db"
    migrate(f"sqlite:///{database}")
    ledger = Ledger(f"sqlite:///{database}")
    put_config(ledger, CONFIG)
    adopt(ledger, dataset="reported")
    token = make_tokens(ledger)["all"]
    server = start(forks, tmp_path, database)
    try:
        yield Running(server, ledger, database, token, tmp_path)
    finally:
        server.stop()
        ledger.close()


def start(forks: Forks, state: Path, database: Path) -> Server:
    port, log = free_port(), state / "api.log"
    environ = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"} | {
        "HEADRACE_STATE_DIR": str(state),
        "HEADRACE_LEDGER_URL": f"sqlite:///{database}",
        "HEADRACE_REDIS_URL": "redis://127.0.0.1:1",  # nothing listens there: the API never talks to it
        "HEADRACE_BLOBS_URL": f"file://{state}/blobs",
        "HEADRACE_LOGS_URL": f"file://{state}/logs",
        "HEADRACE_PROCESS": "api",
    }
    process = forks.start(["stack.serve", "--port", str(port)], environ, log)
    server = Server(f"http://127.0.0.1:{port}", process, log)
    wait_for_http(server, "/readyz")
    return server


def test_fifty_with_one_key_are_one_arrival_and_get_one_answer(running: Running) -> None:
    def report(_: int) -> httpx.Response:
        with running.client() as client:
            return client.post("/v1/events", json={"dataset": "reported", "rows": 7}, headers={"Idempotency-Key": "k"})

    with ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(report, range(50)))
    assert {answer.status_code for answer in answers} == {202}
    told = [answer.json() for answer in answers]
    assert Counter(one.pop("repeated") for one in told) == {True: 49, False: 1}
    assert all(one == {"arrival": 1, "dataset": "reported", "nudged": False, "runs": [1]} for one in told)


def test_the_same_report_a_hundred_times_at_once_is_one_arrival(running: Running) -> None:
    def report(_: int) -> httpx.Response:
        with running.client() as client:
            return client.post("/v1/events", json=REPORT)

    with ThreadPoolExecutor(100) as pool:
        answers = list(pool.map(report, range(100)))
    assert {answer.status_code for answer in answers} == {202}
    told = [answer.json() for answer in answers]
    assert Counter(one["repeated"] for one in told) == {True: 99, False: 1}
    assert {(one["arrival"], *one["runs"]) for one in told} == {(1, 1)}
    with running.ledger.read() as tx:
        assert len(arrivals.find_all(tx, dataset=None, before=None, limit=9)) == 1
        assert len(deliveries.read(tx, 0, 9)) == 1


def test_a_hundred_different_reports_at_once_are_all_stored(running: Running) -> None:
    def report(number: int) -> httpx.Response:
        with running.client() as client:
            return client.post("/v1/events", json=REPORT | {"id": f"batch-{number}"})

    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(report, range(100)))
    assert sorted(answer.json()["arrival"] for answer in answers) == list(range(1, 101))


def test_a_locked_ledger_makes_a_report_slow_then_refused_and_never_lost_or_doubled(running: Running) -> None:
    with closing(sqlite3.connect(running.database, isolation_level=None)) as other, running.client() as client:
        with ThreadPoolExecutor(1) as pool:
            other.execute("BEGIN IMMEDIATE")
            slow = pool.submit(client.post, "/v1/events", json=REPORT)
            with pytest.raises(StillRunning):
                slow.result(timeout=1)
            other.execute("ROLLBACK")
            assert slow.result(timeout=20).status_code == 202
        other.execute("BEGIN IMMEDIATE")
        refused = client.post("/v1/events", json=REPORT | {"id": "batch-2"})
        other.execute("ROLLBACK")
        assert (refused.status_code, refused.headers["Retry-After"]) == (503, "2")
        assert refused.headers["Content-Type"] == "application/problem+json"
        again = client.post("/v1/events", json=REPORT | {"id": "batch-2"}).json()
    assert (again["arrival"], again["repeated"]) == (2, False)


def test_a_long_poll_wakes_on_the_commit_of_another_process(running: Running) -> None:
    with running.client() as client, ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(client.get, "/v1/notices?wait=20")
        with pytest.raises(StillRunning):
            waiting.result(timeout=0.5)
        grow(running.ledger)
        committed = time.monotonic()
        told = waiting.result(timeout=10).json()
        assert time.monotonic() - committed < 2
    assert [event["type"] for event in told["items"]] == ["arrival.observed"]


def test_a_hundred_long_polls_leave_the_api_answering(running: Running) -> None:
    def poll(_: int) -> int:
        with running.client() as client:
            return len(client.get("/v1/notices?wait=20").json()["items"])

    with ThreadPoolExecutor(100) as pool, running.client() as client:
        waiting = [pool.submit(poll, number) for number in range(100)]
        assert client.get("/v1/status").status_code == 200
        assert client.post("/v1/events", json=REPORT).status_code == 202
        assert {one.result(timeout=15) for one in waiting} == {1}


def test_readers_that_wait_for_what_never_comes_do_not_let_the_log_of_the_database_grow(running: Running) -> None:
    def poll(_: int) -> int:
        with running.client() as client:
            return client.get("/v1/notices?wait=20&models=another").status_code

    wal, largest = Path(f"{running.database}-wal"), 0
    with ThreadPoolExecutor(8) as pool:
        waiting = [pool.submit(poll, number) for number in range(8)]
        for _ in range(600):
            with running.ledger.write() as tx:
                deliveries.tell(tx, NoticeType.RUN_FAILED, "delays", "delays", {"why": "x" * 20_000})
            largest = max(largest, wal.stat().st_size)
        assert not any(one.done() and one.result() != 200 for one in waiting)
        assert running.database.stat().st_size > 11_000_000
        assert largest < 8_000_000
        running.server.stop()
        for one in waiting:
            one.exception(timeout=30)


def test_a_full_disk_is_a_problem_to_be_repeated_and_leaves_nothing_half_written(tmp_path: Path) -> None:
    with serve(tmp_path) as api:
        adopt(api.ledger, dataset="reported")
        with api.ledger.read() as tx:
            room = [tx.connection.exec_driver_sql("PRAGMA page_count").scalar()]
        limit = "PRAGMA max_page_count={}"
        event.listen(api.ledger.engine, "begin", lambda one: one.exec_driver_sql(limit.format(room[0])))
        reports = [REPORT | {"id": f"{number}-{'x' * 200}"} for number in range(60)]
        answers = [api.post("/v1/events", report) for report in reports]
        refused = [answer for answer in answers if answer.status_code != 202]
        assert {answer.status_code for answer in refused} == {503}
        assert {answer.headers["Content-Type"] for answer in refused} == {"application/problem+json"}
        room[0] = 1_000_000
        for report, answer in zip(reports, answers, strict=True):
            again = api.post("/v1/events", report)
            assert again.json()["repeated"] == (answer.status_code == 202)
        with api.ledger.read() as tx:
            assert len(arrivals.find_all(tx, dataset="reported", before=None, limit=99)) == 60


def test_it_ends_soon_although_somebody_waits_for_news(running: Running) -> None:
    with running.client() as client, ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(client.get, "/v1/notices?wait=20")
        with pytest.raises(StillRunning):
            waiting.result(timeout=0.5)
        running.server.process.terminate()
        assert running.server.process.wait(timeout=10) is not None
        waiting.exception(timeout=10)


def test_it_says_that_it_is_ready_with_its_pid(running: Running) -> None:
    assert (running.state / "ready" / "api").read_text() == str(running.server.pid)


def raw(running: Running, head: str, body: bytes = b"") -> bytes:
    """The whole answer to a request that no library would send; reading ends when the server closes."""
    address = urlsplit(running.server.url)
    lines = [
        head,
        f"Host: {address.netloc}",
        f"Authorization: Bearer {running.token}",
        "Content-Type: application/json",
    ]
    with socket.create_connection((address.hostname, address.port), timeout=10) as connection:
        connection.sendall("\r\n".join(lines).encode() + b"\r\n\r\n" + body)
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
    return answer


def test_a_length_that_lies_is_refused_and_the_connection_closed(running: Running) -> None:
    assert raw(running, "POST /v1/events HTTP/1.1\r\nContent-Length: -1").startswith(b"HTTP/1.1 400")
    huge = raw(running, f"POST /v1/events HTTP/1.1\r\nContent-Length: {5 * 1024**2}", b"{")
    assert huge.startswith(b"HTTP/1.1 413")
    assert b"application/problem+json" in huge


def test_a_defect_is_a_problem_and_its_cause_stands_in_the_log(running: Running) -> None:
    grow(running.ledger)
    with closing(sqlite3.connect(running.database)) as other, other:
        other.execute("UPDATE notice SET type = 'nonsense'")
    with running.client() as client:
        answer = client.get("/v1/notices")
        assert (answer.status_code, answer.headers["Content-Type"]) == (500, "application/problem+json")
        assert client.get("/healthz").status_code == 200
    assert "nonsense" not in answer.text
    assert "'nonsense' is not a valid NoticeType" in running.server.log.read_text()
