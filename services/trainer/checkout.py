"""From a release to something that runs: its files at the commit, and its environment."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from headrace.environment import EnvironmentFailed, EnvironmentRefused, Environments, Locked, Recipe
from uv import find_uv_bin

from services.trainer.failures import AttemptFailed
from shared.errors import NotFound, Refused, Transient
from shared.git import Mirror
from shared.ledger.releases import Release
from shared.repository import is_local
from shared.settings import Settings

Say = Callable[[str], None]


@dataclass(frozen=True)
class Prepared:
    """`python` runs the code under `checkout` in the environment that `requirements` (with hashes) define."""

    checkout: Path
    python: Path
    requirements: str


class Workshop:
    """Checkouts and environments on this machine, each made once and shared by all attempts."""

    def __init__(self, settings: Settings) -> None:
        home = settings.state_dir / "trainer"
        self._mirrors = settings.state_dir / "git"
        self._checkouts = home / "checkouts"
        self._index_url = settings.index_url
        self._environments = Environments(home / "environments", find_uv_bin(), home / "uv-cache")
        self._known: dict[tuple[str, str], Prepared] = {}
        self._lock = threading.Lock()
        self._checkouts.mkdir(parents=True, exist_ok=True)

    def prepare(self, repository: str, release: Release, say: Say) -> Prepared:
        """Check the release out and build its environment, where that is not done yet. Raises `AttemptFailed`."""
        key = (repository, release.commit)
        known = self._known.get(key)
        if known is not None and known.python.exists() and known.checkout.exists():
            return known
        checkout = self._checkout(repository, release, say)
        locked, python = self._environment(checkout, release, say)
        prepared = Prepared(checkout, python, locked.text)
        with self._lock:
            self._known[key] = prepared
        return prepared

    def _checkout(self, repository: str, release: Release, say: Say) -> Path:
        into = self._checkouts / release.commit
        if into.exists():
            return into
        say(f"checking out {release.name} ({release.commit[:12]})")
        try:
            Mirror(self._mirrors, repository, allow_local=is_local(repository)).checkout(release.commit, into)
        except Transient as error:
            raise AttemptFailed("repository", error.message, transient=True) from error
        except (Refused, NotFound) as error:
            raise AttemptFailed("repository", error.message, "mend the repository and tag a new release") from error
        return into

    def _environment(self, checkout: Path, release: Release, say: Say) -> tuple[Locked, Path]:
        recipe = Recipe(checkout=checkout, index_url=self._index_url)
        try:
            locked = self._environments.lock(recipe)
            environment = self._environments.build(locked, on_progress=say)
        except EnvironmentRefused as error:
            raise AttemptFailed("environment", str(error), "mend the requirements and tag a new release") from error
        except EnvironmentFailed as error:
            advice = "it is tried again" if error.transient else "mend the requirements and tag a new release"
            raise AttemptFailed("environment", str(error), advice, transient=error.transient) from error
        return locked, environment / "bin" / "python"
