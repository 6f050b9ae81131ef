"""What an owner may rely on: the child's end is told, nothing that it started outlives it, and no pipe can hold anybody up."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest
from headrace.warded import Confined, Ending, Warded

ENVIRONMENT = {"PATH": os.environ["PATH"], "PYTHONDONTWRITEBYTECODE": "1"}

# Starts three daemons, each forked twice with a session of its own at every step, then does what the test appends.
DAEMONS = """
import os, signal, sys, time
def daemon():
    if os.fork():
        return
    os.setsid()
    if os.fork():
        os._exit(0)
    os.setsid()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    print("daemon", os.getpid(), flush=True)
    time.sleep(300)
for _ in range(3):
    daemon()
while open(sys.argv[1]).read().count("daemon") < 3:
    time.sleep(0.01)
print("all up", flush=True)
"""


def eventually(condition: Callable[[], bool], deadline_s: float = 10.0) -> None:
    end = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < end, "the condition did not come true in time"
        time.sleep(0.01)


def carriers(mark: str) -> set[int]:
    """Living processes whose environment holds `mark`."""
    found = set()
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (path / "environ").read_bytes() and b") Z " not in (path / "stat").read_bytes():
                found.add(int(path.name))
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
    return found


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "child.log"


@pytest.fixture
def mark() -> str:
    return f"HEADRACE_TEST={uuid.uuid4()}"


def python(code: str, log: Path, mark: str = "A=b", cwd: Path | None = None) -> Warded:
    name, _, value = mark.partition("=")
    return Warded.start([sys.executable, "-c", code, str(log)], log=log, env={**ENVIRONMENT, name: value}, cwd=cwd)


@pytest.mark.parametrize(
    ("code", "ending"),
    [
        ("pass", Ending(0, None)),
        ("raise SystemExit(7)", Ending(7, None)),
        ("import os; os.kill(os.getpid(), 9)", Ending(None, 9)),
        ("import os; os.kill(os.getpid(), 11)", Ending(None, 11)),
        ("import os; os.abort()", Ending(None, 6)),
    ],
)
def test_exit_codes_and_signals_are_told(code: str, ending: Ending, log: Path) -> None:
    warded = python(code, log)
    assert warded.wait(10) == ending == warded.poll()


def test_an_ending_reads_as_a_sentence() -> None:
    endings = [Ending(0, None), Ending(None, 9), Ending(None, None)]
    assert [str(ending) for ending in endings] == ["exit code 0", "killed by SIGKILL", "lost with its warden"]
    assert [ending.ok for ending in endings] == [True, False, False]


def test_a_program_that_does_not_exist_ends_with_127_and_the_log_says_why(log: Path) -> None:
    warded = Warded.start(["/no/such/program"], log=log, env=ENVIRONMENT)
    assert warded.wait(10) == Ending(127, None)
    assert "/no/such/program" in log.read_text()
    assert "No such file" in log.read_text()


def test_the_child_sees_its_directory_its_variables_and_nothing_else(log: Path, tmp_path: Path) -> None:
    code = "import os, sys; print(os.getcwd(), sorted(os.environ), repr(sys.stdin.read()), os.getpid() == os.getsid(0))"
    warded = Warded.start([sys.executable, "-I", "-c", code], log=log, cwd=tmp_path, env={"ONLY": "this"})
    assert warded.wait(10) == Ending(0, None)
    seen = log.read_text()
    assert seen.startswith(str(tmp_path))
    assert seen.strip().endswith("'' True")
    assert set(seen.split("[")[1].split("]")[0].replace("'", "").split(", ")) - {"LC_CTYPE"} == {"ONLY"}


def test_output_is_appended_to_the_log(log: Path) -> None:
    log.write_text("before\n")
    python("import sys; print('out', flush=True); print('err', file=sys.stderr)", log).wait(10)
    assert log.read_text() == "before\nout\nerr\n"


def test_a_child_that_writes_50_megabytes_to_stderr_ends(log: Path) -> None:
    warded = python("import sys\nfor _ in range(50): sys.stderr.write('x' * 1_000_000)", log)
    assert warded.wait(30) == Ending(0, None)
    assert log.stat().st_size == 50_000_000


def test_a_daemon_that_holds_stdout_does_not_delay_the_end_and_does_not_outlive_it(log: Path, mark: str) -> None:
    warded = python(DAEMONS + "print(time.monotonic()); raise SystemExit(3)", log, mark)
    assert warded.wait(30) == Ending(3, None)
    ended = float(log.read_text().split()[-1])
    assert time.monotonic() - ended < 2
    assert carriers(mark) == set()


def test_kill_takes_the_whole_tree(log: Path, mark: str) -> None:
    warded = python(DAEMONS + "time.sleep(300)", log, mark)
    eventually(lambda: "all up" in log.read_text())
    assert len(carriers(mark)) == 4  # child, three daemons; the warden has forgotten what it handed on
    assert warded.kill() == Ending(None, 9)
    assert carriers(mark) == set()


def test_a_tree_that_keeps_forking_is_killed(log: Path, mark: str) -> None:
    code = """
