"""S3 when it goes wrong: what a store that breaks off, refuses or half succeeds does to blobs and logs."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from hashlib import sha256
from pathlib import Path

import boto3
import pytest
from headrace.warded import Warded

from services.trainer import child
from services.trainer.checkout import Prepared
from shared.blobs import BlobDamaged, Verified, make_blobs
from shared.blobs_s3 import S3Blobs
from shared.errors import ConfigurationError, NotFound, Refused, Unavailable
from shared.logs import make_logs
from shared.logs_s3 import SEGMENT_BYTES, S3Logs
from shared.s3 import Bucket
from tests.faulty_proxy import Fault, FaultyProxy
from tests.s3_server import S3Server, start_s3

HOME = Path(__file__).parents[2]
PART_BYTES = 5 * 1024**2
LARGE = os.urandom(12 * 1024**2)  # three parts
# Sends two parts of an upload and then waits to be killed.
UPLOADER = """
import io, sys, threading
from shared.s3 import Bucket

class Stuck(io.RawIOBase):
    left = 12 * 1024**2
    def readable(self): return True
    def readinto(self, buffer):
        if not self.left: threading.Event().wait()
        count = min(len(buffer), self.left)
        self.left -= count
        return count

Bucket(sys.argv[1], "blobs_url", part_bytes=5 * 1024**2).upload("ab/cd/never", io.BufferedReader(Stuck()))
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    """A server that the test may kill, with this process's environment set for it."""
    server = start_s3(tmp_path / "s3")
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    yield server
    server.stop()


@pytest.fixture
def proxy(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyProxy]:
    with FaultyProxy(s3.url, keep_host=True) as between:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", between.url)
        yield between


def wait_until(condition: Callable[[], object], timeout_s: float = 20) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not come true in time"
        threading.Event().wait(0.02)


def uploads(server: S3Server, url: str) -> list[str]:
    client = boto3.session.Session().client("s3")
    try:
        found = client.list_multipart_uploads(Bucket=server.bucket, Prefix=url.rpartition("/")[2])
    except client.exceptions.NoSuchUpload:  # rclone, where there is none
        return []
    return [one["Key"] for one in found.get("Uploads", ())]


def in_parts(url: str) -> S3Blobs:
    return S3Blobs(Bucket(url, "blobs_url", part_bytes=PART_BYTES))


def put(blobs: S3Blobs, place: Path, data: bytes = LARGE) -> str:
    (place / "large").write_bytes(data)
    return blobs.put_file(place / "large")


