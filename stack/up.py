"""The embedded stack: everything that the whole flow needs, on this machine, under one directory, until it is stopped."""

from __future__ import annotations

import argparse
import getpass
import os
import secrets
import signal
import threading
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Self
from urllib.parse import urlsplit

from rich.console import Console

from shared import catalog
from shared.catalog import Catalog
from shared.errors import HeadraceError
from shared.ledger import tokens
from shared.ledger.schema import migrate
from shared.ledger.session import Ledger
from shared.settings import Settings, hide
from stack import endpoints
from stack.endpoints import Endpoints
from stack.follow import Follower
from stack.processes import Process, State
from stack.servers import FLOWER_USER, Servers, elsewhere
from stack.state import HOST, StateDirectory, write_private
from stack.supervisor import Supervisor
from stack.terminal import Terminal

TEMPLATE = Path(__file__).with_name("headrace.toml.template")
OPERATOR = "operator"


class Stack:
    """`with Stack(config, state) as stack:` has it running; leaving the block stops it and leaves no process.

    It dies with the process that holds it, however that ends. Sets the process's umask: all that it writes is its owner's alone.
    """

    def __init__(self, config: Path, state: Path, console: Console | None = None) -> None:
        self.config = config.absolute()
        self.state = StateDirectory(state)
        self.terminal = Terminal(console or Console(quiet=True))
        self.supervisor = Supervisor(self.state.root / "logs", self._changed, self._meanwhile)
        self._follower: Follower | None = None
        self._endpoints: Endpoints | None = None
        self._lock: int | None = None
        self._writing = threading.Lock()
        self._started_at = datetime.now(UTC)

    @property
    def endpoints(self) -> Endpoints:
        """Where it listens, with the pids of now; only when it is ready."""
        if self._endpoints is None:
            raise RuntimeError("the stack is not up")
        return self._endpoints

    def __enter__(self) -> Self:
        try:
            self.start()
            self.wait_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Take the directory and start everything, without waiting for it. Raises `HeadraceError`; `stop` cleans up after it."""
        os.umask(0o077)
        self._lock = self.state.lock()
        endpoints.remove(self.state.root)  # of a stack that was killed
        self._write_template()
        found = catalog.load(self.config)
        hide(catalog.variables(found))
        self._ports = self.state.ports(
            {name: getattr(found.stack, f"{name}_port") for name in ("api", "mlflow", "flower", "redis")}
        )
        self.settings = self._write_settings()
        self._servers = Servers(self.state, self.settings, self._ports, os.environ)
        self.state.folder("logs")
        self.supervisor.add(*self._servers.foundations())
        self.supervisor.start()
        self._prepare_ledger()
        follower = Follower(self.config, self._configuration_changed, self.terminal.say)
        self.supervisor.add(*self._servers.services(self._apply()))
        self._follower = follower

    def wait_ready(self, stop: threading.Event | None = None) -> bool:
        """Wait until all serves and say so in endpoints.json; False when `stop` was set before. Raises `NotUp`."""
        with self.terminal.starting(lambda: self.supervisor.processes):
            ready = self.supervisor.wait_up(stop or threading.Event())
        if ready:
            self._write_endpoints()
        return ready

    def stop(self, now: threading.Event | None = None) -> None:
        """Stop what runs, in order; kill it as soon as `now` is set. May be called twice, and after a failed start."""
        if self._lock is None:
            return
        self._endpoints = None
        endpoints.remove(self.state.root)
        try:
            self.supervisor.stop(now or threading.Event())
        finally:
            os.close(self._lock)
            self._lock = None
            endpoints.remove(self.state.root)  # a process that came up meanwhile may have written it again

    def wait(self, stop: threading.Event) -> None:
        """Wait for `stop`; raises when nobody watches the processes any more."""
        while not stop.wait(0.5):
            self.supervisor.check()

    def _write_template(self) -> None:
        if not self.config.exists() and self.config.parent.is_dir():
            self.config.write_text(TEMPLATE.read_text(encoding="utf-8"), encoding="utf-8")
            self.terminal.say(
                f"wrote {self.config}: describe your datasets and models there; it is read again when it changes"
            )

    def _write_settings(self) -> Settings:
        root, ports = self.state.root, self._ports
        ours = {
            "ledger_url": f"sqlite:///{self.state.folder('ledger')}/ledger.db",
            "redis_url": f"redis://:{secrets.token_hex(24)}@{HOST}:{ports['redis']}/0",
            "mlflow_url": f"http://{HOST}:{ports['mlflow']}",
            "blobs_url": self.state.folder("blobs").as_uri(),
            "logs_url": self.state.folder("runs").as_uri(),
        }
        settings = Settings(
            state_dir=root,
            **(ours | elsewhere(os.environ)),
            api_host=HOST,
            api_port=ports["api"],
            lease_s=6,  # one machine, one clock: a dead worker is seen soon
            heartbeat_s=2,
            look_s=1,
        )
        write_private(root / "settings.json", settings.model_dump_json(indent=2))
        return settings

    def _prepare_ledger(self) -> None:
        if copy := migrate(self.settings.ledger_url):
            self.terminal.say(f"the ledger's tables have changed; as it was before it lies in {copy}")
        ledger = Ledger(self.settings.ledger_url)
        try:
            self._keep_token(ledger)
        finally:
            ledger.close()

    def _keep_token(self, ledger: Ledger) -> None:
        file = self._token_file
        with ledger.write() as tx:
            if file.exists() and tokens.find(tx, file.read_text().strip()):
                return
            secret = tokens.create(tx, OPERATOR, tuple(tokens.Scope), getpass.getuser())
        write_private(file, secret + "\n")

    @property
    def _token_file(self) -> Path:
        return self.state.root / "operator.token"

    def _apply(self) -> Catalog:
        from stack.apply import put_in_force

        found = catalog.load(self.config)
        put_in_force(self.config, self.settings)
        return found

    def _configuration_changed(self) -> None:
        found = self._apply()
        self.supervisor.add(*self._servers.trainers(found))
        self.terminal.say(f"{self.config} is in force (ports and slots change at the next start)")

    def _meanwhile(self) -> None:
        if self._follower:
            self._follower.look()

    def _changed(self, process: Process) -> None:
        self.terminal.tell(process)
        if process.state is State.UP and self._endpoints:
            self._write_endpoints()

    def _write_endpoints(self) -> None:
        """The supervisor's thread tells of a process that comes up while the first is being written."""
        with self._writing:
            self._endpoints = self._where()
            endpoints.write(self._endpoints, self.state.root)

    def _where(self) -> Endpoints:
        processes, ports = self.supervisor.processes, self._ports
        return Endpoints(
            api=f"http://{HOST}:{ports['api']}",
            mlflow=_without_login(self.settings.mlflow_url),
            flower=f"http://{HOST}:{ports['flower']}",
            redis=urlsplit(self.settings.redis_url).netloc.rpartition("@")[2],
            token_file=str(self._token_file),
            flower_user=FLOWER_USER,
            flower_password_file=str(self.state.secret("flower.password")),
            pids={process.name: process.pid for process in processes if process.pid},
            logs={process.name: str(process.log) for process in processes},
            supervisor=os.getpid(),
            started_at=self._started_at.isoformat().replace("+00:00", "Z"),
        )


def _without_login(url: str) -> str:
    """As it may be shown: who goes there has a login of their own."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def main(args: argparse.Namespace) -> int:
    """`python -m stack up`: 0 after a stop that was asked for, 1 when something did not come up."""
    stack = Stack(args.config, args.state, Console())
    stop, now = _signals()
    try:
        stack.start()
        if stack.wait_ready(stop):
            stack.terminal.ready(stack.endpoints, stack.state.root)
            stack.wait(stop)
        stack.terminal.say("stopping (once more to kill)")
        return 0
    except HeadraceError as error:
        stack.terminal.say(str(error))
        return 1
    finally:
        stack.stop(now)


def _signals() -> tuple[threading.Event, threading.Event]:
    """Set by the first signal, and by the second."""
    stop, now = threading.Event(), threading.Event()

    def asked(_number: int, _frame: FrameType | None) -> None:
        (now if stop.is_set() else stop).set()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, asked)
    return stop, now
