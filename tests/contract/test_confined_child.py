"""What a model's code can take and reach: its author's rights and no more, whether or not the platform runs as root."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from headrace.warded import Confined, Warded

from services.trainer.checkout import Workshop
from services.trainer.failures import AttemptFailed
from services.trainer.limits import machine_memory
from services.trainer.users import Users
from shared import declaration
from shared.catalog import Limits, Model
from shared.errors import ConfigurationError, Unavailable
from shared.ledger.releases import Release
from shared.logs import DiskLogs
from shared.settings import Settings
from shared.values import Bytes
from tests.children import train

UIDS = "293000-293003"
MB = 1000**2
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can start a process of another user")


def processes(mark: str) -> list[int]:
    """Living processes that carry the mark in their environment."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if mark.encode() in path.read_bytes() and b") Z " not in (path.parent / "stat").read_bytes():
                found.append(int(path.parent.name))
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
    return found


def public_python() -> str:
    """A Python that every user of this machine may run."""
    for path in (os.path.realpath(sys.executable), "/usr/bin/python3", "/usr/local/bin/python3"):
        if os.path.exists(path) and all(parent.stat().st_mode & 0o001 for parent in Path(path).resolve().parents):
            return path
    raise AssertionError(
        "there is no Python here that another user could run: install one outside of private directories"
    )


@pytest.fixture
def public_place() -> Iterator[Path]:
    """A directory that another user can go through: pytest's own are private."""
    place = Path(tempfile.mkdtemp(prefix="headrace-test-"))
    place.chmod(0o711)
    yield place
    shutil.rmtree(place)


FORKS = """
import time
while True:
    try:
        os.fork()
    except OSError:
        time.sleep(0.01)
"""
KILL = """
import time
child = os.fork()
if child == 0:
    time.sleep(60)
os.kill(-1, 9)
os._exit(0 if os.waitpid(child, 0)[1] != 9 else 3)
"""
MANY = """
import time
for _ in range(80):
    if os.fork() == 0:
        os.setsid()
        time.sleep(60)
        os._exit(0)
time.sleep(60)
"""
TAKES = {
    "memory in one process": ("taken = bytearray(400_000_000)\nimport time\ntime.sleep(60)", "memory_limit"),
    "memory in many processes": (
        "import time\nfor _ in range(4):\n    if os.fork() == 0:\n        taken = bytearray(90_000_000)\n        time.sleep(60)\ntime.sleep(60)",
        "memory_limit",
    ),
    "processes": (MANY, "process_limit"),
    "many files": (
        "import time\nfor n in range(40):\n    (job.scratch / str(n)).write_bytes(bytes(1_000_000))\ntime.sleep(60)",
        "disk_limit",
    ),
    "one file": (
        "with open(job.scratch / 'large', 'wb') as stream:\n    stream.write(bytes(40_000_000))",
        "disk_limit",
    ),
}


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("name", TAKES)
def test_who_takes_more_than_the_limit_is_stopped_and_told_which(tmp_path: Path, name: str) -> None:
    body, kind = TAKES[name]
    mark = f"HEADRACE_TEST={uuid.uuid4()}"
    limits = Limits(memory=Bytes(200 * MB), processes=50, disk=Bytes(20 * MB))
    with pytest.raises(AttemptFailed) as failed:
        train(tmp_path, body, limits=limits, env=dict([mark.split("=")]))
    assert failed.value.failure.kind == kind, failed.value.failure
    assert not failed.value.failure.transient
    assert processes(mark) == []


@pytest.mark.usefixtures("way")
def test_what_processes_share_is_not_counted_twice(tmp_path: Path) -> None:
    body = """
import mmap, time
shared = mmap.mmap(-1, 100_000_000)
shared.write(bytes(100_000_000))
children = []
for _ in range(4):
    child = os.fork()
    if child == 0:
        sum(shared[::4096])
        time.sleep(1.5)
        os._exit(0)
    children.append(child)
for child in children:
    os.waitpid(child, 0)
return {"a": 1}
"""
    train(tmp_path, body, limits=Limits(memory=Bytes(300 * MB)))


