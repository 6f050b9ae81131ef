"""What a trainer takes away on its own disk: all of it can be made again, and whatever is in use stays.

A thing is moved to the trash in one step and deleted there, so that a kill leaves it whole or gone; the trash is emptied first of all.
"""

from __future__ import annotations

import os
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import structlog
from headrace.environment import EnvironmentFailed, Environments
from uv import find_uv_bin

from services.trainer.disk import Disk, measure
from shared.catalog import Catalog
from shared.errors import HeadraceError
from shared.git import Mirror
from shared.locks import unused
from shared.points import point
from shared.repository import is_local
from shared.retention import Place, Report, fit

EVERY_S = 3600.0
FIRST_S = 60.0
STALE_S = 24 * 3600.0
_PRUNE = point("uv prune", __name__)
log = structlog.get_logger()


@dataclass
class DiskTidy:
    """Tidies one trainer's disk. Several may do so at the same time. `dry` only says what would go."""

    state_dir: Path
    catalog: Callable[[], Catalog]
    leaving: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self._disk = Disk(self.state_dir / "trainer")
        self._sizes: dict[Path, int] = {}  # of what is never written again
        self._environments = Environments(self._disk.environments, find_uv_bin(), self._disk.uv_cache)

    def start(self) -> None:
        threading.Thread(target=self._loop, name="tidy", daemon=True).start()

    def _loop(self) -> None:
        """Soon after the start, then every hour; what goes wrong here keeps no training from going on."""
        pause = FIRST_S
        while not self.leaving.wait(pause):
            pause = EVERY_S
            try:
                self.tidy()
            except HeadraceError as error:
                log.warning("disk_tidying_postponed", error=error.message)
            except Exception:  # the edge: the disk is looked at again in an hour
                log.exception("disk_not_tidied")

    def tidy(self, *, dry: bool = False, everything: bool = False) -> Report:
        """Take what is stale, and of the rest what has been unused for longest, until it fits; `everything` that nobody uses, whether it
        fits or not. Raises `OSError` for a disk that fails."""
        report = Report()
        catalog = self.catalog()
        if not dry:
            self._empty_trash()
        self._scratch(report, dry)
        self._drafts(report, dry)
        self._mirrors(report, catalog, dry)
        self._places(report, 0 if everything else catalog.keep.environments, dry)
        if not dry:
            self._prune(report)
        if any(count.number for count in report.taken.values()):
            log.info("disk_tidied", taken=report.to_json(), dry=dry)
        return report

    def _places(self, report: Report, size_bytes: int, dry: bool) -> None:
        """Environments, checkouts, fetched models and uv's cache share one allowance."""
        paths = {str(path): path for path in self._all_places()}
        known = [Place(name, self._size(path), self._disk.used_at(path)) for name, path in paths.items()]
        taken: set[str] = set()

        def take(place: Place) -> bool:
            gone = self._take(paths[place.name], report, dry, place.size_bytes)
            taken.update({place.name} if gone else ())
            return gone

        fit(known, size_bytes, take)
        for name in paths.keys() - taken:
            report.keep(self._kind(paths[name]), "it fits, or is in use")

    def _all_places(self) -> Iterator[Path]:
        for folder in (self._disk.environments, self._disk.checkouts, self._disk.bundles):
            for path in _children(folder):
                if not path.name.startswith(".") and path != self._disk.environments / "locks":
                    yield path
        if self._disk.uv_cache.exists():
            yield self._disk.uv_cache

    def _kind(self, path: Path) -> str:
        return path.name if path == self._disk.uv_cache else path.parent.name

    def _take(self, path: Path, report: Report, dry: bool, size_bytes: int) -> bool:
        with self._disk.unused(path) as free:
            if not free or not path.exists() or not (dry or self._trash(path)):
                return False
            if not dry:
                self._disk.forget(path)
        report.take(self._kind(path), 1, size_bytes)
        if not dry:
            self._sizes.pop(path, None)
            self._empty_trash()
        return True

    def _trash(self, path: Path) -> bool:
        self._disk.trash.mkdir(parents=True, exist_ok=True, mode=0o700)
        into = self._disk.trash / f"{path.name.lstrip('.')}-{secrets.token_hex(4)}"
        if path.parent == self._disk.environments:
            return self._environments.discard(path, into)
        path.rename(into)
        return True

    def _empty_trash(self) -> None:
        for path in _children(self._disk.trash):
            for folder, _, _ in os.walk(path):
                with suppress(FileNotFoundError):  # another janitor empties it too
                    os.chmod(folder, 0o700)
            shutil.rmtree(path, ignore_errors=True)

    def _scratch(self, report: Report, dry: bool) -> None:
        """What killed attempts have left, and the marks of those that have ended."""
        for path in _children(self._disk.scratch):
            if _is_stale(path):
                self._take(path, report, dry, measure(path))
        for mark in _children(self._disk.mark(self._disk.scratch)):
            place = self._disk.scratch / mark.name
            if not dry and not place.exists() and _is_stale(mark):
                with self._disk.unused(place) as free:
                    if free:
                        self._disk.forget(place)

    def _drafts(self, report: Report, dry: bool) -> None:
        """What killed builders and copiers have left; one that is at work holds the lock of what it makes."""
        for path in _children(self._disk.environments):
            if path.name.startswith(".draft-") and _is_stale(path):
                size_bytes = measure(path)
                if dry or self._trash(path):
                    report.take("drafts", 1, size_bytes)
        for path in (*_children(self._disk.checkouts), *_children(self._disk.bundles)):
            if path.name.endswith(".partial") and _is_stale(path):
                with unused(path.with_suffix(".lock")) as free:
                    if free and path.exists():
                        report.take("drafts", 1, measure(path))
                        if not dry:
                            self._trash(path)

    def _mirrors(self, report: Report, catalog: Catalog, dry: bool) -> None:
        """Git mirrors of repositories that the configuration no longer names."""
        root = self.state_dir / "git"
        named = {(model.repository, model.subdirectory is not None) for model in catalog.models.values()}
        kept = {Mirror(root, url, allow_local=is_local(url), parts=parts).directory for url, parts in named}
        for path in _children(root):
            if path.suffix != ".git" or path in kept or not _is_stale(path):
                continue
            with unused(path.with_suffix(".lock")) as free:
                if free:
                    report.take("mirrors", 1, measure(path))
                    if not dry:
                        self._trash(path)

    def _prune(self, report: Report) -> None:
        """What no longer serves in uv's own cache, while nobody installs; after an environment went, for that is when there is some."""
        if "environments" not in report.taken or not self._disk.uv_cache.exists():
            return
        before = measure(self._disk.uv_cache)
        with self._disk.unused(self._disk.uv_cache) as free:
            if not free:
                report.keep("uv-cache", "it is in use")
                return
            try:
                with _PRUNE:
                    self._environments.prune_cache()
            except (EnvironmentFailed, HeadraceError) as error:
                report.errors.append(f"uv's cache could not be pruned: {error}")
                return
        if (freed := before - measure(self._disk.uv_cache)) > 0:
            report.take("uv-cache", 1, freed)

    def _size(self, path: Path) -> int:
        if path not in self._sizes:
            self._sizes[path] = measure(path)
        return self._sizes[path]


def _children(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except FileNotFoundError:
        return []


def _is_stale(path: Path) -> bool:
    with suppress(FileNotFoundError):
        return path.stat().st_mtime < time.time() - STALE_S
    return False
