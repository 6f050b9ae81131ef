"""Supervised processes, with small programs as real processes under the real warden."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from stack.processes import FIRST_PAUSE_S, Process, Service, State
from stack.supervisor import NotUp, Supervisor

WAIT_S = 20.0
SERVES = "import os, pathlib, time; print('hello', flush=True); pathlib.Path('serves').write_text(str(os.getpid())); time.sleep(300)"
NEVER_SERVES = "import time; print('still loading', flush=True); time.sleep(300)"
ENDS = "import sys; print('no such port'); sys.exit(3)"
SAYS_BYE = """
    import os, pathlib, signal, sys, time
    def bye(*_):
        print('bye from ' + sys.argv[1], flush=True)
        sys.exit(0)
    signal.signal(signal.SIGTERM, bye)
    pathlib.Path('serves').write_text(str(os.getpid()))
    time.sleep(300)
"""
STAYS = """
    import os, pathlib, signal, time
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    pathlib.Path('serves').write_text(str(os.getpid()))
    while True: time.sleep(300)
"""
HAS_A_CHILD_ELSEWHERE = """
    import os, pathlib, subprocess, sys, time
    child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(300)'], start_new_session=True)
    pathlib.Path('child').write_text(str(child.pid))
    pathlib.Path('serves').write_text(str(os.getpid()))
    time.sleep(300)
