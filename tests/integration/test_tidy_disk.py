"""A trainer's disk: what is unused for longest goes first, what is in use stays, and builds beside the janitor succeed."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest

from services.trainer.checkout import Workshop
from services.trainer.disk import Disk
from services.trainer.stock import environments
from services.trainer.tidy import DiskTidy
from shared import catalog
from shared.git import Mirror
from shared.ledger.releases import Release
from shared.locks import unused, using
from shared.settings import Settings
from tests.ledgers import declare

WEEK_S = 7 * 24 * 3600
HOLD = "import sys\nfrom pathlib import Path\nfrom services.trainer.disk import Disk\nwith Disk(Path(sys.argv[1])).using(Path(sys.argv[2])):\n    print('holds', flush=True)\n    sys.stdin.read()\n"


@dataclass
class Machine:
    state: Path

    @property
    def disk(self) -> Disk:
        return Disk(self.state / "trainer")

    def tidy(self, environments: str, config: str = "") -> DiskTidy:
        wanted = catalog.parse(f'{config}\n[keep]\nenvironments = "{environments}"\n'.encode())
        return DiskTidy(self.state, lambda: wanted)

    def put(self, place: Path, size_bytes: int, used_s_ago: float) -> Path:
        place.mkdir(parents=True)
        (place / "file").write_bytes(b"x" * size_bytes)
        with self.disk.using(place):
            pass
        at = time.time() - used_s_ago
        os.utime(self.disk.mark(place), (at, at))
        return place


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    (tmp_path / "trainer" / "environments" / "locks").mkdir(parents=True)
    return Machine(tmp_path)


def old(path: Path) -> Path:
    os.utime(path, (time.time() - WEEK_S,) * 2)
    return path


def test_the_longest_unused_goes_first_whatever_it_is_until_the_rest_fits(machine: Machine) -> None:
    disk = machine.disk
    oldest = machine.put(disk.checkouts / ("a" * 40), 1000, 300)
    middle = machine.put(disk.environments / "e1", 1000, 200)
    newest = machine.put(disk.bundles / "b1", 1000, 100)
    (disk.environments / "locks" / "kept.txt").write_text("six==1.17.0")
    report = machine.tidy("2kB").tidy()
    assert (oldest.exists(), middle.exists(), newest.exists()) == (False, True, True)
    assert (report.taken["checkouts"].number, report.taken["checkouts"].size_bytes) == (1, 1000)
    with disk.using(middle):
        pass  # used again: now the other one is the longest unused
    machine.tidy("1kB").tidy()
    assert (middle.exists(), newest.exists()) == (True, False)
    assert (disk.environments / "locks" / "kept.txt").exists(), "a resolution is kept for ever"
    assert list(disk.trash.iterdir()) == []


def test_a_dry_run_says_what_would_go_and_takes_nothing(machine: Machine) -> None:
    place = machine.put(machine.disk.environments / "e1", 1000, 300)
    before = machine.disk.used_at(place)
    report = machine.tidy("1B").tidy(dry=True)
    assert report.taken["environments"].size_bytes == 1000
    assert (place.exists(), machine.disk.used_at(place)) == (True, before)


def test_what_another_process_uses_stays_until_that_ends_or_is_killed(machine: Machine) -> None:
    place = machine.put(machine.disk.environments / "e1", 1000, 300)
    argv = [sys.executable, "-c", HOLD, str(machine.state / "trainer"), str(place)]
    root = Path(__file__).parents[2]
    with subprocess.Popen(argv, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as user:
        assert user.stdout is not None
        assert user.stdout.readline() == "holds\n"
        assert machine.tidy("1B").tidy().taken == {}
        user.kill()
    assert machine.tidy("1B").tidy().taken["environments"].number == 1
    assert not place.exists()


def test_environments_are_listed_with_their_size_their_last_use_and_what_runs_in_them(machine: Machine) -> None:
    disk, scratch = machine.disk, machine.disk.scratch / "17-1"
    idle = machine.put(disk.environments / "e1", 1000, 300)
    busy = machine.put(disk.environments / "e2", 2000, 100)
    for place in (idle, busy):
        (place / "bin").mkdir()
        (place / "bin/python").symlink_to(sys.executable)
    (idle / "requirements.txt").write_text(
        "six==1.17.0 \\\n    --hash=sha256:0\niniconfig==2.1.0 ; python_version > '3' \\\n"
    )
    (disk.environments / ".draft-e3-0badcafe/bin").mkdir(parents=True)
    argv = [
        str(busy / "bin/python"),
        "-c",
        "import sys; print('up', flush=True); sys.stdin.read()",
        f"{scratch}/job.json",
    ]
    with disk.using(busy), subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "up\n"
        first, second = environments(disk)
        assert machine.tidy("1GB").tidy(everything=True).taken["environments"].number == 1
        child.communicate()
    assert (first.name, first.in_use, first.users) == ("e2", True, ("17-1",))
    assert (second.name, second.in_use, second.users) == ("e1", False, ())
    assert second.packages == ("six==1.17.0", "iniconfig==2.1.0")
    assert (second.size_bytes > 1000, first.size_bytes > 2000) == (True, True)
    assert 290 < time.time() - second.used_at < 400
    assert (idle.exists(), busy.exists()) == (False, True)


def test_an_environment_that_is_being_built_stays(machine: Machine) -> None:
    place = machine.put(machine.disk.environments / "e1", 1000, 300)
    draft = machine.disk.environments / ".draft-e2-0badcafe"
    draft.mkdir()
    old(draft)
    locks = machine.disk.environments / "locks"
    with using(locks / ".e1.lock"), using(locks / ".e2.lock"):
        assert machine.tidy("1B").tidy().taken == {}
    report = machine.tidy("1B").tidy()
    assert {kind: one.number for kind, one in report.taken.items()} == {"drafts": 1, "environments": 1}
    assert not place.exists()


def test_scratch_of_a_killed_attempt_goes_after_a_day_and_that_of_a_living_one_never(machine: Machine) -> None:
    disk = machine.disk
    stale, young, living = (disk.scratch / name for name in ("1-1", "2-1", "3-1"))
    for place in (stale, young, living):
        machine.put(place, 10, WEEK_S)
    old(stale), old(living)
    with disk.using(living):
        report = machine.tidy("1GB").tidy()
    assert (stale.exists(), young.exists(), living.exists()) == (False, True, True)
    assert report.taken["scratch"].number == 1


def test_marks_of_attempts_that_have_ended_go_too(machine: Machine) -> None:
    place = machine.disk.scratch / "9-1"
    with machine.disk.using(place):
        pass
    old(machine.disk.mark(place))
    machine.tidy("1GB").tidy()
    assert not machine.disk.mark(place).exists()


def test_mirrors_of_repositories_that_nobody_names_any_more_go(machine: Machine) -> None:
    def mirror(url: str, parts: bool = False) -> Path:
        directory = Mirror(machine.state / "git", url, parts=parts).directory
        directory.mkdir(parents=True)
        return old(directory)

    named, gone = mirror("https://git.example.com/m.git"), mirror("https://git.example.com/other.git")
    churn = mirror("https://git.example.com/many.git", parts=True)
    config = '[models.m]\nrepository = "https://git.example.com/m.git"\n'
    config += '[models.churn]\nrepository = "https://git.example.com/many.git"\nsubdirectory = "churn"\n'
    with using(gone.with_suffix(".lock")):
        machine.tidy("1GB", config).tidy()
        assert gone.exists(), "a fetch is under way"
    report = machine.tidy("1GB", config).tidy()
    assert (named.exists(), churn.exists(), gone.exists(), report.taken["mirrors"].number) == (True, True, False, 1)


def test_a_kill_after_the_move_leaves_trash_that_the_next_turn_empties(machine: Machine) -> None:
    left = machine.disk.trash / "e1-0badcafe"
    (left / "lib").mkdir(parents=True)
    (left / "lib" / "module.py").write_text("x")
    (left / "lib").chmod(0o500)
    left.chmod(0o500)
    machine.tidy("1GB").tidy()
    assert not left.exists()


def test_who_waited_for_a_place_that_was_taken_holds_the_lock_that_counts(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    began, held = threading.Event(), threading.Event()

    def use() -> None:
        began.set()
        with using(mark):
            held.set()
            ended.wait(20)

    ended = threading.Event()
    with unused(mark) as free:
        assert free
        user = threading.Thread(target=use)
        user.start()
        assert began.wait(20)
        mark.unlink()
    assert held.wait(20)
    with unused(mark) as free:
        assert not free
    ended.set()
    user.join()


REQUIREMENTS = ("six==1.17.0", "iniconfig==2.1.0", "six==1.16.0")


@pytest.fixture
def releases(tmp_path: Path) -> tuple[str, list[Release]]:
    """A repository with a commit for each of the requirements."""
    place = tmp_path / "repository"
    place.mkdir()

    def git(*words: str) -> str:
        author = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "init.defaultBranch=main"]
        done = subprocess.run(["git", *author, *words], cwd=place, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    git("init", "-q")
    found = []
    for number, requirement in enumerate(REQUIREMENTS):
        (place / "requirements.txt").write_text(requirement + "\n")
        git("add", "-A")
        git("commit", "-q", "-m", str(number))
        found.append(Release(number, "delays", f"v{number}", git("rev-parse", "HEAD"), declare(), datetime.now(UTC)))
    return f"file://{place}", found


def settings(state: Path) -> Settings:
    return Settings(state_dir=state, ledger_url="sqlite://", redis_url="r", blobs_url="b", logs_url="l")


def imports(python: Path, requirement: str) -> None:
    module = requirement.partition("==")[0]
    subprocess.run([python, "-I", "-c", f"import {module}"], check=True, capture_output=True)


def test_a_janitor_that_takes_all_it_can_disturbs_no_build_and_no_use(
    tmp_path: Path, machine: Machine, releases: tuple[str, list[Release]]
) -> None:
    url, found = releases
    config = f'[models.delays]\nrepository = "{url}"\n'
    workshop, tidy, done = Workshop(settings(machine.state)), machine.tidy("1B", config), threading.Event()

    def work(index: int) -> None:
        for _ in range(3):
            with workshop.prepared(catalog.Model(repository=url), found[index], lambda text: None) as prepared:
                imports(prepared.python, REQUIREMENTS[index])
                assert (prepared.checkout / "requirements.txt").exists()

    taken: dict[str, int] = {}

    def clean() -> None:
        while not done.is_set():
            for kind, count in tidy.tidy().taken.items():
                taken[kind] = taken.get(kind, 0) + count.number

    with ThreadPoolExecutor(4) as pool, ExitStack() as end:
        end.callback(done.set)
        janitor = pool.submit(clean)
        for job in [pool.submit(work, index) for index in range(3)]:
            job.result()
        done.set()
        janitor.result()
    assert taken["environments"] > 0, "it had something to take"
    tidy.tidy()
    assert [path for path in machine.disk.environments.iterdir() if path.name != "locks"] == []