def test_a_large_file_goes_in_parts_and_comes_back(proxy: FaultyProxy, s3: S3Server, tmp_path: Path) -> None:
    blobs = in_parts(url := s3.new_url())
    digest = put(blobs, tmp_path)
    assert [request.split()[0] for request in proxy.requests][1:] == ["POST", "PUT", "PUT", "PUT", "POST"]
    assert digest == sha256(LARGE).hexdigest()
    blobs.fetch(digest, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == LARGE
    assert [(found, size) for found, _, size in blobs.stored()] == [(digest, len(LARGE))]
    assert uploads(s3, url) == []


@pytest.mark.parametrize("size", [100, len(LARGE)])
def test_a_file_that_changes_between_its_hash_and_its_upload_gets_no_key(size: int, s3: S3Server) -> None:
    blobs = in_parts(url := s3.new_url())
    wrong = Verified(io.FileIO(os.memfd_create("changed")), size, "0" * 64, Refused("it changed"))
    os.write(wrong._raw.fileno(), LARGE[:size])
    wrong._raw.seek(0)
    with pytest.raises(Refused, match="it changed"):
        blobs._send("0" * 64, wrong)
    assert not blobs.has("0" * 64)
    assert uploads(s3, url) == []


@pytest.mark.parametrize(
    ("nth", "fault"),
    [(1, Fault.DROP_REPLY), (3, Fault.DROP_REPLY), (3, Fault.REFUSE_REQUEST), (5, Fault.REFUSE_REQUEST), (5, Fault.DROP_REPLY), (5, Fault.CUT_REPLY), (5, Fault.ERROR_IN_200)],
)  # fmt: skip
def test_one_lost_answer_of_an_upload_in_parts_costs_nothing(
    nth: int, fault: Fault, proxy: FaultyProxy, s3: S3Server, tmp_path: Path
) -> None:
    """Beginning, three parts and the end, which S3 may answer with 200 and an error in the body."""
    blobs = in_parts(s3.new_url())
    proxy.fail(nth, fault)
    digest = put(blobs, tmp_path)
    with blobs.open(digest) as stream:
        assert stream.read() == LARGE
    assert blobs.leftovers(timedelta(0)) == (nth == 1), (
        "of a beginning that nobody heard of, the second try knows nothing"
    )


def test_a_read_that_breaks_off_goes_on_where_it_was(proxy: FaultyProxy, s3: S3Server, tmp_path: Path) -> None:
    blobs = in_parts(s3.new_url())
    digest = put(blobs, tmp_path)
    proxy.fail(1, Fault.CUT_REPLY)
    blobs.fetch(digest, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == LARGE
    assert [request.split()[0] for request in proxy.requests[-2:]] == ["GET", "GET"]


def test_a_server_that_comes_back_in_mid_download_is_read_on_from(own: S3Server) -> None:
    blobs = make_blobs(own.new_url())
    digest = blobs.put_bytes(LARGE * 2)
    with blobs.open(digest) as stream:
        first = stream.read(1024**2)
        own.kill()
        own.start()
        assert first + stream.read() == LARGE * 2


def test_a_server_killed_in_mid_download_makes_no_file(own: S3Server, tmp_path: Path) -> None:
    blobs = make_blobs(own.new_url())
    digest = blobs.put_bytes(LARGE * 2)
    with blobs.open(digest) as stream:
        stream.read(1024**2)
        own.kill()
        with pytest.raises(Unavailable, match="did not answer"):
            stream.read()
    with pytest.raises(Unavailable):
        blobs.fetch(digest, tmp_path / "copy")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s3"]


def test_a_server_killed_in_mid_upload_has_no_blob_and_takes_it_again(own: S3Server, tmp_path: Path) -> None:
    class Killing(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            if self.tell() > PART_BYTES and own.process.poll() is None:
                own.kill()
            return super().read(size)

        def seekable(self) -> bool:
            return False

    blobs = in_parts(url := own.new_url())
    with pytest.raises(Unavailable):
        blobs._bucket.upload("ab/cd/never", Killing(LARGE))
    own.start()
    assert list(Bucket(url, "blobs_url").list()) == []
    digest = put(blobs, tmp_path)
    assert blobs.has(digest)


def test_what_a_killed_uploader_has_left_is_found_and_given_up(s3: S3Server) -> None:
    blobs = in_parts(url := s3.new_url())
    child = subprocess.Popen([sys.executable, "-c", UPLOADER, url], cwd=HOME)
    try:
        wait_until(lambda: uploads(s3, url))
    finally:
        child.kill()
    assert child.wait() == -signal.SIGKILL
    assert list(blobs.stored()) == []
    assert blobs.leftovers(timedelta(hours=24)) == 0
    assert blobs.leftovers(timedelta(0)) == 1
    assert uploads(s3, url) == []
    assert blobs.leftovers(timedelta(0)) == 0


def test_a_flipped_byte_of_a_blob_in_parts_is_noticed(own: S3Server, tmp_path: Path) -> None:
    blobs = in_parts(url := own.new_url())
    digest = put(blobs, tmp_path)
    (place,) = (path for path in own.files(url).rglob("*") if path.is_file())
    with place.open("r+b") as stream:
        stream.seek(9_000_000)
        stream.write(bytes([LARGE[9_000_000] ^ 1]))
    own.restart()
    with pytest.raises(BlobDamaged, match="put it again"):
        blobs.fetch(digest, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


@pytest.mark.parametrize("make", [make_blobs, make_logs])
@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"AWS_ACCESS_KEY_ID": "NOBODY"}, "InvalidAccessKeyId; give credentials"),
        ({"AWS_SECRET_ACCESS_KEY": "wrong"}, "SignatureDoesNotMatch; give credentials"),
        ({"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}, "set AWS_ACCESS_KEY_ID"),
        ({"AWS_ENDPOINT_URL_S3": "s3.example.com"}, "is a URL like https://host"),
    ],
    ids=["key", "secret", "none", "endpoint"],
)
def test_what_the_store_does_not_take_ends_the_start_with_advice(
    environment: dict[str, str],
    words: str,
    make: Callable[[str], object],
    s3: S3Server,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError, match=words) as refused:
        make(s3.new_url())
    assert s3.secret not in refused.value.message


@pytest.mark.parametrize("make", [make_blobs, make_logs])
def test_a_missing_bucket_ends_the_start_with_advice(make: Callable[[str], object], s3: S3Server) -> None:
    with pytest.raises(ConfigurationError, match=r"no-such-bucket .* NoSuchBucket; make the bucket"):
        make("s3://no-such-bucket/blobs")


@pytest.mark.parametrize("url", ["s3://", "s3://ab/x", "s3://Bucket/x", "s3://bucket/a//b", "s3://bucket/x?y", "s3://u:p@bucket/x"])  # fmt: skip
def test_a_url_that_is_no_place_on_s3_is_refused(url: str) -> None:
    with pytest.raises(ConfigurationError, match="s3://bucket/prefix"):
        make_blobs(url)
    with pytest.raises(ConfigurationError, match="s3://bucket/prefix"):
        make_logs(url)


def test_a_store_that_is_away_at_the_start_is_waited_for(own: S3Server) -> None:
    own.kill()
    blobs, logs = make_blobs(url := own.new_url()), make_logs(url)
    for use in (lambda: blobs.put_bytes(b"x"), lambda: blobs.keep("0" * 64), lambda: logs.append("a", b"x")):
        with pytest.raises(Unavailable):
            use()
    own.start()
    assert blobs.has(blobs.put_bytes(b"x"))
    assert logs.append("a", b"x") == 1


def test_a_bucket_that_vanishes_is_told_as_such(own: S3Server) -> None:
    blobs = make_blobs(own.new_url())
    (own.directory / "data" / own.bucket).rmdir()
    own.restart()
    with pytest.raises((ConfigurationError, NotFound)):
        blobs.put_bytes(b"x")


def test_a_log_is_a_bounded_number_of_objects(s3: S3Server) -> None:
    logs = make_logs(url := s3.new_url())
    line = b"x" * 8191 + b"\n"
    for _ in range(75):
        logs.append("runs/1/1", line)
    objects = [path for path in s3.files(url).rglob("*") if path.is_file()]
    assert [path.stat().st_size for path in sorted(objects)] == [SEGMENT_BYTES, SEGMENT_BYTES, 600 * 1024 - 2 * SEGMENT_BYTES]  # fmt: skip
    assert logs.read("runs/1/1", SEGMENT_BYTES - 4, 8) == (b"xxx\nxxxx", 600 * 1024)
    assert logs.read("runs/1/1", 0, 10**9) == (line * 75, 600 * 1024)


def test_another_process_goes_on_where_a_log_ended(s3: S3Server) -> None:
    url = s3.new_url()
    for size in (10, SEGMENT_BYTES, 10, 2_500_000, 10):
        before = make_logs(url).read("runs/1/1", 0, 0)[1]
        assert make_logs(url).append("runs/1/1", b"x" * size) == before + size
    assert make_logs(url).read("runs/1/1", 0, 10**9)[0] == b"x" * (2_500_030 + SEGMENT_BYTES)


@pytest.mark.parametrize("fault", [Fault.DROP_REPLY, Fault.REFUSE_REQUEST], ids=lambda fault: fault.name)
def test_a_line_whose_answer_was_lost_stands_in_the_log_once(fault: Fault, proxy: FaultyProxy, s3: S3Server) -> None:
    logs = make_logs(s3.new_url())
    logs.append("a", b"one\n")
    proxy.fail(1, fault)
    assert logs.append("a", b"two\n") == 8
    assert logs.read("a", 0, 100) == (b"one\ntwo\n", 8)


def test_a_line_that_failed_is_not_there_twice_when_it_is_appended_again(own: S3Server) -> None:
    logs = make_logs(own.new_url())
    logs.append("a", b"one\n")
    own.kill()
    with pytest.raises(Unavailable):
        logs.append("a", b"two\n")
    own.start()
    assert logs.append("a", b"two\n") == 8
    assert logs.read("a", 0, 100) == (b"one\ntwo\n", 8)


def test_logs_that_share_a_lock_do_not_mix(s3: S3Server) -> None:
    logs = make_logs(s3.new_url())
    assert isinstance(logs, S3Logs)
    first = "runs/0"
    other = next(name for number in range(1, 1000) if logs._stripe(name := f"runs/{number}") is logs._stripe(first))
    for _ in range(3):
        logs.append(first, b"a")
        logs.append(other, b"b")
    assert (logs.read(first, 0, 9), logs.read(other, 0, 9)) == ((b"aaa", 3), (b"bbb", 3))


def test_the_secrets_of_aws_stand_in_no_environment_of_proc(tmp_path: Path) -> None:
    program = (
        "import os; from shared.settings import load; load(); shown = open('/proc/self/environ').read(); "
        "print([name for name in ('AWS_SECRET_ACCESS_KEY', 'AWS_SESSION_TOKEN') if os.environ[name] in shown])"
    )
    secrets = {"AWS_SECRET_ACCESS_KEY": "wJalrXUt", "AWS_SESSION_TOKEN": "FwoGZXIv"}
    told = {
        "STATE_DIR": str(tmp_path),
        "LEDGER_URL": "sqlite://",
        "REDIS_URL": "redis://",
        "BLOBS_URL": "s3://b/c",
        "LOGS_URL": "s3://b/c",
    }
    environment = {"PATH": os.environ["PATH"], **{f"HEADRACE_{key}": value for key, value in told.items()}, **secrets}
    ran = subprocess.run(
        [sys.executable, "-c", program], cwd=HOME, env=environment, capture_output=True, text=True, check=True
    )
    assert ran.stdout == "[]\n"


def test_the_child_of_a_model_sees_nothing_of_aws(s3: S3Server, tmp_path: Path) -> None:
    prepared = Prepared(tmp_path, Path(sys.executable), "")
    passed = child.environment((), 1, prepared, tmp_path)
    code = "import os; print(*sorted(os.environ))"
    running = Warded.start([sys.executable, "-I", "-c", code], log=tmp_path / "log", env=passed, cwd=tmp_path)
    assert running.wait(30)
    seen = (tmp_path / "log").read_text().split()
    assert "HEADRACE_RUN_ID" in seen
    assert [name for name in seen if name.startswith("AWS_")] == []


def test_who_keeps_all_on_disk_does_not_import_boto3(tmp_path: Path) -> None:
    program = (
        "import sys; from shared.blobs import make_blobs; from shared.logs import make_logs; import shared.http; "
        f"make_blobs('file://{tmp_path}/b'); make_logs('file://{tmp_path}/l'); "
        "print([name for name in ('boto3', 'botocore') if name in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", program], cwd=HOME, capture_output=True, text=True, check=True)
    assert ran.stdout == "[]\n"