"""
T = TypeVar("T")
Make = Callable[..., Service]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """A service that runs a program in a directory of its own and serves when the program has left its pid there."""

    def make(program: str, name: str = "server", **options: object) -> Service:
        cwd = tmp_path / name
        cwd.mkdir()
        argv = (sys.executable, "-c", textwrap.dedent(program), name)
        environment = {"PATH": os.environ["PATH"]}
        return Service(name, argv, lambda pid: _written(cwd / "serves") == pid, cwd, environment, **options)  # type: ignore[arg-type]

    return make


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Callable[[Service], Process]]:
    processes = []

    def start(service: Service) -> Process:
        process = Process(service, tmp_path / f"{service.name}.log")
        processes.append(process)
        process.start()
        return process

    yield start
    for process in processes:
        process.kill()


@pytest.fixture
def supervisor(tmp_path: Path) -> Iterator[Supervisor]:
    told: list[tuple[str, State]] = []
    supervisor = Supervisor(tmp_path, lambda process: told.append((process.name, process.state)))
    supervisor.told = told  # type: ignore[attr-defined]
    yield supervisor
    now = threading.Event()
    now.set()
    supervisor.stop(now)


def test_a_process_is_up_when_it_serves_and_its_output_is_in_its_log(
    make: Make, started: Callable[[Service], Process]
) -> None:
    process = started(make(SERVES))
    assert process.state is State.STARTING
    _step_until(process, State.UP)
    assert _written(process.service.cwd / "serves") == process.pid
    assert process.last_lines() == ["hello"]


def test_what_is_killed_is_started_again_after_a_pause(make: Make, started: Callable[[Service], Process]) -> None:
    process = started(make(SERVES))
    _step_until(process, State.UP)
    first = process.pid
    assert first
    os.kill(first, signal.SIGKILL)
    _step_until(process, State.DOWN)
    assert "SIGKILL" in process.said
    assert process.failure is None, "what has been up is never given up"
    before = time.monotonic()
    _step_until(process, State.UP)
    assert time.monotonic() - before >= FIRST_PAUSE_S * 0.9
    assert process.pid != first


def test_each_pause_is_twice_as_long_as_the_one_before(make: Make, tmp_path: Path) -> None:
    now = 0.0
    process = Process(make(ENDS), tmp_path / "log", clock=lambda: now)
    process.start()
    pauses = []
    for _ in range(3):
        _step_until(process, State.DOWN)
        ended_at = now
        while process.state is State.DOWN:
            now += 0.25
            process.step()
        pauses.append(now - ended_at)
    process.kill()
    assert pauses == [0.5, 1.0, 2.0]


def test_what_ends_at_every_start_is_given_up_with_the_end_of_its_log(make: Make, supervisor: Supervisor) -> None:
    supervisor.add(make(ENDS, name="broken"))
    supervisor.start()
    with pytest.raises(NotUp, match=r"(?s)broken ended \(exit code 3\).*broken\.log.*\| no such port"):
        supervisor.wait_up(threading.Event())


def test_what_does_not_serve_in_time_is_killed_and_given_up(make: Make, supervisor: Supervisor) -> None:
    supervisor.add(make(NEVER_SERVES, name="slow", limit_s=1.5))
    supervisor.start()
    with pytest.raises(NotUp, match=r"(?s)slow did not come up within 2 s.*\| still loading"):
        supervisor.wait_up(threading.Event())


def test_a_program_that_does_not_exist_is_told_with_its_log(make: Make, supervisor: Supervisor) -> None:
    service = make(SERVES, name="absent")
    supervisor.add(Service("absent", ("/no/such/program",), service.serves, service.cwd, {}))
    supervisor.start()
    with pytest.raises(NotUp, match=r"(?s)absent.*/no/such/program"):
        supervisor.wait_up(threading.Event())


def test_a_wait_for_the_start_can_be_broken_off(make: Make, supervisor: Supervisor) -> None:
    supervisor.add(make(NEVER_SERVES))
    supervisor.start()
    stop = threading.Event()
    threading.Timer(0.2, stop.set).start()
    assert supervisor.wait_up(stop) is False


def test_a_process_waits_for_those_that_it_comes_after(make: Make, supervisor: Supervisor) -> None:
    supervisor.add(make(SERVES, name="second", after=("first",)), make(SERVES, name="first"))
    supervisor.start()
    assert supervisor.wait_up(threading.Event())
    told = supervisor.told  # type: ignore[attr-defined]
    assert told.index(("first", State.UP)) < told.index(("second", State.STARTING))


def test_a_process_is_asked_before_it_is_killed_and_ranks_stop_in_order(make: Make, supervisor: Supervisor) -> None:
    supervisor.add(make(SAYS_BYE, name="database", rank=1), make(SAYS_BYE, name="worker", rank=0))
    supervisor.start()
    assert supervisor.wait_up(threading.Event())
    pids = [process.pid for process in supervisor.processes]
    supervisor.stop(threading.Event())
    assert [process.last_lines() for process in supervisor.processes] == [["bye from database"], ["bye from worker"]]
    told = supervisor.told  # type: ignore[attr-defined]
    assert told[-2:] == [("worker", State.STOPPED), ("database", State.STOPPED)]
    assert not any(_alive(pid) for pid in pids if pid)


def test_what_does_not_listen_is_killed_when_its_grace_is_over(
    make: Make, started: Callable[[Service], Process]
) -> None:
    process = started(make(STAYS, grace_s=0.3))
    _step_until(process, State.UP)
    pid = process.pid
    process.stop()
    assert pid
    assert not _alive(pid)


def test_a_stop_becomes_a_kill_when_it_is_asked_for_again(make: Make, supervisor: Supervisor) -> None:
    supervisor.add(make(STAYS, grace_s=120.0))
    supervisor.start()
    assert supervisor.wait_up(threading.Event())
    now = threading.Event()
    threading.Timer(0.2, now.set).start()
    before = time.monotonic()
    supervisor.stop(now)
    assert time.monotonic() - before < 10
    assert supervisor.processes[0].state is State.STOPPED


def test_nothing_is_left_of_a_killed_process_or_of_a_killed_supervisor(make: Make, tmp_path: Path) -> None:
    service = make(HAS_A_CHILD_ELSEWHERE)
    holder = f"""
        import sys, threading, time
        from pathlib import Path
        from stack.processes import Service
        from stack.supervisor import Supervisor
        supervisor = Supervisor(Path({str(tmp_path)!r}), lambda process: None)
        cwd = Path({str(service.cwd)!r})
        supervisor.add(Service("server", {service.argv!r}, lambda pid: (cwd / "serves").exists(), cwd, {{}}))
        supervisor.start()
        supervisor.wait_up(threading.Event())
        time.sleep(300)
    """
    owner = subprocess.Popen([sys.executable, "-c", textwrap.dedent(holder)], cwd=Path(__file__).parents[2])
    try:
        first = _wait_for(lambda: _written(service.cwd / "serves"))
        first_child = _wait_for(lambda: _written(service.cwd / "child"))
        os.kill(first, signal.SIGKILL)
        _wait_for(lambda: not _alive(first_child))
        second = _wait_for(lambda: (pid := _written(service.cwd / "serves")) != first and pid)
        second_child = _written(service.cwd / "child")
        assert second_child
        assert _alive(second)
        assert _alive(second_child)
    finally:
        owner.kill()
        owner.wait()
    _wait_for(lambda: not _alive(second) and not _alive(second_child))


def _step_until(process: Process, state: State) -> None:
    _wait_for(lambda: (process.step() and False) or process.state is state)


def _wait_for(condition: Callable[[], T]) -> T:
    deadline = time.monotonic() + WAIT_S
    while not (found := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)
    return found


def _written(file: Path) -> int:
    """The pid in the file; 0 while there is none."""
    with contextlib.suppress(OSError, ValueError):
        return int(file.read_text())
    return 0


def _alive(pid: int) -> bool:
    """Whether the process runs; one that only waits to be reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] not in "ZX"
    except OSError:
        return False
