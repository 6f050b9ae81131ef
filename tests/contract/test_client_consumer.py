"""The example consumer as a process: it swaps its model under fire, and stays on the old one when the new one is bad."""

from __future__ import annotations

import base64
import http.client
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from headrace.lock import read_versions
from standardwebhooks import Webhook

from tests.contract.client_twin import TOKEN, Twin, files_of, serve

MODEL = "flight-delays"
EXAMPLE = Path(__file__).parents[2] / "examples" / "consumer"
SECRET = "whsec_" + base64.b64encode(b"a secret of the storefront, 32 b").decode()
ROW = {"carrier": "UA", "distance": 1400}
DEADLINE_S = 30.0


class Consumer:
    """The example, started in a copy of its directory."""

    def __init__(self, twin: Twin, home: Path) -> None:
        self.twin, self.home, self.log = twin, home, home / "service.log"
        if not home.exists():
            shutil.copytree(EXAMPLE, home, ignore=shutil.ignore_patterns("models", "__pycache__"))
        environment = {
            "HEADRACE_URL": twin.url,
            "HEADRACE_TOKEN": TOKEN,
            "HEADRACE_HOOK_SECRET": SECRET,
            "PATH": os.environ["PATH"],
        }
        command = [sys.executable, "service.py", "--port", "0"]
        with self.log.open("wb") as stream:
            self.process = subprocess.Popen(command, cwd=home, env=environment, stdout=stream, stderr=subprocess.STDOUT)
        self.wait(lambda: "listening on" in self.said)
        self.port = int(self.said.split("listening on http://127.0.0.1:")[1].split()[0])

    @property
    def said(self) -> str:
        return self.log.read_text()

    def wait(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while not condition():
            assert time.monotonic() < deadline, self.said
            assert self.process.poll() is None, self.said
            time.sleep(0.01)

    def ask(self, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None) -> tuple[int, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            said = answer.read()
            return answer.status, json.loads(said) if said else None
        finally:
            connection.close()

    def version(self) -> int | None:
        return self.ask("GET", "/healthz")[1]["version"]

    def tell(
        self, sequence: int, version: int, digest: str, *, type: str = "version.promoted", secret: str = SECRET
    ) -> int:
        """Send a notice as Headrace does; the status of the answer."""
        body = json.dumps(notice(sequence, version, digest, type)).encode()
        now = datetime.now(UTC)
        signature = Webhook(secret).sign("dlv_1", now, body.decode())
        headers = {
            "webhook-id": "dlv_1",
            "webhook-timestamp": str(int(now.timestamp())),
            "webhook-signature": signature,
        }
        return self.ask("POST", "/hooks/models", body, headers)[0]

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(timeout=10)


def notice(sequence: int, version: int, digest: str, type: str = "version.promoted") -> dict[str, Any]:
    return {
        "specversion": "1.0",
        "id": f"n{sequence}",
        "source": "headrace",
        "type": type,
        "subject": MODEL,
        "time": "2026-11-23T18:00:00Z",
        "sequence": str(sequence),
        "datacontenttype": "application/json",
        "data": {"model": MODEL, "version": version, "digest": digest},
    }


@pytest.fixture
def twin() -> Iterator[Twin]:
    with serve() as twin:
        yield twin


@pytest.fixture
def start(twin: Twin, tmp_path: Path) -> Iterator[Callable[[], Consumer]]:
    started: list[Consumer] = []

    def run() -> Consumer:
        started.append(Consumer(twin, tmp_path / "consumer"))
        return started[-1]

    yield run
    for consumer in started:
        if consumer.process.poll() is None:
            consumer.stop()


class Load:
    """Requests without a pause from several connections; what was answered, and what failed."""

    def __init__(self, port: int) -> None:
        self.failures: list[str] = []
        self.answers: list[tuple[int, float]] = []
        self._port, self._stop = port, threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(4)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _ask(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=10)
        while not self._stop.is_set():
            try:
                connection.request("POST", "/predict", json.dumps({"rows": [ROW]}))
                answer = connection.getresponse()
                said = json.loads(answer.read())
                assert answer.status == 200, said
                self.answers.append((said["version"], said["probabilities"][0]))
            except Exception as error:  # noqa: BLE001 - whatever a caller sees is a failure
                self.failures.append(repr(error))
                connection.close()
        connection.close()


def test_versions_are_swapped_and_rolled_back_without_one_failed_request(
    twin: Twin, start: Callable[[], Consumer]
) -> None:
    first = twin.publish(MODEL, 1, files_of(0.1))
    consumer = start()
    consumer.wait(lambda: consumer.version() == 1)
    second = twin.publish(MODEL, 2, files_of(0.2))
    file = consumer.home / "models.toml"
    before = file.read_text().splitlines()
    with Load(consumer.port) as load:
        assert consumer.tell(10, 2, second) == 204
        consumer.wait(lambda: read_versions(file) == {MODEL: 2})
        answered = len(load.answers)
        consumer.wait(lambda: len(load.answers) > answered + 50)
        assert consumer.tell(11, 1, first, type="version.rolled_back") == 204
        consumer.wait(lambda: read_versions(file) == {MODEL: 1})
        consumer.wait(lambda: load.answers[-1] == (1, 0.1))
    assert load.failures == []
    assert set(load.answers) == {(1, 0.1), (2, 0.2)}
    assert '- version = "champion"  # ' in consumer.said
    assert "+ version = 2  # " in consumer.said
    changed = [pair for pair in zip(before, file.read_text().splitlines(), strict=True) if pair[0] != pair[1]]
    assert len(changed) == 1


def test_until_the_first_version_it_answers_503_and_then_takes_it(twin: Twin, start: Callable[[], Consumer]) -> None:
    consumer = start()
    consumer.wait(lambda: "nothing serves" in consumer.said)
    assert consumer.ask("GET", "/healthz") == (503, {"version": None})
    assert consumer.ask("POST", "/predict", json.dumps({"rows": [ROW]}).encode())[0] == 503
    consumer.tell(1, 1, twin.publish(MODEL, 1, files_of(0.1)))
    consumer.wait(lambda: consumer.version() == 1)


@pytest.mark.parametrize("fault", ["digest of the notice", "a file", "a requirement", "a model that answers nonsense"])
def test_a_bad_version_is_refused_and_the_old_one_serves_on(
    twin: Twin, start: Callable[[], Consumer], fault: str
) -> None:
    twin.publish(MODEL, 1, files_of(0.1))
    consumer = start()
    consumer.wait(lambda: consumer.version() == 1)
    nonsense = float("nan") if fault == "a model that answers nonsense" else 0.2
    files = files_of(nonsense, refuses=fault == "a requirement")
    files["data/source/twin_delays.py"] = files["data/source/twin_delays.py"].replace(b"nan", b"float('nan')")
    digest = twin.publish(MODEL, 2, files)
    if fault == "a file":
        twin.files[f"/v1/models/{MODEL}/versions/2/files/MLmodel"] = b"flavors: []\n"
    consumer.tell(10, 2, "sha256:feed" if fault == "digest of the notice" else digest)
    consumer.wait(lambda: "version 2 not taken, staying on 1: " in consumer.said)
    assert consumer.ask("POST", "/predict", json.dumps({"rows": [ROW]}).encode()) == (
        200,
        {"version": 1, "probabilities": [0.1]},
    )
    assert read_versions(consumer.home / "models.toml") == {MODEL: "champion"}
    consumer.tell(11, 3, twin.publish(MODEL, 3, files_of(0.3)))
    consumer.wait(lambda: consumer.version() == 3)


def test_an_old_notice_changes_nothing_also_after_a_restart(twin: Twin, start: Callable[[], Consumer]) -> None:
    first, second = twin.publish(MODEL, 1, files_of(0.1)), twin.publish(MODEL, 2, files_of(0.2))
    consumer = start()
    consumer.wait(lambda: consumer.version() == 2)
    consumer.tell(10, 2, second)
    consumer.wait(lambda: (consumer.home / "models" / "sequences.json").exists())
    consumer.stop()
    third = twin.publish(MODEL, 3, files_of(0.3))
    twin.requests.clear()
    again = start()
    again.wait(lambda: again.version() == 2)
    assert not [path for path in twin.requests if "/versions/" in path], "what is there and intact needs no network"
    assert again.tell(9, 1, first) == 204
    assert again.tell(11, 3, third) == 204
    again.wait(lambda: again.version() == 3)
    assert "serving version 1" not in again.said


def test_what_was_told_while_it_was_away_is_caught_up(twin: Twin, start: Callable[[], Consumer]) -> None:
    consumer = start()
    consumer.tell(10, 1, twin.publish(MODEL, 1, files_of(0.1)))
    consumer.wait(lambda: (consumer.home / "models" / "sequences.json").exists())
    consumer.stop()
    twin.notices = [notice(12, 2, twin.publish(MODEL, 2, files_of(0.2)))]
    again = start()
    again.wait(lambda: again.version() == 2)


def test_a_version_that_can_not_be_fetched_yet_is_taken_when_the_network_is_back(
    twin: Twin, start: Callable[[], Consumer]
) -> None:
    twin.publish(MODEL, 1, files_of(0.1))
    consumer = start()
    consumer.wait(lambda: consumer.version() == 1)
    digest = twin.publish(MODEL, 2, files_of(0.2))
    twin.cut[f"/v1/models/{MODEL}/versions/2/files/MLmodel"] = 3
    consumer.tell(10, 2, digest)
    consumer.wait(lambda: "version 2 can't be fetched yet" in consumer.said)
    assert consumer.version() == 1
    twin.cut.clear()
    consumer.wait(lambda: consumer.version() == 2)


def test_a_notice_that_is_not_signed_by_us_is_refused(twin: Twin, start: Callable[[], Consumer]) -> None:
    digest = twin.publish(MODEL, 1, files_of(0.1))
    consumer = start()
    consumer.wait(lambda: consumer.version() == 1)
    twin.requests.clear()
    assert consumer.tell(10, 2, digest, secret="whsec_" + base64.b64encode(b"guessed").decode()) == 401
    assert consumer.ask("POST", "/hooks/models", json.dumps(notice(10, 2, digest)).encode())[0] == 401
    assert twin.requests == []


def test_a_wrong_question_gets_400(twin: Twin, start: Callable[[], Consumer]) -> None:
    twin.publish(MODEL, 1, files_of(0.1))
    consumer = start()
    consumer.wait(lambda: consumer.version() == 1)
    too_many = json.dumps({"rows": [ROW] * 1001}).encode()
    for body in (b"", b"[]", b"{", b'{"rows": []}', b'{"rows": [1]}', b'{"rows": {}}', too_many):
        assert consumer.ask("POST", "/predict", body)[0] == 400
    assert consumer.ask("POST", "/predict", headers={"Content-Length": str(2 << 20)})[0] == 413
