"""What a training takes, seen from outside: the memory and the number of its processes, and the disk under its scratch directory.

The kernel's own limits are per process, and a training is a tree of them; so the tree is looked at while it is waited for.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import timedelta
from functools import cache
from pathlib import Path

from services.trainer.failures import AttemptFailed
from shared.catalog import Limits
from shared.values import format_size

TREE_S, DISK_S, PEAK_S = 0.5, 2.0, 1.0
_SHARE = 20  # a look pauses for so many times as long as it took
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_CGROUPS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


class Watched:
    """The tree below a warden, and its scratch directory. `check` is to be called often; it looks when it is time."""

    def __init__(self, warden: int, limits: Limits, scratch: Path) -> None:
        self._warden = warden
        self._limits = limits
        self._memory = limits.memory or machine_memory() * 9 // 10
        self._scratch = scratch
        self._tree: list[int] = []
        self._peak = Pace(PEAK_S)
        self.peak_bytes = 0  # the most memory that it was seen with
        self._looks = (Pace(TREE_S), Pace(0.0), Pace(DISK_S))

    def check(self) -> None:
        """Raises `AttemptFailed` with the limit that is broken."""
        tree, memory, disk = self._looks
        tree.take(self._count)
        memory.take(self._weigh)
        disk.take(self._measure)

    def _count(self) -> None:
        self._tree, tasks = descendants(self._warden)
        if tasks > self._limits.processes:
            raise _broken("processes", "process", f"{tasks:,} processes and threads", f"{self._limits.processes:,}")

    def _weigh(self) -> None:
        """Resident pages are quickly counted, but one that two processes share counts twice; so they are weighed only where that is more than
        ever before: at once where it is too much, else once a second."""
        resident = sum(map(resident_bytes, self._tree))
        if resident <= self.peak_bytes:
            return
        if resident > self._memory:
            self._weigh_shares()
        elif len(self._tree) == 1:
            self.peak_bytes = resident
        else:
            self._peak.take(self._weigh_shares)

    def _weigh_shares(self) -> None:
        taken = sum(map(_own_bytes, self._tree))
        self.peak_bytes = max(self.peak_bytes, taken)
        if taken > self._memory:
            raise _broken("memory", "memory", f"{_size(taken)} of memory", _size(self._memory))

    def _measure(self) -> None:
        if (taken := disk_bytes(self._scratch)) > self._limits.disk:
            raise _broken("disk", "disk", f"{_size(taken)} on disk", _size(self._limits.disk))


class Silence:
    """What a training writes, told by the sizes of these files: output, and what its code tells the platform."""

    def __init__(self, files: tuple[Path, ...], most: timedelta | None) -> None:
        self._files = files
        self._most_s = most.total_seconds() if most is not None else None
        self._sizes: list[int] = []
        self._since = time.monotonic()

    def check(self) -> None:
        """Raises `AttemptFailed` when nothing has been written for longer than it may."""
        if self._most_s is None:
            return
        sizes = [_size_of(path) for path in self._files]
        if sizes != self._sizes:
            self._sizes, self._since = sizes, time.monotonic()
        elif time.monotonic() - self._since > self._most_s:
            raise AttemptFailed("no_output", f"it has written nothing for {self._most_s:g} s")


def _size_of(path: Path) -> int:
    try:
        return path.lstat().st_size
    except OSError:
        return -1


class Pace:
    """Lets a look be taken every `pause_s`, and less often the longer it takes."""

    def __init__(self, pause_s: float) -> None:
        self._pause_s = pause_s
        self._due = 0.0

    def take(self, look: Callable[[], None]) -> None:
        began = time.monotonic()
        if began < self._due:
            return
        look()
        ended = time.monotonic()
        self._due = ended + max(self._pause_s, _SHARE * (ended - began))


def descendants(head: int) -> tuple[list[int], int]:
    """All processes below `head`, and how many threads they are."""
    below: dict[int, list[tuple[int, int]]] = {}
    for pid, parent, threads in _processes():
        below.setdefault(parent, []).append((pid, threads))
    found: list[tuple[int, int]] = []
    heads = [head]
    while heads:
        children = below.get(heads.pop(), [])
        found += children
        heads += [pid for pid, _ in children]
    return [pid for pid, _ in found], sum(threads for _, threads in found)


def _processes() -> Iterator[tuple[int, int, int]]:
    """Process, parent, threads; nothing where there is no /proc."""
    with suppress(FileNotFoundError):
        for name in os.listdir("/proc"):
            if name.isdigit():
                with suppress(OSError):
                    fields = Path(f"/proc/{name}/stat").read_bytes().rpartition(b")")[2].split()
                    yield int(name), int(fields[1]), int(fields[17])


def resident_bytes(pid: int) -> int:
    with suppress(OSError):
        return int(Path(f"/proc/{pid}/statm").read_bytes().split()[1]) * _PAGE_BYTES
    return 0


def _own_bytes(pid: int) -> int:
    """Its share of what it holds in memory: a page that four processes share counts as a quarter."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_bytes().splitlines():
            if line.startswith(b"Pss:"):
                return int(line.split()[1]) * 1024
    return resident_bytes(pid)


def disk_bytes(folder: Path) -> int:
    """The blocks under a directory; what vanishes meanwhile, or can't be read, counts as nothing."""
    taken, folders = 0, [os.fspath(folder)]
    while folders:
        with suppress(OSError), os.scandir(folders.pop()) as entries:
            for entry in entries:
                with suppress(OSError):
                    taken += entry.stat(follow_symlinks=False).st_blocks * 512
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
    return taken


@cache
def machine_memory() -> int:
    """The machine's memory in bytes, or what the container may take of it."""
    found = os.sysconf("SC_PHYS_PAGES") * _PAGE_BYTES
    for cgroup in _CGROUPS:
        with suppress(OSError, ValueError):
            found = min(found, int(cgroup.read_text()))
    return found


def _broken(key: str, kind: str, taken: str, limit: str) -> AttemptFailed:
    advice = f"raise limits.{key} of the model in headrace.toml, or make the training smaller"
    return AttemptFailed(f"{kind}_limit", f"it took {taken}, and may take {limit}", advice)


def _size(size_bytes: int) -> str:
    return format_size(size_bytes // 1000**2 * 1000**2)