@pytest.mark.usefixtures("way")
def test_a_chatty_training_goes_on_and_its_log_keeps_head_and_tail(tmp_path: Path) -> None:
    body = "print('the first line', flush=True)\nfor _ in range(200):\n    print('x' * 10_000)\nprint('the last line')\nreturn {'a': 1}"
    train(tmp_path, body, limits=Limits(log=Bytes(100_000)))
    text, size = DiskLogs(tmp_path / "logs").read("runs/1/1", 0, 10 * MB)
    assert size < 101_000
    assert (b"the first line" in text, b"the last line" in text, b"bytes were cut out here" in text) == (True,) * 3


def test_without_a_limit_of_its_own_a_training_may_take_most_of_the_machine() -> None:
    assert MB < machine_memory() <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


SEEN = """
import resource
(job.scratch / "seen.json").write_text(json.dumps({
    "descriptors": sorted(int(name) for name in os.listdir("/proc/self/fd")),
    "variables": sorted(os.environ), "uid": os.getuid(), "groups": os.getgroups(),
    "capabilities": [line.split()[1] for line in open("/proc/self/status") if line.startswith(("CapEff", "CapBnd"))],
    "privileges": [line.split()[1] for line in open("/proc/self/status") if line.startswith("NoNewPrivs")],
    "limits": [resource.getrlimit(which)[1] for which in (resource.RLIMIT_NOFILE, resource.RLIMIT_FSIZE, resource.RLIMIT_CORE)],
    "out_of_memory": open("/proc/self/oom_score_adj").read().strip(),
}))
return {"a": 1}
"""


def seen(place: Path) -> dict[str, object]:
    return dict(json.loads((place / "scratch" / "work" / "seen.json").read_text()))


@pytest.mark.usefixtures("way")
def test_a_child_has_three_descriptors_the_listed_variables_and_no_rights_of_root(tmp_path: Path) -> None:
    with open(tmp_path / "secret", "w") as stream:
        os.set_inheritable(stream.fileno(), True)
        train(
            tmp_path, SEEN, limits=Limits(open_files=512, disk=Bytes(30 * MB)), env={"FLIGHTS_URL": "postgresql://h/d"}
        )
    found = seen(tmp_path)
    assert found["descriptors"] == [0, 1, 2, 3]  # 3 reads the list
    expected = {
        "PATH",
        "HOME",
        "TMPDIR",
        "LANG",
        "PYTHONUNBUFFERED",
        "HEADRACE_RUN_ID",
        "CUDA_VISIBLE_DEVICES",
        "HIP_VISIBLE_DEVICES",
    }
    assert set(found["variables"]) - {"LC_CTYPE", "OMP_WAIT_POLICY", "OPENBLAS_THREAD_TIMEOUT"} == expected | {
        "FLIGHTS_URL"
    }  # type: ignore[call-overload]
    assert set(found["capabilities"]) == {"0" * 16} if os.geteuid() == 0 else True  # type: ignore[call-overload]
    assert (found["privileges"], found["out_of_memory"]) == (["1"], "1000")
    assert found["limits"] == [512, 30 * MB, 0]


@pytest.mark.usefixtures("way")
def test_what_is_read_only_stays_so_for_a_child_of_root(tmp_path: Path) -> None:
    """An environment is read-only; a library that caches beside itself where it can must not change it by accident."""
    (tmp_path / "kept").write_text("as built")
    (tmp_path / "kept").chmod(0o444)
    with pytest.raises(AttemptFailed, match="PermissionError"):
        train(tmp_path, f"open({str(tmp_path / 'kept')!r}, 'a').write('poison')")


