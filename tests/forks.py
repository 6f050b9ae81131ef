"""Processes of ours as forks of one Python that has imported what they run: a start takes a tenth of a second of CPU in place of one.

A fork has its own pid, session, variables, log and signals, and runs its module as `python -m` would. What it can not show: what
a start imports and costs, and what `/proc/PID/environ` tells.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import random
import runpy
import selectors
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
READY_S = 60.0


class Fork:
    """What tests use of `subprocess.Popen`."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self.ended = threading.Event()

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float = READY_S) -> int:
        if not self.ended.wait(timeout) or self.returncode is None:
            raise subprocess.TimeoutExpired(f"fork {self.pid}", timeout)
        return self.returncode

    def send_signal(self, number: signal.Signals) -> None:
        if self.returncode is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class Forks:
    """Starts `modules` and imports them once; `stop` kills what still runs of the forks."""

    def __init__(self, *modules: str) -> None:
        environment = {key: value for key, value in os.environ.items() if not key.startswith("HEADRACE_")}
        argv, pipe = [sys.executable, "-m", "tests.forks", *modules], subprocess.PIPE
        self._parent = subprocess.Popen(argv, cwd=ROOT, env=environment, stdin=pipe, stdout=pipe, text=True)
        self._forks: dict[int, Fork] = {}
        self._born: list[Fork] = []
        self._starting, self._told = threading.Lock(), threading.Condition()
        threading.Thread(target=self._listen, name="forks", daemon=True).start()

    def start(self, argv: list[str], env: Mapping[str, str], log: Path, errors: Path | None = None) -> Fork:
        """`python -m` with these words and exactly these variables; what it says goes into `log`, or its stderr into `errors`."""
        assert self._parent.stdin is not None
        asked = {"argv": argv, "env": dict(env), "log": str(log), "errors": str(errors or log)}
        with self._starting, self._told:
            self._parent.stdin.write(json.dumps(asked) + "\n")
            self._parent.stdin.flush()
            assert self._told.wait_for(lambda: self._born, READY_S), "nothing was forked"
            return self._born.pop()

    def stop(self) -> None:
        assert self._parent.stdin is not None
        self._parent.stdin.close()
        self._parent.wait(READY_S)

    def _listen(self) -> None:
        assert self._parent.stdout is not None
        with self._parent.stdout as lines:
            for line in lines:
                pid, code = json.loads(line)
                with self._told:
                    if code is None:
                        self._forks[pid] = Fork(pid)
                        self._born.append(self._forks[pid])
                        self._told.notify()
                        continue
                ended = self._forks.pop(pid)
                ended.returncode = code
                ended.ended.set()


class _Parent:
    def __init__(self) -> None:
        self._running: set[int] = set()
        self._wake, wakes = os.pipe()
        os.set_blocking(wakes, False)
        signal.set_wakeup_fd(wakes)
        signal.signal(signal.SIGCHLD, lambda *_: None)

    def run(self) -> None:
        with selectors.DefaultSelector() as selector:
            for source in (sys.stdin.fileno(), self._wake):
                selector.register(source, selectors.EVENT_READ)
            while True:
                for key, _ in selector.select():
                    if key.fd == self._wake:
                        os.read(self._wake, 100)
                        self._reap()
                    elif line := sys.stdin.readline():
                        self._fork(json.loads(line))
                    else:
                        return self._end()

    def _fork(self, asked: dict[str, Any]) -> None:
        if pid := os.fork():
            self._running.add(pid)
            self._tell(pid, None)
            return
        code: object = 1
        try:
            _be(asked)
            code = 0
        except SystemExit as ended:
            code = ended.code or 0
        except BaseException:  # noqa: BLE001 - the edge of a process
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(code if isinstance(code, int) else 1)

    def _reap(self) -> None:
        while self._running:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            self._running.remove(pid)
            self._tell(pid, os.waitstatus_to_exitcode(status))

    def _tell(self, pid: int, code: int | None) -> None:
        sys.stdout.write(json.dumps([pid, code]) + "\n")
        sys.stdout.flush()

    def _end(self) -> None:
        for pid in self._running:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def _be(asked: dict[str, Any]) -> None:
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setsid()
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, name in ((1, "log"), (2, "errors")):
        os.dup2(os.open(asked[name], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), number)
    os.environ.clear()
    os.environ.update(asked["env"])
    random.seed()
    module, *words = asked["argv"]
    sys.argv = [module, *words]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def main(modules: list[str]) -> None:
    for module in modules:
        importlib.import_module(module)
    gc.freeze()  # what is imported is not copied by the first collection of each fork
    _Parent().run()


if __name__ == "__main__":
    main(sys.argv[1:])