import os, time
print("up", flush=True)
while True:
    if os.fork() == 0:
        os.setsid()
        if os.fork():
            os._exit(0)
        time.sleep(0.2)
        os._exit(0)
    time.sleep(0.001)
"""
    warded = python(code, log, mark)
    eventually(lambda: len(carriers(mark)) > 10)
    warded.kill()
    assert carriers(mark) == set()


def test_terminate_lets_the_child_end_by_itself(log: Path) -> None:
    code = (
        "import signal, sys, time\nsignal.signal(15, lambda *_: sys.exit(5))\nprint('up', flush=True)\ntime.sleep(300)"
    )
    warded = python(code, log)
    eventually(lambda: "up" in log.read_text())
    assert warded.terminate(grace_s=20) == Ending(5, None)


def test_terminate_kills_a_child_that_ignores_it(log: Path, mark: str) -> None:
    code = "import signal, time\nsignal.signal(15, signal.SIG_IGN)\nprint('up', flush=True)\ntime.sleep(300)"
    warded = python(code, log, mark)
    eventually(lambda: "up" in log.read_text())
    assert warded.terminate(grace_s=0.2) == Ending(None, 9)
    assert carriers(mark) == set()


def test_sigterm_to_the_warden_ends_the_tree(log: Path, mark: str) -> None:
    warded = python(DAEMONS + "time.sleep(300)", log, mark)
    eventually(lambda: "all up" in log.read_text())
    os.kill(_parent(warded.pid), 15)
    assert warded.wait(20) == Ending(None, 15)
    assert carriers(mark) == set()


def test_a_warden_that_was_stopped_still_obeys_kill(log: Path, mark: str) -> None:
    warded = python("import os, signal, time\nos.kill(os.getppid(), signal.SIGSTOP)\ntime.sleep(300)", log, mark)
    eventually(lambda: b") T " in Path(f"/proc/{_parent(warded.pid)}/stat").read_bytes())
    assert warded.kill() == Ending(None, 9)
    assert carriers(mark) == set()


def test_a_killed_warden_is_told_as_lost_and_takes_the_childs_group_along(log: Path, mark: str) -> None:
    warded = python("import time\ntime.sleep(300)", log, mark)
    os.kill(_parent(warded.pid), 9)
    assert warded.wait(10) == Ending(None, None)
    eventually(lambda: carriers(mark) == set())


def test_an_owner_killed_with_9_leaves_no_grandchild(tmp_path: Path, log: Path, mark: str) -> None:
    owner = f"""
import sys, time
from pathlib import Path
from headrace.warded import Warded
Warded.start([sys.executable, "-c", {DAEMONS + "time.sleep(300)"!r}, {str(log)!r}], log=Path({str(log)!r}), env={{"A": {mark!r}}})
time.sleep(300)
"""
    process = subprocess.Popen([sys.executable, "-c", owner], env=dict(os.environ))
    eventually(lambda: log.exists() and "all up" in log.read_text(), 30)
    assert len(carriers(mark)) >= 4
    process.kill()
    process.wait()
    killed = time.monotonic()
    eventually(lambda: carriers(mark) == set(), 5)
    assert time.monotonic() - killed < 5


def test_every_method_may_be_called_after_the_end_and_from_many_threads(log: Path) -> None:
    warded = python("import time; time.sleep(300)", log)
    endings: list[Ending | None] = []
    threads = [threading.Thread(target=lambda: endings.append(warded.wait(20))) for _ in range(4)]
    threads += [threading.Thread(target=lambda: endings.append(warded.kill())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert endings == [Ending(None, 9)] * 8
    assert warded.kill() == warded.terminate(1) == warded.wait() == warded.poll() == Ending(None, 9)


def test_children_that_have_ended_leave_no_zombie(log: Path) -> None:
    for _ in range(20):
        assert python("pass", log).wait(10) == Ending(0, None)
    own = [path for path in Path("/proc").glob("[0-9]*/stat") if _is_zombie_of(path, os.getpid())]
    assert own == []


def _is_zombie_of(stat: Path, parent: int) -> bool:
    try:
        fields = stat.read_text().rpartition(")")[2].split()
    except OSError:
        return False
    return fields[0] == "Z" and int(fields[1]) == parent


def test_wait_gives_up_after_its_timeout(log: Path) -> None:
    warded = python("import time; time.sleep(300)", log)
    assert warded.wait(0.05) is None
    assert warded.poll() is None
    warded.kill()


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="only Linux keeps a process to some CPUs")
def test_a_child_and_what_it_starts_keep_to_their_cpus(log: Path) -> None:
    one = min(os.sched_getaffinity(0))
    said = "import os, subprocess, sys; print(os.sched_getaffinity(0), flush=True)"
    argv = [sys.executable, "-c", f"{said}; subprocess.run([sys.executable, '-c', {said!r}])"]
    child = Warded.start(argv, log=log, env=ENVIRONMENT, confined=Confined(256, 10**6, cpus=(one,)))
    assert child.wait(20) == Ending(0, None)
    assert log.read_text().split("\n") == [f"{{{one}}}"] * 2 + [""]
