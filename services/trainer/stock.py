"""The environments on a trainer's disk: how large, used when, and by what now."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from services.trainer.disk import Disk, measure

_JOB = re.compile(r"/scratch/([^/\0]+)/")


@dataclass(frozen=True)
class Stocked:
    """One environment. `used_at` is in seconds of the epoch; `users` are the trainings (run-attempt), scorings and other processes in it."""

    name: str
    python: str
    packages: tuple[str, ...]
    size_bytes: int
    used_at: float
    in_use: bool
    users: tuple[str, ...]


def environments(disk: Disk) -> list[Stocked]:
    """Those that are finished, the one used last first."""
    found = [_look(disk, path) for path in _finished(disk.environments)]
    return sorted(found, key=lambda one: one.used_at, reverse=True)


def _finished(root: Path) -> Iterator[Path]:
    with suppress(FileNotFoundError):
        for path in sorted(root.iterdir()):
            if not path.name.startswith(".") and (path / "bin").is_dir():
                yield path


def _look(disk: Disk, path: Path) -> Stocked:
    with disk.unused(path) as free:
        pass
    told = {}
    with suppress(OSError, ValueError):
        told = json.loads((path / "headrace-environment.json").read_text())
    python = str(told.get("python", "")) if isinstance(told, dict) else ""
    return Stocked(path.name, python, _packages(path), measure(path), disk.used_at(path), not free, _users(path))


def _packages(path: Path) -> tuple[str, ...]:
    """`name==version`, as its lock has them."""
    with suppress(OSError):
        lines = (path / "requirements.txt").read_text().splitlines()
        return tuple(found[0] for line in lines if (found := re.match(r"[A-Za-z0-9._-]+==[^\s;\\]+", line)))
    return ()


def _users(path: Path) -> tuple[str, ...]:
    """What runs its Python, as far as this machine's processes may be looked at (Linux)."""
    users = set()
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            line = (process / "cmdline").read_bytes().decode(errors="replace")
            if line.partition("\0")[0].startswith(f"{path}/"):
                job = _JOB.search(line)
                users.add(job[1] if job else f"process {process.name}")
    return tuple(sorted(users))
