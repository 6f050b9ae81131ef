"""Faults that strike a running house, one after the other, while data keeps coming; and how long it was until all was well again."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.chaos.arena import GONE, Arena
from tests.faulty_proxy import Fault, FaultyProxy
from tests.half_open import HalfOpen
from tests.postgres_server import Postgres
from tests.redis_server import Valkey
from tests.servers import Server, start_mlflow
from tests.system.product import Model

Strike = Callable[[], AbstractContextManager[None]]
LASTS_S = (0.5, 2.0)
COMES_S = (5.0, 12.0)


@dataclass(frozen=True)
class Outcome:
    """What a fault did to the next training: `well_after_s` from the end of the fault until the version that was asked for in it served."""

    fault: str
    lasted_s: float
    well_after_s: float


@dataclass
class Storm:
    """The house, what stands around it, and what may strike. `kinds` is everything that this house can suffer."""

    arena: Arena
    valkey: Valkey
    line: HalfOpen
    mlflow: FaultyProxy
    rng: random.Random
    server: Server | None = None
    postgres: Postgres | None = None
    s3: FaultyProxy | None = None
    models: list[Model] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)
    accepted: list[dict[str, Any]] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)
    inserted: dict[str, int] = field(default_factory=dict)

    def people(self, models: int) -> None:
        """The models that are there before the house opens, and the one that is watched."""
        self.canary = self.arena.add_model("canary")
        self.arena.release_poll = "30s"
        self.models = [self.arena.add_model(f"m-{n:02}") for n in range(models)]
        self.arena.add_section('[datasets.told]\nsource = { kind = "rest" }\n')

    # What strikes.

    def kinds(self) -> dict[str, Strike]:
        found: dict[str, Strike] = {}
        for kind in ("api", "watcher", "trainer", "bridge"):
            found[f"SIGKILL {kind}"] = lambda kind=kind: self._killed(kind)  # type: ignore[misc]
            found[f"SIGSTOP and SIGCONT {kind}"] = lambda kind=kind: self._stopped(kind)  # type: ignore[misc]
        found["SIGKILL a model's process"] = self._child_killed
        found["FLUSHALL"] = lambda: self._done(lambda: self.valkey.command("FLUSHALL"))
        found["an empty Redis in place of the old one"] = self._redis_empty
        found["Redis full"] = self._redis_full
        found["Redis held"] = self.line.held
        found["Redis connections reset"] = lambda: self._done(self.line.reset)
        found["Redis connections half open"] = lambda: self._done(self.line.cut)
        found["MLflow slow"] = self._mlflow_slow
        found["MLflow fails"] = lambda: self._proxy_fails(self.mlflow, "/", Fault.REFUSE_REQUEST)
        for path in ("runs/create", "model-versions/create", "registered-models/alias"):
            found[f"MLflow does {path} and the reply is lost"] = lambda path=path: self._proxy_fails(  # type: ignore[misc]
                self.mlflow, path, Fault.DROP_REPLY
            )
        found["the git remotes gone"] = self._git_gone
        found["a consumer that hangs"] = self._consumer_hangs
        if self.server is not None:
            found["SIGKILL MLflow"] = self._mlflow_killed
        if self.postgres is not None:
            found["PostgreSQL restarted, -m immediate"] = lambda: self._done(self.postgres.restart)  # type: ignore[union-attr]
        else:
            found["SQLite locked by another writer"] = self._sqlite_locked
            found["the wall clock an hour ahead"] = lambda: self._clock_at(3600.0)
            found["the wall clock some seconds back"] = lambda: self._clock_at(-4.0)
            if os.path.ismount(self.arena.state):
                found["the disk full"] = self._disk_full
        if self.s3 is not None:
            found["the blob store refuses"] = lambda: self._proxy_fails(self.s3, "/", Fault.REFUSE_REQUEST)  # type: ignore[arg-type]
            found["the blob store cuts off"] = lambda: self._proxy_fails(self.s3, "/", Fault.CUT_REPLY)  # type: ignore[arg-type]
        return found

    def strike(self, name: str) -> None:
        """Let it last for a while with new data in the middle of it, and wait until that data's version serves."""
        known = len(self.canary.versions())
        began = time.monotonic()
        with self.kinds()[name]():
            self.insert(self.canary)
            self.stop.wait(self.rng.uniform(*LASTS_S))
        ended = time.monotonic()
        self.arena.wait(f"the canary to be trained after: {name}", lambda: self._served() > known)
        self.outcomes.append(Outcome(name, ended - began, time.monotonic() - ended))

    def _served(self) -> int:
        found = [one["version"] for one in self.canary.versions() if one["state"] == "promoted"]
        return max(found, default=0)

    # What goes on meanwhile.

    def blow(self) -> None:
        """Data keeps coming, and is told of, until `stop`: what was answered with 202 is kept in `accepted`."""
        number = 0
        while not self.stop.wait(self.rng.uniform(*COMES_S)):
            number += 1
            self.insert(self.rng.choice(self.models))
            key = f"told-{number}"
            with suppress(*GONE, AssertionError):
                answer = self.arena._ask("POST", "/v1/events", {"dataset": "told"}, {"Idempotency_Key": key})
                self.accepted.append({"key": key, **answer})

    def insert(self, model: Model) -> None:
        model.insert(20)
        self.inserted[model.name] = self.inserted.get(model.name, 0) + 20

    # How.

    @contextmanager
    def _done(self, strike: Callable[[], object]) -> Iterator[None]:
        strike()
        yield

    def _pids(self, kind: str) -> list[int]:
        found = json.loads((self.arena.root / "pids.json").read_text())
        return [pid for name, pid in found.items() if name.startswith(kind)]

    @contextmanager
    def _killed(self, kind: str) -> Iterator[None]:
        with suppress(ProcessLookupError):
            os.kill(self.rng.choice(self._pids(kind)), signal.SIGKILL)
        yield

    @contextmanager
    def _stopped(self, kind: str) -> Iterator[None]:
        """For longer than a lease; whoever it was finds the world changed."""
        pid = self.rng.choice(self._pids(kind))
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
            self.stop.wait(3.5)
        finally:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    @contextmanager
    def _child_killed(self) -> Iterator[None]:
        self.canary.hold()
        self.insert(self.canary)
        for pid in self.arena.wait("a child", self.canary.processes):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.canary.go()
        yield

    @contextmanager
    def _redis_empty(self) -> Iterator[None]:
        self.valkey.kill()
        yield
        self.valkey.restart()

    @contextmanager
    def _redis_full(self) -> Iterator[None]:
        self.valkey.command("CONFIG", "SET", "maxmemory", "1")
        yield
        self.valkey.command("CONFIG", "SET", "maxmemory", "0")

    @contextmanager
    def _mlflow_slow(self) -> Iterator[None]:
        self.mlflow.delay_s = 0.5
        yield
        self.stop.wait(3.0)
        self.mlflow.delay_s = 0.0

    @contextmanager
    def _proxy_fails(self, proxy: FaultyProxy, path: str, fault: Fault) -> Iterator[None]:
        """Once at least: until it has struck, however long that takes."""
        proxy.fail_path(path, fault)
        yield
        self.arena.wait(f"{fault.value} at {path}", lambda: proxy.struck)

    @contextmanager
    def _mlflow_killed(self) -> Iterator[None]:
        assert self.server is not None
        self.server.kill()
        yield
        port = int(self.server.url.rpartition(":")[2])
        self.server = start_mlflow(self.server.log.parent, port)

    @contextmanager
    def _git_gone(self) -> Iterator[None]:
        """The canary has a new release meanwhile."""
        away = self.canary.repository.with_suffix(".away")
        self.canary.repository.rename(away)
        yield
        away.rename(self.canary.repository)

    @contextmanager
    def _consumer_hangs(self) -> Iterator[None]:
        self.arena.hook.hang.clear()
        yield
        self.arena.hook.hang.set()

    @contextmanager
    def _sqlite_locked(self) -> Iterator[None]:
        other = sqlite3.connect(self.arena.ledger_file, isolation_level=None, timeout=10)
        other.execute("BEGIN IMMEDIATE")
        yield
        other.execute("ROLLBACK")
        other.close()

    @contextmanager
    def _disk_full(self) -> Iterator[None]:
        ballast = self.arena.state / "ballast"
        with ballast.open("wb") as stream, suppress(OSError):
            stream.write(b"." * shutil.disk_usage(self.arena.state).free)
        yield
        ballast.unlink()

    @contextmanager
    def _clock_at(self, seconds: float) -> Iterator[None]:
        """It stays there: a clock that was put right goes on from where it is."""
        clock: Path = self.arena.root / "clock"
        before = float(clock.read_text()) if clock.exists() else 0.0
        draft = clock.with_suffix(".draft")
        draft.write_text(str(before + seconds))
        draft.replace(clock)
        yield
