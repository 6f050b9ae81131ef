"""From a release to something that runs: its files at the commit, and its environment."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from headrace.environment import EnvironmentFailed, EnvironmentRefused, Environments, Locked, Recipe
from headrace.indexes import split
from uv import find_uv_bin

from services.trainer.disk import Disk
from services.trainer.failures import AttemptFailed
from services.trainer.limits import Pace
from services.trainer.users import Users
from services.trainer.warm import Parents
from shared.catalog import Model
from shared.errors import ConfigurationError, NotFound, Refused, Transient
from shared.git import Mirror
from shared.ledger.releases import Release
from shared.points import point
from shared.repository import is_local
from shared.settings import Settings

Say = Callable[[str], None]
_LOCK, _BUILD = point("uv lock", __name__), point("uv build", __name__)


@dataclass(frozen=True)
class Prepared:
    """`python` runs the code under `checkout` in the environment that `requirements` (with hashes) define."""

    checkout: Path
    python: Path
    requirements: str
    check: Callable[[], None] = lambda: None
    """Raises `AttemptFailed` if somebody has written into the environment since it was built."""


class Workshop:
    """Checkouts and environments on this machine, each made once and shared by all attempts."""

    def __init__(self, settings: Settings) -> None:
        self._disk = Disk(settings.state_dir / "trainer")
        self._mirrors = settings.state_dir / "git"
        self._index_url, self._extra = settings.index_url, _split_urls(settings.extra_index_urls)
        self._constraints = _read_constraints(settings.constraints)
        pythons = self._disk.pythons if settings.python_downloads else None
        self._environments = Environments(self._disk.environments, find_uv_bin(), self._disk.uv_cache, pythons)
        self._opened: set[str] = set()
        self._known: dict[tuple[str, Path], tuple[Locked, Prepared]] = {}
        self._looks: dict[Path, tuple[Pace, threading.Lock]] = {}
        self._lock = threading.Lock()
        self._disk.checkouts.mkdir(parents=True, exist_ok=True)
        self.users = Users(settings.child_uids, settings.state_dir / "trainer" / "users")
        disk = self._disk
        # A parent cannot fork for another user, and as one of its own its forks could kill their wardens.
        most = (
            0 if self.users.others else 2 * settings.slots if settings.warm_parents is None else settings.warm_parents
        )
        self.parents = Parents(most, disk, with_gpus=settings.warm_parents is not None)
        self.users.open_way(
            settings.state_dir, disk.home, disk.pythons, disk.environments, disk.checkouts, disk.bundles, disk.scratch
        )

    @contextmanager
    def prepared(self, model: Model, release: Release, say: Say) -> Iterator[Prepared]:
        """The release checked out and its environment built, where that is not done yet; both stay while the block lasts. Raises `AttemptFailed`."""
        checkout = self._disk.checkouts / _directory(release.commit, model.subdirectory)
        key = (model.repository, checkout)
        with ExitStack() as uses:
            uses.enter_context(self._disk.using(checkout))
            known = self._known.get(key)
            if known is not None:
                locked, there = known
                uses.enter_context(self._disk.using(self._disk.environments / locked.digest))
                if self._environments.is_finished(there.python.parent.parent) and there.checkout.exists():
                    yield there
                    return
            self._checkout(model, release, checkout, say)
            with self._disk.using(self._disk.uv_cache):
                locked = self._lock_requirements(checkout)
                uses.enter_context(self._disk.using(self._disk.environments / locked.digest))
                place = self._build(locked, say)
                found = Prepared(checkout, place / "bin" / "python", locked.text, partial(self._check, place))
            with self._lock:
                self._known[key] = (locked, found)
            yield found

    def _checkout(self, model: Model, release: Release, into: Path, say: Say) -> None:
        if into.exists():
            return
        say(f"checking out {release.name} ({release.commit[:12]})")
        try:
            url, below = model.repository, model.subdirectory
            local, parts = is_local(url), below is not None
            mirror = Mirror(self._mirrors, url, allow_local=local, credentials=model.credentials, parts=parts)
            mirror.checkout(release.commit, into, below)
        except Transient as error:
            raise AttemptFailed("repository", error.message, transient=True) from error
        except ConfigurationError as error:
            raise AttemptFailed("configuration", error.message, "give it to the worker, and retry the run") from error
        except (Refused, NotFound) as error:
            raise AttemptFailed("repository", error.message, "mend the repository and tag a new release") from error
        self.users.open_tree(into)

    def _check(self, environment: Path) -> None:
        """Who runs as another user cannot have written there. A look at every file costs a tenth of a second: attempts that follow each other
        closely, or run side by side, share one."""
        pace, looked_at = self._looks.setdefault(environment, (Pace(0.0), threading.Lock()))
        if not self.users.others:
            with looked_at, _explained():
                pace.take(partial(self._environments.check, environment))

    def _lock_requirements(self, checkout: Path) -> Locked:
        with _explained(), _LOCK:
            recipe = Recipe(
                checkout, index_url=self._index_url, constraints=self._constraints, extra_index_urls=self._extra
            )
            return self._environments.lock(recipe)

    def _build(self, locked: Locked, say: Say) -> Path:
        with _explained(), _BUILD:
            if self._disk.pythons in Path(locked.python).parents and locked.python not in self._opened:
                self.users.open_tree(self._disk.pythons)  # uv has fetched it for the worker's user
                self._opened.add(locked.python)
            return self._environments.build(locked, on_progress=say)


def _split_urls(text: str | None) -> tuple[str, ...]:
    try:
        return split(text or "")
    except ValueError as error:
        raise ConfigurationError(f"extra_index_urls: {error}") from error


def _read_constraints(path: Path | None) -> str | None:
    try:
        return path.read_text() if path is not None else None
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"constraints: {path} cannot be read ({error}); name a file of this machine"
        ) from error


def _directory(commit: str, subdirectory: str | None) -> str:
    """The name of a checkout: models of one repository may be trained from the same commit."""
    return commit if subdirectory is None else f"{commit}-{hashlib.sha256(subdirectory.encode()).hexdigest()[:12]}"


@contextmanager
def _explained() -> Iterator[None]:
    """What keeps an environment from being made, as the failure of an attempt."""
    try:
        yield
    except EnvironmentRefused as error:
        raise AttemptFailed("environment", str(error), "mend the requirements and tag a new release") from error
    except EnvironmentFailed as error:
        advice = "it is tried again" if error.transient else "mend the requirements and tag a new release"
        raise AttemptFailed("environment", str(error), advice, transient=error.transient) from error
