"""The log store and the pump that fills it."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from shared.errors import ConfigurationError, Refused, Unavailable
from shared.logs import DiskLogs, Logs, Pump, make_logs
from tests.s3_server import S3Server

NAME = "runs/17/2"
# Writes numbered lines of 100 bytes, each in one write, as the streams of a child and of its own child do.
WRITER = """
import os, sys
log = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
for number in range(int(sys.argv[3])):
    os.write(log, f"{sys.argv[2]} {number:010}".encode().ljust(99, b".") + b"\\n")
"""


@pytest.fixture(params=["disk", "s3"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "disk":
        return f"file://{tmp_path}/logs"
    server = request.getfixturevalue("s3")
    assert isinstance(server, S3Server)
    return server.new_url("logs")


@pytest.fixture
def logs(url: str) -> Logs:
    return make_logs(url)


def wait_until(condition: Callable[[], bool], timeout_s: float = 20) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not come true in time"
        threading.Event().wait(0.002)


def whole(logs: Logs) -> bytes:
    return logs.read(NAME, 0, 1_000_000_000)[0]


def start_writer(path: Path, word: str, lines: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-I", "-c", WRITER, str(path), word, str(lines)])


def test_a_log_is_read_from_any_offset_while_it_grows(logs: Logs) -> None:
    assert logs.read(NAME, 0, 100) == (b"", 0)
    assert logs.append(NAME, b"first\n") == 6
    assert logs.append(NAME, b"second\n") == 13
    assert logs.read(NAME, 0, 100) == (b"first\nsecond\n", 13)
    assert logs.read(NAME, 6, 3) == (b"sec", 13)
    assert logs.read(NAME, 13, 100) == (b"", 13)
    assert logs.read(NAME, 1000, 100) == (b"", 13)


def test_logs_do_not_mix(logs: Logs) -> None:
    logs.append("runs/1", b"a")
    logs.append("runs/1/2", b"b")
    logs.append("runs/12", b"c")
    assert [logs.read(name, 0, 9)[0] for name in ("runs/1", "runs/1/2", "runs/12")] == [b"a", b"b", b"c"]


def test_all_logs_are_named_with_their_time_and_size(logs: Logs) -> None:
    assert list(logs.names()) == []
    for name in ("runs/1", "runs/1/2", "runs/12"):
        logs.append(name, b"x" * len(name))
    found = {name: (time, size) for name, time, size in logs.names()}
    assert {name: size for name, (_, size) in found.items()} == {"runs/1": 6, "runs/1/2": 8, "runs/12": 7}
    assert all(abs(datetime.now(UTC) - time) < timedelta(minutes=1) for time, _ in found.values())


def test_a_removed_log_is_as_if_nothing_had_been_appended(logs: Logs) -> None:
    logs.append("runs/1", b"one")
    logs.append("runs/1/2", b"two")
    logs.remove("runs/1")
    logs.remove("runs/1")
    assert logs.read("runs/1", 0, 9) == (b"", 0)
    assert [name for name, _, _ in logs.names()] == ["runs/1/2"]
    assert logs.append("runs/1", b"again") == 5
    assert logs.read("runs/1", 0, 9) == (b"again", 5)


def test_many_writers_of_one_log_lose_nothing(logs: Logs) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: logs.append(NAME, b"%09d\n" % number), range(400)))
    assert sorted(whole(logs).splitlines()) == [b"%09d" % number for number in range(400)]


@pytest.mark.parametrize(
    "name",
    ["", "/etc/passwd", "../x", "runs/../../x", "runs//1", "runs/1/", "runs/./1", ".", "runs/1\n", "runs/\x00", "Runs/1", "a\\b",
     "runs/-1", "runs/" + "1" * 65, "a/b/c/d/e", "runs/%2e%2e", "runs/１"],
)  # fmt: skip
def test_a_name_that_could_be_a_path_is_refused(name: str, logs: Logs, tmp_path: Path) -> None:
    with pytest.raises(Refused):
        logs.append(name, b"x")
    with pytest.raises(Refused):
        logs.read(name, 0, 1)
    assert not (tmp_path / "logs").exists()


@pytest.mark.parametrize(("offset", "limit"), [(-1, 10), (0, -1)])
def test_a_negative_offset_or_limit_is_refused(offset: int, limit: int, logs: Logs) -> None:
    with pytest.raises(Refused):
        logs.read(NAME, offset, limit)


@pytest.mark.parametrize("offset", [5, 10**6, 2**63 - 1, 10**18])
def test_beyond_the_end_there_is_nothing_and_the_size_is_told(offset: int, logs: Logs) -> None:
    logs.append(NAME, b"hello")
    assert logs.read(NAME, offset, 262_144) == (b"", 5)


@pytest.mark.parametrize("wrong", ["", "s4://bucket", "file://host/logs", "logs"])
def test_an_unknown_store_is_refused(wrong: str) -> None:
    with pytest.raises(ConfigurationError, match="file:///directory"):
        make_logs(wrong)


def test_the_log_follows_the_file_while_it_is_written(logs: Logs, tmp_path: Path) -> None:
    with Pump(logs, NAME, tmp_path / "child.log"), (tmp_path / "child.log").open("wb", buffering=0) as child:
        child.write(b"epoch 1\n")
        wait_until(lambda: whole(logs) == b"epoch 1\n")
        child.write(b"epoch 2")
        wait_until(lambda: whole(logs) == b"epoch 1\nepoch 2")
        child.write(b" of 2\n")
    assert whole(logs) == b"epoch 1\nepoch 2 of 2\n"


def test_the_last_words_are_in_the_log_when_the_pump_has_stopped(logs: Logs, tmp_path: Path) -> None:
    pump = Pump(logs, NAME, tmp_path / "child.log")
    pump.start()
    (tmp_path / "child.log").write_bytes(b"Traceback: it was the data\n")
    pump.stop()
    assert whole(logs) == b"Traceback: it was the data\n"


def test_a_child_that_writes_nothing_has_an_empty_log(logs: Logs, tmp_path: Path) -> None:
    with Pump(logs, NAME, tmp_path / "child.log"):
        pass
    assert logs.read(NAME, 0, 100) == (b"", 0)


@pytest.mark.parametrize("size", [899, 900, 901, 1000])
def test_a_log_up_to_its_bound_is_whole(size: int, logs: Logs, tmp_path: Path) -> None:
    data = os.urandom(size)
    (tmp_path / "child.log").write_bytes(data)
    with Pump(logs, NAME, tmp_path / "child.log", max_bytes=1000):
        pass
    assert whole(logs) == data


def test_of_a_longer_log_the_head_and_the_tail_are_kept(logs: Logs, tmp_path: Path) -> None:
    data = b"h" * 900 + b"?" * 5000 + b"t" * 100
    (tmp_path / "child.log").write_bytes(data)
    with Pump(logs, NAME, tmp_path / "child.log", max_bytes=1000):
        pass
    assert whole(logs) == b"h" * 900 + b"\n[headrace: 5,000 bytes were cut out here]\n" + b"t" * 100


def test_who_follows_a_log_that_passes_its_bound_is_told(logs: Logs, tmp_path: Path) -> None:
    with Pump(logs, NAME, tmp_path / "child.log", max_bytes=1000), (tmp_path / "child.log").open("wb", 0) as child:
        child.write(b"h" * 900 + b"?" * 101)
        wait_until(lambda: b"only the end will be kept]" in whole(logs))
        child.write(b"t" * 100)
    kept = whole(logs)
    assert kept.startswith(b"h" * 900 + b"\n[headrace: a log keeps 1,000 bytes")
    assert kept.endswith(b"[headrace: 101 bytes were cut out here]\n" + b"t" * 100)


def test_two_writers_of_a_hundred_megabytes_make_a_bounded_log(logs: Logs, tmp_path: Path) -> None:
    child_log = tmp_path / "child.log"
    with Pump(logs, NAME, child_log):
        writers = [start_writer(child_log, word, 500_000) for word in ("left", "right")]
        assert [writer.wait() for writer in writers] == [0, 0]
    assert child_log.stat().st_size == 100_000_000
    kept = whole(logs)
    assert 50_000_000 <= len(kept) < 50_000_500
    assert b"bytes were cut out here" in kept
    head = kept[:45_000_000].splitlines()
    assert head == [line for line in head if line[:4] in (b"left", b"righ") and len(line) == 99]
    assert max(kept[-300_000:].splitlines()[-2000:]).split(b".")[0].endswith(b" 0000499999")
    if sys.platform == "linux":
        assert child_log.stat().st_blocks * 512 < 20_000_000


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can free the disk under a file that grows")
def test_the_disk_of_the_child_is_given_back_while_it_still_writes(logs: Logs, tmp_path: Path) -> None:
    child_log = tmp_path / "child.log"
    with Pump(logs, NAME, child_log, max_bytes=100_000), child_log.open("wb", 0) as child:
        child.write(b"x" * 10_000_000)
        wait_until(lambda: child_log.stat().st_blocks * 512 < 100_000)
        child.write(b"the end")
    assert whole(logs).endswith(b"xthe end")


class FlakyLogs:
    """A store that fails until it is repaired."""

    def __init__(self, real: Logs) -> None:
        self.real = real
        self.broken = True
        self.asked = 0
        self.pace_s = real.pace_s

    def append(self, name: str, data: bytes) -> int:
        self.asked += 1
        if self.broken:
            raise Unavailable("the store is away")
        return self.real.append(name, data)

    def read(self, name: str, offset: int, limit: int) -> tuple[bytes, int]:
        return self.real.read(name, offset, limit)

    def names(self) -> Iterator[tuple[str, datetime, int]]:
        return self.real.names()

    def remove(self, name: str) -> None:
        self.real.remove(name)


def test_a_store_that_comes_back_gets_everything(logs: Logs, tmp_path: Path) -> None:
    flaky = FlakyLogs(logs)
    (tmp_path / "child.log").write_bytes(b"all of it")
    with Pump(flaky, NAME, tmp_path / "child.log"):
        wait_until(lambda: flaky.asked > 1)
        flaky.broken = False
    assert whole(logs) == b"all of it"


def test_a_store_that_stays_away_is_told_at_the_end(logs: Logs, tmp_path: Path) -> None:
    (tmp_path / "child.log").write_bytes(b"lost")
    pump = Pump(FlakyLogs(logs), NAME, tmp_path / "child.log")
    pump.start()
    with pytest.raises(Unavailable):
        pump.stop()


def test_a_full_disk_is_told_at_the_end(tmp_path: Path) -> None:
    (tmp_path / "logs").write_text("a file where the directory should be")
    (tmp_path / "child.log").write_bytes(b"lost")
    pump = Pump(DiskLogs(tmp_path / "logs"), NAME, tmp_path / "child.log")
    pump.start()
    with pytest.raises(Unavailable, match="could not be stored"):
        pump.stop()


@pytest.mark.parametrize("what", ["link", "pipe"])
def test_a_link_or_pipe_in_place_of_the_file_is_not_read(what: str, logs: Logs, tmp_path: Path) -> None:
    if what == "link":
        (tmp_path / "child.log").symlink_to("/etc/passwd")
    else:
        os.mkfifo(tmp_path / "child.log")
    pump = Pump(logs, NAME, tmp_path / "child.log")
    pump.start()
    with pytest.raises((Refused, Unavailable)):
        pump.stop()
    assert whole(logs) == b""
