"""The files of a repository as a release of them would have them: those that git knows, and those that it would take, as they are now."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from headrace.outcome import RunFailed


@dataclass(frozen=True)
class Taken:
    """`changed`: files that the newest commit does not have so; `commit` is None where there is none, or no git."""

    commit: str | None
    changed: tuple[str, ...]


def copy(repository: Path, into: Path) -> Taken:
    """Copy the files; what git ignores stays behind, as it would not reach the platform. Raises `RunFailed`."""
    listed = _git(repository, "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    if listed is None:
        names = [path.relative_to(repository).as_posix() for path in sorted(repository.rglob("*")) if path.is_file()]
        names = [name for name in names if not any(part.startswith(".") for part in name.split("/"))]
    else:
        names = [name for name in dict.fromkeys(listed.split("\0")) if name]
    into.mkdir(parents=True)
    for name in names:
        _copy(repository / name, into / name, name)
    changed = _git(repository, "status", "--porcelain", "-z", "--no-renames", "--untracked-files=all", "--", ".") or ""
    commit = _git(repository, "rev-parse", "--verify", "--quiet", "HEAD")
    return Taken((commit or "").strip() or None, tuple(entry[3:] for entry in changed.split("\0") if entry))


def _copy(source: Path, target: Path, name: str) -> None:
    if not source.is_symlink() and not source.exists():  # removed, and the removal not yet committed
        return
    if source.is_dir() and not source.is_symlink():
        raise RunFailed(
            "repository",
            f"{name} is a submodule, and those are not fetched",
            "put its files into the repository, or depend on a package",
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(source, target, follow_symlinks=False)


def _git(repository: Path, *arguments: str) -> str | None:
    """What git says, or None where there is no repository, no commit or no git."""
    try:
        done = subprocess.run(["git", "-C", str(repository), *arguments], capture_output=True, check=False)
    except FileNotFoundError:
        return None
    return done.stdout.decode(errors="surrogateescape") if done.returncode == 0 else None