OWNER = """
import os, sys
from pathlib import Path
from headrace.warded import Confined, Warded
from shared import settings
owner, user = (int(uid) if uid else None for uid in sys.argv[3].split(":"))
if owner is not None:
    import ctypes
    os.setgid(owner)
    os.setuid(owner)
    ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)  # as a process is that began as this user
settings.hide()
child = Warded.start([sys.argv[4], "-I", "-S", "-c", sys.argv[2]], log=Path(sys.argv[1]), env={"HANDED_ON": "x"}, python=sys.argv[4], confined=Confined(64, 10**6, None, user))
child.wait(30)
assert "PLANTED" in os.environ  # Python's own copy stays
"""
LOOK = """
import os
parent = os.getppid()
owner = int([line.split()[1] for line in open("/proc/%d/status" % parent) if line.startswith("PPid")][0])
for pid in (parent, owner):
    for name in ("environ", "mem"):
        try:
            with open("/proc/%d/%s" % (pid, name), "rb") as stream:
                text = stream.read() if name == "environ" else b"MEMORY CAN BE READ"
            print("read", name, text)
        except OSError as error:
            print("refused", name)
"""


@pytest.mark.parametrize(
    "users",
    [":", pytest.param(":293004", marks=needs_root), pytest.param("293005:", marks=needs_root)],
    ids=["the worker's user", "a user of its own", "the worker's user, who is not root"],
)
def test_neither_worker_nor_warden_can_be_looked_into_by_the_child(public_place: Path, users: str) -> None:
    public_place.chmod(0o777)
    secret = f"planted-{uuid.uuid4()}"
    log = public_place / "log"
    argv = [sys.executable, "-c", OWNER, str(log), LOOK, users, public_python()]
    environment = {"PATH": os.environ["PATH"], "PLANTED": f"redis://:{secret}@127.0.0.1/0", "SOME_TOKEN": secret}
    done = subprocess.run(
        argv, env=environment, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    said = log.read_text()
    assert said.count("environ") == said.count(" mem") == 2, said
    assert secret not in said
    assert "MEMORY CAN BE READ" not in said


@needs_root
def test_a_user_of_its_own_reaches_its_scratch_and_nothing_of_the_platforms(public_place: Path) -> None:
    state = public_place / "state"
    state.mkdir(mode=0o700)
    (state / "ledger").mkdir(mode=0o700)
    (state / "settings.json").write_text("the password")
    (state / "settings.json").chmod(0o600)
    (state / "ledger" / "ledger.db").write_text("tokens")
    users = Users(UIDS, state / "users")
    users.open_way(state)
    body = (
        f"""
import signal
tried = {{}}
for name, act in {{
    "settings": lambda: open({str(state / "settings.json")!r}).read(),
    "ledger": lambda: open({str(state / "ledger" / "ledger.db")!r}).read(),
    "list": lambda: os.listdir({str(state)!r}),
    "write": lambda: open({str(state / "planted")!r}, "w"),
    "source": lambda: open(__file__, "a"),
    "warden": lambda: os.kill(os.getppid(), signal.SIGKILL),
    "root": lambda: os.setuid(0),
}}.items():
    try:
        act()
        tried[name] = "done"
    except OSError as error:
        tried[name] = type(error).__name__
(job.scratch / "tried.json").write_text(json.dumps(tried))
"""
        + SEEN
    )
    train(public_place, body, users=users, python=public_python())
    tried = json.loads((public_place / "scratch" / "work" / "tried.json").read_text())
    assert set(tried.values()) == {"PermissionError"}, tried
    found = seen(public_place)
    assert (found["uid"], found["groups"]) == (293000, [])
    assert stat.S_IMODE((public_place / "scratch").stat().st_mode) == 0o700


@needs_root
@pytest.mark.parametrize(
    ("body", "kind"), [(FORKS, "process_limit"), (KILL, "bad_exit")], ids=["a fork bomb", "kill(-1)"]
)
def test_a_user_of_its_own_harms_nobody_else(public_place: Path, body: str, kind: str) -> None:
    mark = f"HEADRACE_TEST={uuid.uuid4()}"
    bystander = subprocess.Popen(["sleep", "300"])
    users, limits = Users(UIDS, public_place / "users"), Limits(processes=40)
    try:
        with pytest.raises(AttemptFailed) as failed:
            train(public_place, body, limits=limits, users=users, python=public_python(), env=dict([mark.split("=")]))
        assert failed.value.failure.kind == kind, failed.value.failure
        assert bystander.poll() is None
        assert processes(mark) == []
    finally:
        bystander.kill()
        bystander.wait()


@needs_root
def test_what_the_trainer_prepares_can_be_read_by_a_user_of_its_own_and_not_found_by_looking(
    public_place: Path,
) -> None:
    repository = public_place / "model.git"
    repository.mkdir()
    (repository / "pyproject.toml").write_text('[project]\nname = "m"\nversion = "1"\ndependencies = []\n')
    (repository / "src").mkdir()
    (repository / "src" / "small.py").write_text("QUALITY = 1\n")
    git = ["git", "-C", str(repository), "-c", "user.name=a", "-c", "user.email=a@example.com"]
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "x"]):
        subprocess.run([*git, *words], check=True)
    commit = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    state = public_place / "state"
    was = os.umask(0o077)  # as in the stack
    try:
        state.mkdir()
        told = {"ledger_url": "sqlite://", "redis_url": "r", "blobs_url": "b", "logs_url": "l", "child_uids": UIDS}
        workshop = Workshop(Settings(state_dir=state, **told))
        release = Release(1, "m", "v1", commit, declaration.example(), datetime.now(UTC))
        with workshop.prepared(Model(repository=repository.as_uri()), release, lambda _: None) as prepared:
            environment = prepared.python.parent.parent
            code = f"""
import os
print(open({str(prepared.checkout / "src" / "small.py")!r}).read(), open({str(environment / "pyvenv.cfg")!r}).read(30))
for act in (lambda: os.listdir({str(prepared.checkout.parent)!r}), lambda: os.listdir({str(environment.parent)!r}),
            lambda: os.listdir({str(state / "git")!r}), lambda: open({str(environment / "lib" / "x")!r}, "w"),
            lambda: open({str(prepared.checkout / "x")!r}, "w"), lambda: os.listdir({str(state / "trainer" / "uv-cache")!r})):
    try:
        act()
        print("REACHED")
    except PermissionError:
        print("refused")
"""
            log = public_place / "log"
            argv = [public_python(), "-I", "-S", "-c", code]
            child = Warded.start(argv, log=log, env={}, confined=Confined(64, 10**6, None, 293000))
            assert (child.wait(30) or child.kill()) is not None
    finally:
        os.umask(was)
    said = log.read_text()
    assert "QUALITY = 1" in said, said
    assert (said.count("refused"), said.count("REACHED")) == (6, 0), said


@needs_root
def test_each_child_has_another_user_and_one_too_many_waits(tmp_path: Path) -> None:
    users, elsewhere = Users("293000-293001", tmp_path), Users("293000-293001", tmp_path)
    with users.one() as first, elsewhere.one() as second:
        assert (first, second) == (293000, 293001)
        with pytest.raises(Unavailable, match="all 2 user ids"), users.one():
            pass
    with users.one() as again:
        assert again == 293000


@needs_root
def test_a_place_that_another_user_cannot_reach_ends_the_start_with_advice(tmp_path: Path, public_place: Path) -> None:
    harness = tmp_path / "harness.py"
    harness.touch()
    with pytest.raises(ConfigurationError, match="private directory"):
        Users(UIDS, tmp_path / "users").verify(harness, tmp_path / "scratch")


def test_a_confined_program_that_does_not_exist_still_says_so(tmp_path: Path) -> None:
    child = Warded.start(["/no/such/program"], log=tmp_path / "log", env={}, confined=Confined(64, 10**6))
    ending = child.wait(10)
    assert ending is not None
    assert ending.code == 127
    assert "/no/such/program" in (tmp_path / "log").read_text()
