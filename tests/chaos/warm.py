"""Starts the services of a test by forks of one process that has imported them, and again as soon as one ends: `python -m tests.chaos.warm PLAN`.

A fork is a process like any other, with its own pid, connections and threads; only the imports are paid for once. What is armed is armed
here, in code, before the service's own main runs. One command a line on stdin: JSON `{"run": [WORDS of python -m stack]}` is answered by a
line with its exit code (None: killed, and run again until it ends by itself). The end of stdin ends everything.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import selectors
import signal
import sqlite3
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

from services.registry_bridge import deliver, janitor, promote, register
from shared import points
from shared.clock import SystemClock
from tests.chaos.strikes import Board

SERVICES: dict[str, str] = {
    "api": "tests.chaos.warm:serve_api",
    "watcher": "services.ingest_watcher.app:main",
    "trainer": "services.trainer.app:main",
    "bridge": "services.registry_bridge.app:main",
}
COMMANDS = tuple(f"stack.{name}" for name in ("__main__", "api", "apply", "ledger", "prepare", "tidy"))
STARTED_LATE = (
    *(f"celery.{name}" for name in ("apps.worker", "backends.base", "loaders.app")),
    *(f"celery.{name}" for name in ("concurrency.thread", "worker.consumer", "worker.loops", "worker.request")),
    *("kombu.transport.redis", "kombu.asynchronous.hub", "alembic.command", "uvicorn"),
)
"""What a worker imports as it starts: the greater part of its start."""
PAUSE_S = 0.02
LEASE = timedelta(seconds=2)


def serve_api() -> int:
    import uvicorn

    options = {"log_level": "warning", "access_log": False, "timeout_graceful_shutdown": 2}
    uvicorn.run("stack.api:create_app", factory=True, host="127.0.0.1", port=int(os.environ["API_PORT"]), **options)  # type: ignore[arg-type]
    return 0


@dataclass
class Plan:
    """`services`: by name, what kind each is and its own variables."""

    directory: Path
    ledger: Path
    environment: dict[str, str]
    services: dict[str, dict[str, Any]]
    armed: bool
    everywhere: bool  # whoever reaches a side dies there, and not only the first of all
    board: Board = field(init=False)

    def __post_init__(self) -> None:
        self.board = Board(self.directory / "board")


class Warm:
    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._running: dict[int, tuple[str, Callable[[], int], dict[str, str]]] = {}
        self._ending = False

    def run(self) -> None:
        for module in (*(target.partition(":")[0] for target in SERVICES.values()), *COMMANDS, *STARTED_LATE):
            importlib.import_module(module)
        (self._plan.directory / "points.json").write_text(json.dumps(points.POINTS))
        _shorten_leases()
        gc.freeze()  # what is imported is not copied by the first collection of each fork
        for name, service in self._plan.services.items():
            self._fork(name, _target(SERVICES[service["kind"]]), service["environment"])
        with selectors.DefaultSelector() as selector:
            selector.register(sys.stdin, selectors.EVENT_READ)
            while True:
                if selector.select(PAUSE_S):
                    line = sys.stdin.readline()
                    if not line:
                        return self._end()
                    self._command(json.loads(line))
                self._reap()

    def _command(self, told: dict[str, Any]) -> None:
        words = told["run"]
        main = importlib.import_module("stack.__main__").main
        self._fork("stack " + " ".join(words), lambda: int(main(words)), told.get("environment", {}))

    def _reap(self) -> None:
        while self._running:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            name, target, environment = self._running.pop(pid)
            killed = os.WIFSIGNALED(status)
            if name.startswith("stack ") and not killed:
                sys.stdout.write(json.dumps({"ran": name, "code": os.waitstatus_to_exitcode(status)}) + "\n")
                sys.stdout.flush()
            elif not self._ending:
                self._fork(name, target, environment)

    def _fork(self, name: str, target: Callable[[], int], environment: dict[str, str]) -> None:
        pid = os.fork()
        if pid:
            self._running[pid] = (name, target, environment)
            self._tell()
            return
        code = 1
        try:
            code = _be(self._plan, name, target, environment)
        finally:
            os._exit(code)

    def _tell(self) -> None:
        draft = self._plan.directory / ".pids"
        draft.write_text(json.dumps({name: pid for pid, (name, _, _) in self._running.items()}))
        draft.replace(self._plan.directory / "pids.json")

    def _end(self) -> None:
        self._ending = True
        for number, patience_s in ((signal.SIGTERM, 10.0), (signal.SIGKILL, 5.0)):
            for pid in self._running:
                os.kill(pid, number)
            deadline = time.monotonic() + patience_s
            while self._running and time.monotonic() < deadline:
                self._reap()
                time.sleep(PAUSE_S)


def _be(plan: Plan, name: str, target: Callable[[], int], environment: dict[str, str]) -> int:
    """The child: its own log and variables, armed, and then the service's own main."""
    log = os.open(plan.directory / "logs" / f"{name.split()[0]}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.environ.update({**plan.environment, "HEADRACE_PROCESS": name.split()[0], **environment})
    sys.argv = [name.split()[0]]
    spare = partial(_has_lost_two, plan.ledger, name) if name.startswith("trainer") else lambda: False
    SystemClock.now = lambda _: datetime.now(UTC) + _stepped(plan.directory / "clock")  # type: ignore[method-assign]
    if plan.armed:
        kind = name.split()[0].partition("-")[0] + ": " if plan.everywhere else ""
        points.arm(
            lambda names, side: plan.board.strike(name.split()[0], tuple(kind + one for one in names), side, spare)
        )
    return target()


def _has_lost_two(ledger: Path, process: str) -> bool:
    """A run that loses three workers is given up, as it should be: so none is made to lose more than two."""
    with sqlite3.connect(f"file:{ledger}?mode=ro", uri=True) as connection:
        query = "SELECT max(lost) FROM run WHERE state = 'running' AND lease_owner LIKE ?"
        found = connection.execute(query, (f"{process}@%:{os.getpid()}",)).fetchone()[0]
    connection.close()
    return (found or 0) >= 2


def _stepped(clock: Path) -> timedelta:
    """By how many seconds the test has stepped the wall clock of this house, while it runs."""
    try:
        return timedelta(seconds=float(clock.read_text()))
    except (FileNotFoundError, ValueError):
        return timedelta(0)


def _shorten_leases() -> None:
    """A killed bridge's work is taken up after its lease: in a second or two here, and a registration of half a second renews it."""
    register.LEASE = timedelta(seconds=1.2)
    promote.ALIAS_LEASE = LEASE
    deliver.LEASE, deliver.webhook.DEADLINE_S = LEASE, 0.5
    janitor.LEASE, janitor.RENEW_S = timedelta(seconds=0.5), 0.0


def _target(name: str) -> Callable[[], int]:
    module, _, function = name.partition(":")
    found: Callable[[], int] = getattr(importlib.import_module(module), function)
    return found


if __name__ == "__main__":
    told = json.loads(Path(sys.argv[1]).read_text())
    Warm(Plan(**{**told, "directory": Path(told["directory"]), "ledger": Path(told["ledger"])})).run()
