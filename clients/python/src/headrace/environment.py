"""Isolated environments for models: named by what defines them, built once, shared by all who ask for the same, never written again."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import secrets
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from headrace import requirements
from headrace.indexes import Indexes
from headrace.installer import EnvironmentFailed, EnvironmentRefused, Installer, Progress, find_uv
from headrace.requirements import Declared

__all__ = ["EnvironmentFailed", "EnvironmentRefused", "Environments", "Locked", "Recipe", "find_uv"]

_RECIPE = 1  # part of every name: raise it when the way of building changes
_MARK = "headrace-environment.json"
_WAIT_S = 0.1
_PROBE = "import json, platform, sys, sysconfig; print(json.dumps([list(sys.version_info[:3]), sys.implementation.cache_tag, sysconfig.get_platform(), platform.libc_ver()]))"


@dataclass(frozen=True)
class Recipe:
    """What an environment is made from. `python` is a path or a version; without it, ours if the project allows it, else one that is installed.

    `build` allows packages that exist as source only: their build runs code. `constraints` are lines such as `numpy<3` that hold for
    every environment, also for what a repository has locked.
    """

    checkout: Path
    python: str | None = None
    index_url: str | None = field(default=None, repr=False)
    build: bool = False
    constraints: str | None = None
    extra_index_urls: tuple[str, ...] = field(default=(), repr=False)

    @property
    def indexes(self) -> Indexes:
        return Indexes(self.index_url, self.extra_index_urls)


@dataclass(frozen=True)
class Locked:
    """An environment that is decided upon, not yet built: `text` is requirements with versions and hashes. `elsewhere` tells of packages
    that were locked from an index which is none of the operator's, should they not be found."""

    text: str = field(repr=False)
    digest: str
    python: str
    indexes: Indexes = field(default_factory=Indexes)
    build: bool = False
    elsewhere: str = field(default="", compare=False)


