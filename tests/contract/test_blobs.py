"""The blob store: what it promises, on every store that there is."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path

import pytest

from shared.blobs import BlobDamaged, Blobs, DiskBlobs, make_blobs, materialise, store_tree
from shared.errors import ConfigurationError, NotFound, Refused
from shared.manifest import File, Manifest, read_tree
from tests.s3_server import S3Server

HOME = Path(__file__).parents[2]


@dataclass
class Store:
    """A store, and the directory in which its blobs are files."""

    url: str
    root: Path
    server: S3Server | None = None

    @contextmanager
    def altered(self) -> Iterator[Path]:
        """The file of the one blob, for something to be done to it."""
        (place,) = self.files()
        yield place
        if self.server is not None:
            self.server.restart()

    def files(self) -> list[Path]:
        return [path for path in self.root.rglob("*") if path.is_file() and path.parent.name != "tmp"]

    def age(self, hours: float) -> None:
        """Make the one blob so old."""
        then = time.time() - hours * 3600
        with self.altered() as place:
            os.utime(place, (then, then))


@pytest.fixture(params=["disk", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "disk":
        return Store(f"file://{tmp_path}/blobs", tmp_path / "blobs")
    server = request.getfixturevalue("s3")
    assert isinstance(server, S3Server)
    url = server.new_url("blobs")
    return Store(url, server.files(url), server)


@pytest.fixture
def blobs(store: Store) -> Blobs:
    return make_blobs(store.url)


@pytest.fixture
def disk(tmp_path: Path) -> Store:
    return Store(f"file://{tmp_path}/blobs", tmp_path / "blobs")


def make_tree(root: Path) -> Manifest:
    for name in ("model/weights.bin", "model/sub/b.txt", "metrics.json", "empty"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"" if name == "empty" else name.encode() * 50_000)
    return read_tree(root)


@pytest.mark.parametrize("data", [b"", b"x", b"0123456789" * 700_000])
def test_what_is_put_is_read_back(data: bytes, blobs: Blobs, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(data)
    digest = blobs.put_file(tmp_path / "file")
    assert digest == sha256(data).hexdigest() == blobs.put_bytes(data)
    assert blobs.has(digest)
    with blobs.open(digest) as stream:
        assert stream.read() == data
    (tmp_path / "copy").write_text("replaced")
    blobs.fetch(digest, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == data


def test_a_blob_that_was_never_put_is_not_found(blobs: Blobs, tmp_path: Path) -> None:
    assert not blobs.has("0" * 64)
    with pytest.raises(NotFound):
        blobs.open("0" * 64)
    with pytest.raises(NotFound):
        blobs.fetch("0" * 64, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


@pytest.mark.parametrize(
    "digest", ["", "../" * 21 + "x", "A" * 64, "0" * 63, "0" * 65, "0" * 64 + "\n", "sha256:" + "0" * 64]
)
def test_what_is_no_digest_is_refused(digest: str, blobs: Blobs, tmp_path: Path) -> None:
    for ask in (blobs.has, blobs.open, lambda text: blobs.fetch(text, tmp_path / "copy")):
        with pytest.raises(Refused, match="64 hex digits"):
            ask(digest)


@pytest.mark.parametrize("position", [0, 1_500_000, 3 * 1024**2 - 1])
def test_a_flipped_byte_is_noticed_before_the_last_piece_is_handed_out(
    position: int, blobs: Blobs, store: Store, tmp_path: Path
) -> None:
    digest = blobs.put_bytes(b"\0" * 3 * 1024**2)
    with store.altered() as place, place.open("r+b") as stream:
        stream.seek(position)
        stream.write(b"\1")
    with pytest.raises(BlobDamaged), blobs.open(digest) as damaged:
        damaged.read()
    handed_out: list[bytes] = []
    with pytest.raises(BlobDamaged), blobs.open(digest) as damaged:
        handed_out.extend(iter(lambda: damaged.read(65_536), b""))
    assert len(b"".join(handed_out)) < 3 * 1024**2
    with pytest.raises(BlobDamaged):
        blobs.fetch(digest, tmp_path / "copy")
    assert [path.name for path in tmp_path.iterdir() if path.name != "blobs"] == []


@pytest.mark.parametrize("left", [0, 10])
def test_a_blob_that_lost_its_end_is_noticed(left: int, blobs: Blobs, store: Store, tmp_path: Path) -> None:
    digest = blobs.put_bytes(b"0123456789" * 2)
    with store.altered() as place:
        os.truncate(place, left)
    with pytest.raises(BlobDamaged), blobs.open(digest) as damaged:
        damaged.read()


def test_putting_the_bytes_again_heals_a_damaged_blob(blobs: Blobs, store: Store, tmp_path: Path) -> None:
    digest = blobs.put_bytes(b"good")
    with store.altered() as place:
        place.write_bytes(b"evil")
    blobs.put_bytes(b"good")
    with blobs.open(digest) as stream:
        assert stream.read() == b"good"


def test_a_link_a_pipe_and_a_directory_are_not_put(blobs: Blobs, store: Store, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/etc/passwd")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "directory").mkdir()
    for name in ("link", "pipe", "directory", "missing"):
        with pytest.raises(Refused, match="invalid_bundle"):
            blobs.put_file(tmp_path / name)
    assert store.files() == []


def test_blobs_are_for_their_owner_alone(disk: Store, tmp_path: Path) -> None:
    blobs = make_blobs(disk.url)
    blobs.put_bytes(b"secret model")
    (place,) = disk.files()
    assert place.stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "blobs/tmp").stat().st_mode & 0o777 == 0o700


def test_a_writer_killed_in_the_middle_leaves_nothing_that_counts(disk: Store, tmp_path: Path) -> None:
    blobs = make_blobs(disk.url)
    with (tmp_path / "large").open("wb") as stream:
        stream.truncate(4 * 1024**3)  # takes no disk; long enough to be killed in
    program = "import sys, pathlib; from shared.blobs import DiskBlobs; DiskBlobs(pathlib.Path(sys.argv[1])).put_file(pathlib.Path(sys.argv[2]))"
    child = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / "blobs"), str(tmp_path / "large")], cwd=HOME
    )
    try:
        wait_until(lambda: any(path.stat().st_size for path in (tmp_path / "blobs/tmp").iterdir()))
    finally:
        child.kill()
    assert child.wait() == -signal.SIGKILL
    assert disk.files() == []
    (left,) = (tmp_path / "blobs/tmp").iterdir()
    os.utime(left, (0, 0))
    assert blobs.has(DiskBlobs(tmp_path / "blobs").put_bytes(b"the next one"))
    assert not left.exists()


def wait_until(condition: Callable[[], bool], timeout_s: float = 20) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not come true in time"
        threading.Event().wait(0.002)


def test_many_writers_of_the_same_bytes_make_one_blob(blobs: Blobs, store: Store, tmp_path: Path) -> None:
    data = b"same" * 500_000
    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(lambda _: blobs.put_bytes(data), range(8)))) == 1
    assert len(store.files()) == 1
    assert not [path for path in store.root.rglob("*") if path.is_file() and path.name[0] == "."]


def test_all_that_is_stored_is_named_with_its_time_and_size(blobs: Blobs, store: Store) -> None:
    assert list(blobs.stored()) == []
    put = {blobs.put_bytes(data): len(data) for data in (b"", b"one", b"two" * 1000)}
    (store.root / "README").write_text("not ours")
    found = {sha256: (time, size) for sha256, time, size in blobs.stored()}
    assert {sha256: size for sha256, (_, size) in found.items()} == put
    assert all(abs(datetime.now(UTC) - time) < timedelta(minutes=1) for time, _ in found.values())


def test_a_removed_blob_is_gone_and_may_be_removed_again(blobs: Blobs) -> None:
    digest, other = blobs.put_bytes(b"one"), blobs.put_bytes(b"two")
    blobs.remove(digest)
    blobs.remove(digest)
    assert [sha256 for sha256, _, _ in blobs.stored()] == [other]
    assert not blobs.has(digest)


def test_what_is_kept_is_fresh_and_not_removed_as_old(blobs: Blobs, store: Store, tmp_path: Path) -> None:
    digest = blobs.put_bytes(b"wanted")
    store.age(hours=30)
    ((_, time, _),) = blobs.stored()
    assert datetime.now(UTC) - time > timedelta(hours=29)
    assert blobs.keep(digest)
    ((_, time, _),) = blobs.stored()
    assert datetime.now(UTC) - time < timedelta(hours=12)
    blobs.remove(digest, older_than=timedelta(hours=24))
    with blobs.open(digest) as stream:
        assert stream.read() == b"wanted"
    store.age(hours=30)
    blobs.remove(digest, older_than=timedelta(hours=24))
    assert not blobs.has(digest)
    assert not blobs.keep(digest)


def test_storing_a_tree_keeps_what_is_there_already(blobs: Blobs, store: Store, tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/weights").write_bytes(b"same as ever")
    manifest = read_tree(tmp_path / "tree")
    blobs.put_bytes(b"same as ever")
    store.age(hours=30)
    store_tree(blobs, tmp_path / "tree", manifest)
    ((_, time, _),) = blobs.stored()
    assert datetime.now(UTC) - time < timedelta(hours=12)


def test_only_old_leftovers_of_killed_writers_are_removed(tmp_path: Path) -> None:
    blobs = DiskBlobs(tmp_path / "blobs")
    for name, hours in (("old", 25), ("new", 1)):
        (tmp_path / "blobs/tmp" / name).write_text("half of it")
        os.utime(tmp_path / "blobs/tmp" / name, (time.time() - hours * 3600,) * 2)
    assert blobs.leftovers(timedelta(hours=24)) == 1
    assert [path.name for path in (tmp_path / "blobs/tmp").iterdir()] == ["new"]


def test_a_tree_comes_back_as_it_was_stored(blobs: Blobs, tmp_path: Path) -> None:
    manifest = make_tree(tmp_path / "tree")
    store_tree(blobs, tmp_path / "tree", manifest)
    store_tree(blobs, tmp_path / "tree", manifest)
    materialise(blobs, manifest, tmp_path / "copy")
    assert read_tree(tmp_path / "copy") == manifest


def test_a_file_that_changes_under_the_store_is_refused(blobs: Blobs, tmp_path: Path) -> None:
    manifest = make_tree(tmp_path / "tree")
    (tmp_path / "tree/metrics.json").write_text("{}")
    with pytest.raises(Refused, match=r"metrics\.json changed"):
        store_tree(blobs, tmp_path / "tree", manifest)


def test_a_file_replaced_by_a_link_is_refused(blobs: Blobs, tmp_path: Path) -> None:
    manifest = make_tree(tmp_path / "tree")
    (tmp_path / "tree/metrics.json").unlink()
    (tmp_path / "tree/metrics.json").symlink_to("/etc/passwd")
    with pytest.raises(Refused, match="invalid_bundle"):
        store_tree(blobs, tmp_path / "tree", manifest)


def test_eight_at_once_materialise_one_directory(blobs: Blobs, tmp_path: Path) -> None:
    manifest = make_tree(tmp_path / "tree")
    store_tree(blobs, tmp_path / "tree", manifest)
    together = threading.Barrier(8)

    def make(_: int) -> tuple[int, Manifest]:
        together.wait()
        materialise(blobs, manifest, tmp_path / "copies/one")
        return (tmp_path / "copies/one").stat().st_ino, read_tree(tmp_path / "copies/one")

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(make, range(8)))
    assert all(result == results[0] for result in results)
    assert results[0][1] == manifest
    assert sorted(path.name for path in (tmp_path / "copies").iterdir()) == [".one.lock", "one"]


def test_a_damaged_copy_is_put_right_in_place(blobs: Blobs, tmp_path: Path) -> None:
    manifest = make_tree(tmp_path / "tree")
    store_tree(blobs, tmp_path / "tree", manifest)
    materialise(blobs, manifest, tmp_path / "copy")
    (tmp_path / "copy/model/weights.bin").write_text("tampered")
    (tmp_path / "copy/metrics.json").unlink()
    (tmp_path / "copy/empty").unlink()
    (tmp_path / "copy/empty").symlink_to(tmp_path / "tree/empty")
    (tmp_path / "copy/__pycache__").mkdir()
    materialise(blobs, manifest, tmp_path / "copy")
    assert read_tree(tmp_path / "copy") == manifest
    assert (tmp_path / "copy/__pycache__").exists()


def test_a_tree_with_a_lost_blob_does_not_appear(blobs: Blobs, tmp_path: Path) -> None:
    manifest = Manifest(files=(File(path="a", sha256="0" * 64, size_bytes=1),))
    with pytest.raises(NotFound):
        materialise(blobs, manifest, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


@pytest.mark.parametrize(
    "url", ["", "/srv/blobs", "s4://bucket", "file://host/srv", "file:relative", "https://example.com/"]
)
def test_an_unknown_store_is_refused(url: str) -> None:
    with pytest.raises(ConfigurationError, match="file:///directory"):
        make_blobs(url)
