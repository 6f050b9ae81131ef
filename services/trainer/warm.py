"""Warm parents: for an environment in use, a process with a model's imports done, of which an attempt is a fork.

The first attempt of a model in an environment tells what it imported. The next starts a parent that imports the same, and no code of an
author's: it costs that attempt what its own imports would have. From then on a fork takes milliseconds. A parent serves whoever would have
found the same: the same environment, modules, variables and limits.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import structlog
from headrace.job import LANGUAGE
from headrace.warded import Confined
from headrace.warm_parent import Unfit, WarmParent

from services.trainer.disk import Disk
from services.trainer.limits import machine_memory, resident_bytes
from services.trainer.shares import GPUS, THREADS

OF_ONE_JOB = frozenset(("HOME", "TMPDIR", "HEADRACE_RUN_ID", *THREADS, *GPUS))
"""Variables that a fork gets and a parent does not."""
_TOO_EARLY = re.compile(r"TZ|(LC|LD|DYLD|MALLOC|GLIBC)_.*")
"""Variables that the C library and the loader go by before anything could tell a parent of them."""
START_S, SLICE_S, AGAIN_S = 120.0, 0.1, 3600.0
MOST_USES, MOST_AGE_S, MOST_SEEN = 1000, 12 * 3600.0, 1000
MOST_UNFIT = 100
MEMORY_PART = 8  # of the machine's memory, for all parents together
log = structlog.get_logger()


@dataclass(frozen=True)
class Wanted:
    """What decides whether a parent is the right one. `environment` changes when it is built anew."""

    environment: tuple[str, int]
    modules: tuple[str, ...]
    variables: frozenset[tuple[str, str]]
    confined: Confined


@dataclass(frozen=True)
class Seen:
    """What the code under `roots` has imported, in order."""

    roots: tuple[str, ...]
    modules: tuple[str, ...]


@dataclass
class Kept:
    """A parent; `held` gives back what it holds when it is closed."""

    wanted: Wanted
    parent: WarmParent
    held: ExitStack
    began_at: float = field(default_factory=time.monotonic)
    used_at: float = 0.0
    uses: int = 0
    users: int = 0
    size_bytes: int = 0

    def spend(self) -> None:
        """Nobody is to get it any more; it ends when its last user does."""
        self.uses = MOST_USES

    @property
    def is_spent(self) -> bool:
        return not self.parent.is_alive or self.uses >= MOST_USES or time.monotonic() - self.began_at > MOST_AGE_S


class Parents:
    """The parents of this process, at most `most` at a time, and no more memory than its part; idle ones make room for others."""

    def __init__(self, most: int, disk: Disk, *, with_gpus: bool = False) -> None:
        self._most = most if _can_fork() else 0
        self._disk, self._with_gpus = disk, with_gpus
        self._kept: list[Kept] = []
        self._seen: dict[tuple[str, str], Seen] = {}
        self._unfit: dict[Wanted, float] = {}  # until when
        self._starting = threading.Lock()
        self._started: Wanted | None = None  # by who holds it
        self._lock = threading.Lock()

    @property
    def pids(self) -> list[int]:
        """Of those that there are."""
        with self._lock:
            return [kept.parent.pid for kept in self._kept]

    def saw(self, python: Path, model: str, roots: Sequence[str], modules: tuple[str, ...] | None) -> None:
        """What a model has imported in an environment, besides what its parent had; None: what it imports goes by what its code does before,
        so that no parent can import for it."""
        if modules != () and self._most:
            with self._lock:
                before = self._known(python, model, roots) if modules is not None else ()
                modules = modules or ()
                seen = tuple(dict.fromkeys((*before, *map(sys.intern, modules))))
                self._seen.pop((str(python), model), None)
                self._seen[str(python), model] = Seen(tuple(roots), seen)
                while len(self._seen) > MOST_SEEN:
                    del self._seen[next(iter(self._seen))]

    def _known(self, python: Path, model: str, roots: Sequence[str]) -> tuple[str, ...]:
        """By what it imported before; of a model that is new here, by what another of the very same code did."""
        if (own := self._seen.get((str(python), model))) is not None:
            return own.modules
        alike = (
            seen.modules
            for (where, _), seen in self._seen.items()
            if (where, seen.roots) == (str(python), tuple(roots))
        )
        return next(alike, ())

    @contextmanager
    def one(
        self,
        python: Path,
        model: str,
        roots: Sequence[str],
        env: Mapping[str, str],
        confined: Confined,
        check: Callable[[], None],
    ) -> Iterator[Kept | None]:
        """A parent for this job, that nobody ends while the block lasts; None where none serves, and the job is to be executed.

        `check` raises when the work must stop.
        """
        wanted = self._wanted(python, model, roots, env, confined)
        kept = (self._take(wanted) or self._start(wanted, python, check)) if wanted is not None else None
        try:
            yield kept
        finally:
            if kept is not None:
                self._give_back(kept)

    def close(self) -> None:
        with self._lock:
            kept, self._kept, self._most = self._kept, [], 0
        with ExitStack() as ending:
            for one in kept:
                ending.callback(one.held.close)

    def _wanted(
        self, python: Path, model: str, roots: Sequence[str], env: Mapping[str, str], confined: Confined
    ) -> Wanted | None:
        with self._lock:
            modules = self._known(python, model, roots)
        if not self._most or not modules or (any(map(env.get, GPUS)) and not self._with_gpus):
            return None
        if _shadowed(modules, roots) or env.get("LANG") != LANGUAGE or any(map(_TOO_EARLY.fullmatch, env)):
            return None
        variables = frozenset((name, value) for name, value in env.items() if name not in OF_ONE_JOB)
        built_at = python.parent.parent.stat().st_ctime_ns
        wanted = Wanted((str(python), built_at), modules, variables, replace(confined, cpus=()))
        return wanted if self._unfit.get(wanted, 0.0) < time.monotonic() else None

    def _take(self, wanted: Wanted) -> Kept | None:
        with self._lock:
            for kept in self._kept:
                if kept.wanted == wanted and not kept.is_spent:
                    kept.users += 1
                    kept.uses += 1
                    return kept
        return None

    def _start(self, wanted: Wanted, python: Path, check: Callable[[], None]) -> Kept | None:
        """One that imports what is wanted; the one that somebody starts already is waited for. While another one is started, or all are in
        use, none: a job would rather be executed than wait."""
        while not self._starting.acquire(timeout=SLICE_S if wanted == self._started else 0):
            if wanted != self._started:
                return None
            check()
        try:
            if (kept := self._take(wanted)) is not None or not self._make_room(lambda: len(self._kept) < self._most):
                return kept
            self._started = wanted
            began = time.monotonic()
            try:
                kept = self._import(wanted, python, check)
            except (OSError, Unfit) as error:
                log.warning("no_warm_parent", environment=wanted.environment[0], reason=str(error))
                with self._lock:
                    self._unfit[wanted] = time.monotonic() + AGAIN_S
                    while len(self._unfit) > MOST_UNFIT:
                        del self._unfit[next(iter(self._unfit))]
                return None
            log.info("warm_parent_started", environment=wanted.environment[0], seconds=time.monotonic() - began)
            with self._lock:
                if self._most:
                    self._kept.append(kept)
                    return kept
            kept.held.close()  # the worker has left meanwhile
            return None
        finally:
            self._started = None
            self._starting.release()

    def _import(self, wanted: Wanted, python: Path, check: Callable[[], None]) -> Kept:
        place = self._disk.scratch / f"parent-{secrets.token_hex(6)}"
        with ExitStack() as held:
            held.enter_context(self._disk.using(place))
            held.callback(shutil.rmtree, place, ignore_errors=True)
            home = place / "home"
            home.mkdir(parents=True, mode=0o700)
            variables = {**dict(wanted.variables), "HOME": str(home), "TMPDIR": str(home), **dict.fromkeys(GPUS, "")}
            parent = WarmParent.start(python, wanted.modules, variables, place, wanted.confined, THREADS)
            held.callback(parent.close)
            deadline = time.monotonic() + START_S
            while not parent.ready(SLICE_S):
                check()
                if time.monotonic() > deadline:
                    raise Unfit(f"its imports take longer than {START_S:g} s")
            shutil.rmtree(home, ignore_errors=True)  # or one job could leave something there for the next
            return Kept(wanted, parent, held.pop_all(), uses=1, users=1)

    def _give_back(self, kept: Kept) -> None:
        with self._lock:
            kept.users -= 1
            kept.used_at = time.monotonic()
            kept.size_bytes = resident_bytes(kept.parent.pid)
        most_bytes = machine_memory() // MEMORY_PART
        self._make_room(lambda: sum(one.size_bytes for one in self._kept) <= most_bytes)

    def _make_room(self, fits: Callable[[], bool]) -> bool:
        """End those that are spent, and of the others the ones not used for longest, until it fits; False if those in use keep it from that."""
        while True:
            with self._lock:
                idle = [kept for kept in self._kept if not kept.users]
                ending = [kept for kept in idle if kept.is_spent] or sorted(idle, key=lambda kept: kept.used_at)
                if fits() and not (ending and ending[0].is_spent):
                    return True
                if not ending:
                    return False
                self._kept.remove(ending[0])
            ending[0].held.close()


def _shadowed(modules: tuple[str, ...], roots: Sequence[str]) -> bool:
    """Whether the author has something of the same name, which comes before what is installed."""
    tops = {name.partition(".")[0] for name in modules} - sys.stdlib_module_names
    found: set[str] = set()
    for root in roots:
        with suppress(OSError):
            found |= {name.partition(".")[0] for name in os.listdir(root)}
    return not tops.isdisjoint(found)


def _can_fork() -> bool:
    """Linux, new enough for a handle of a process that is not our child."""
    try:
        os.close(os.pidfd_open(os.getpid()))
    except (AttributeError, OSError):
        return False
    return True