class Environments:
    """The environments under `root`. Any number of threads, processes and machines on one local disk may use the same root.

    Raises `EnvironmentRefused` for what a repository may not ask for, `EnvironmentFailed` for what did not work. A Python that is asked for
    and is not here is fetched into `pythons`, if that is given.
    """

    def __init__(self, root: Path, uv: Path | str, cache: Path, pythons: Path | None = None) -> None:
        self._root = root
        self._fetches = pythons is not None
        self._installer = Installer(uv, cache, pythons)
        self._probes: dict[str, tuple[str, tuple[int, ...], str]] = {}
        self._seals: dict[Path, str] = {}

    def lock(self, recipe: Recipe) -> Locked:
        """Decide every version. The same files give the same answer ever after: a resolution is kept."""
        declared, indexes = requirements.read(recipe.checkout, recipe.indexes), recipe.indexes
        elsewhere = indexes.foreign(declared.sources)
        python, platform = self._interpreter(recipe, declared)
        conditions = [_RECIPE, platform, *indexes.conditions(), recipe.build]
        asked = [
            declared.project,
            declared.lock,
            declared.requirements,
            *([declared.pinned] if declared.pinned else []),
            *([recipe.constraints] if recipe.constraints else []),
        ]
        kept = self._root / "locks" / f"{_digest(*asked, *conditions)}.txt"
        with self._alone(kept):
            if not kept.exists():
                text = (
                    self._export(declared, python)
                    if declared.lock is not None
                    else self._resolve(declared, python, recipe)
                )
                if declared.pinned is not None:
                    text = _complete(declared.pinned, text)
                if recipe.constraints and (declared.lock or declared.pinned):
                    with _told(elsewhere):
                        self._hold_to(recipe, text, python)
                draft = kept.with_suffix(".draft")
                draft.write_text(text)
                draft.replace(kept)
        text = kept.read_text()
        return Locked(text, _digest(text, *conditions), python, indexes, recipe.build, elsewhere)

    def build(self, locked: Locked, on_progress: Progress | None = None) -> Path:
        """The directory of the environment: `bin/python` exists, all packages are in, byte-compiled, read-only.

        Concurrent callers share one build. What `on_progress` raises stops the build and goes through.
        """
        place = self._root / locked.digest
        if not self.is_finished(place):
            with self._alone(place, on_progress):
                if not self.is_finished(place):
                    self._build_alone(locked, place, on_progress or (lambda note: None))
        return place

    def is_finished(self, environment: Path) -> bool:
        """Whether it is there and whole; its Python may have been uninstalled since, and `check` may have taken it away."""
        return (environment / _MARK).is_file() and (environment / "bin" / "python").exists()

    def check(self, environment: Path) -> None:
        """Compare every file's times and size with those of when it was built; what was written into since is taken away, and built anew
        at the next `build`. Raises `EnvironmentFailed` then. For children that run as our own user, whom no mode of a file holds back.
        """
        seal = self._seal(environment.name)
        known = self._seals.setdefault(environment, seal.read_text() if seal.exists() else _stamp(environment))
        if known == _stamp(environment):
            return
        with self._alone(environment):
            if environment.exists() and known != _stamp(environment):
                os.chmod(environment, 0o700)
                environment.rename(self._root / f".draft-{environment.name}-{secrets.token_hex(4)}")
        self._seals.pop(environment, None)
        raise EnvironmentFailed(
            "somebody wrote into the environment after it was built; it is built anew", transient=True
        )

    def prune_cache(self) -> None:
        """Let uv take out of its cache what no longer serves; nobody may install meanwhile (uv#15704)."""
        self._installer.uv("cache", "prune", cwd=self._root)

    def discard(self, environment: Path, trash: Path) -> bool:
        """Move an environment, or what a killed builder has left of one, to `trash`; False if it is being built. Nobody may use it."""
        name = environment.name if not environment.name.startswith(".draft-") else environment.name.split("-")[1]
        with (self._root / "locks" / f".{name}.lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            os.chmod(environment, 0o700)  # a read-only directory cannot be moved
            environment.rename(trash)
        return True

    def _build_alone(self, locked: Locked, place: Path, progress: Progress) -> None:
        for rest in [place, *self._root.glob(f".draft-{locked.digest}-*")]:  # what killed builders left
            _remove(rest)
        # a name of its own: a killed builder's uv may be dying still
        draft = self._root / f".draft-{locked.digest}-{secrets.token_hex(4)}"
        try:
            self._fill(draft, locked, progress)
            _make_read_only(draft)
            self._seal(place.name).write_text(_stamp(draft))
            self._seals.pop(place, None)
            draft.rename(place)
        except BaseException:
            _remove(draft)
            raise

    def _fill(self, draft: Path, locked: Locked, progress: Progress) -> None:
        began = time.monotonic()
        python = draft / "bin" / "python"
        self._installer.uv("venv", "--relocatable", "--python", locked.python, draft, cwd=self._root)
        wanted = draft / "requirements.txt"
        wanted.write_text(locked.text)
        progress("installing packages")
        options = ["--require-hashes", "--allow-empty-requirements", *([] if locked.build else ["--no-build"])]
        words: list[str | Path] = [*options, *locked.indexes.by_hash(), "--python", python, wanted]
        with _told(locked.elsewhere):
            self._installer.uv("pip", "sync", *words, cwd=self._root, indexes=locked.indexes, progress=progress)
        installed = time.monotonic()
        progress("compiling byte code")
        self._compile(draft, python, progress)
        seconds = {"install": round(installed - began, 3), "compile": round(time.monotonic() - installed, 3)}
        (draft / _MARK).write_text(
            json.dumps({"digest": locked.digest, "python": locked.python, "seconds": seconds}) + "\n"
        )

    def _seal(self, digest: str) -> Path:
        return self._root / "locks" / f"{digest}.seal"

    def _compile(self, draft: Path, python: Path, progress: Progress) -> None:
        """Without the tests that packages carry: with them it takes three times as long."""
        options = ["-q", "-j", "2", "-x", "/site-packages/(.*/)?tests?/"]
        argv: list[str | Path] = [python, "-I", "-m", "compileall", *options, draft / "lib"]
        # a file that does not compile (a template, say) is its package's own business
        with contextlib.suppress(EnvironmentFailed):
            self._installer.run(argv, cwd=self._root, progress=lambda _: progress("compiling byte code"))

    def _interpreter(self, recipe: Recipe, declared: Declared) -> tuple[str, str]:
        """The path of the Python to use and all that distinguishes it."""
        asked = recipe.python or declared.requires_python or "3"
        if asked not in self._probes:
            self._root.mkdir(parents=True, exist_ok=True)
            path = self._find_python(asked)
            told = self._installer.run([path, "-I", "-c", _PROBE], cwd=self._root)
            self._probes[asked] = (path, tuple(json.loads(told)[0]), told)
        path, version, platform = self._probes[asked]
        if declared.requires_python and not requirements.satisfies(version, declared.requires_python):
            has = ".".join(map(str, version))
            raise EnvironmentRefused(
                f"the project requires Python {declared.requires_python}, but {path} is {has}; name another Python"
            )
        return path, platform

    def _find_python(self, asked: str) -> str:
        """Our own comes first on the PATH that uv sees."""
        words = ("python", "find", "--no-project", "--python-preference", "system", asked)
        try:
            return self._installer.uv(*words, cwd=self._root)
        except EnvironmentFailed as error:
            missing = f"no Python {asked} is installed here"
            if not self._fetches:
                raise EnvironmentRefused(f"{missing}; install one, or change requires-python ({error})") from error
        try:
            self._installer.uv("python", "install", "--no-bin", asked, cwd=self._root)
            return self._installer.uv(*words, cwd=self._root)
        except EnvironmentFailed as error:
            raise EnvironmentFailed(
                f"{missing}, and none could be fetched: {error}", transient=error.transient
            ) from error

    def _export(self, declared: Declared, python: str) -> str:
        assert declared.project is not None
        assert declared.lock is not None
        with self._folder({"pyproject.toml": declared.project, "uv.lock": declared.lock}) as folder:
            options = [
                "--frozen",
                "--no-default-groups",
                "--no-emit-project",
                "--no-header",
                "--no-annotate",
                "--quiet",
            ]
            try:
                self._installer.uv("export", *options, "--python", python, "-o", "exported.txt", cwd=folder)
            except EnvironmentFailed as error:
                raise EnvironmentRefused(f"uv.lock cannot be read: {error}") from error
            return requirements.check_exported((folder / "exported.txt").read_text())

    def _hold_to(self, recipe: Recipe, text: str, python: str) -> None:
        """Whether locked versions keep to the constraints: `pip sync` would not ask."""
        with self._folder({"locked.txt": text, "constraints.txt": recipe.constraints or ""}) as folder:
            files = ["-c", "constraints.txt", "--python", python, "locked.txt", "-o", "checked.txt"]
            words = ["--no-deps", "--quiet", *recipe.indexes.by_hash(), *files]
            self._installer.uv("pip", "compile", *words, cwd=folder, indexes=recipe.indexes)

    def _resolve(self, declared: Declared, python: str, recipe: Recipe) -> str:
        asked = {
            "requirements.in": "\n".join(declared.requirements) + "\n",
            "constraints.txt": recipe.constraints or "",
        }
        with self._folder(asked) as folder:
            options = [
                "--generate-hashes",
                "--no-header",
                "--no-annotate",
                "--quiet",
                *([] if recipe.build else ["--no-build"]),
            ]
            files = ["-c", "constraints.txt", "--python", python, "requirements.in", "-o", "resolved.txt"]
            self._installer.uv("pip", "compile", *options, *files, cwd=folder, indexes=recipe.indexes)
            return requirements.check_exported((folder / "resolved.txt").read_text())

    @contextlib.contextmanager
    def _folder(self, files: dict[str, str]) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(dir=self._root, prefix=".lock-") as name:
            for file, text in files.items():
                (Path(name) / file).write_text(text)
            yield Path(name)

    @contextlib.contextmanager
    def _alone(self, place: Path, progress: Progress | None = None) -> Iterator[None]:
        """Hold the lock of one name, across threads and processes; the kernel frees it when its holder dies."""
        folder = self._root / "locks"
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / f".{place.name}.lock").open("w") as file:
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if progress is not None:
                        progress("waiting for another build of the same environment")
                    time.sleep(_WAIT_S)
            yield


@contextlib.contextmanager
def _told(elsewhere: str) -> Iterator[None]:
    """What uv does not find was locked from an index that it was not given."""
    try:
        yield
    except EnvironmentFailed as error:
        if error.transient or not elsewhere:
            raise
        raise EnvironmentRefused(f"{elsewhere}\n{error.message}") from error


def _complete(pinned: str, resolved: str) -> str:
    """What a repository pins with hashes, if nothing is missing that a resolution of it has: uv would not install the rest."""
    missing = requirements.names(resolved) - requirements.names(pinned)
    if missing:
        raise EnvironmentRefused(
            f"requirements.txt has hashes, but not {', '.join(sorted(missing))}, which its packages need; "
            "write the whole list with `uv pip compile --generate-hashes`"
        )
    return pinned


def _digest(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def _make_read_only(tree: Path) -> None:
    """For everybody: who runs a model may be another user; who may come here at all is up to the directories above."""
    for folder, _, files in os.walk(tree, topdown=False):
        for name in files:
            path = os.path.join(folder, name)
            if not os.path.islink(path):
                os.chmod(path, 0o555 if os.stat(path).st_mode & stat.S_IXUSR else 0o444)
        os.chmod(folder, 0o555)


def _stamp(tree: Path) -> str:
    """A digest of the names, sizes, modes and times of all that is in a tree; the time of the last change can be set by nobody."""
    found, folders, above = [], [str(tree)], len(str(tree))
    while folders:
        with os.scandir(folders.pop()) as entries:
            for entry in entries:
                status = entry.stat(follow_symlinks=False)
                times = status.st_mtime_ns, status.st_ctime_ns
                found.append((entry.path[above:], status.st_mode, status.st_size, *times))
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
    return hashlib.sha256(repr(sorted(found)).encode()).hexdigest()


def _remove(tree: Path) -> None:
    if not tree.exists():
        return
    for folder, _, _ in os.walk(tree):
        os.chmod(folder, 0o700)
    shutil.rmtree(tree, ignore_errors=True)
