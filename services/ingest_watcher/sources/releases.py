"""Releases of one model: the commit that its repository offers now, and what that declares, read without a checkout."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import structlog

from services.ingest_watcher.loop import Wake
from services.ingest_watcher.sources.refs import Refs
from shared import content
from shared.catalog import Model, check_declaration
from shared.declaration import Declaration, parse
from shared.errors import HeadraceError, Refused
from shared.git import Mirror, resolve
from shared.ledger import Ledger, configuration, planning, releases
from shared.ledger.configuration import InForce
from shared.toml import MAX_BYTES

FILE = "pyproject.toml"
NOTE_S = 10.0
TOGETHER_S = 0.5  # models that are called at the same moment look together

log = structlog.get_logger()


@dataclass(frozen=True)
class Read:
    """What a commit says of itself, and the digest of what it trains."""

    declared: Declaration
    content: str


class ReleaseWatch:
    """Looks at each `release_poll` and at a call (the configuration has changed). Any number of watchers may do so at once; those that
    share `refs` ask a repository once for all of them, and so come to look at the same moments."""

    def __init__(self, ledger: Ledger, model: str, mirrors: Path, refs: Refs, wake: Wake) -> None:
        self._ledger, self._model, self._mirrors, self._refs, self._wake = ledger, model, mirrors, refs, wake
        self._called = False
        self._looked_at = 0.0
        self._judged: tuple[str, str, str] | None = None  # configuration, name and commit of what was read last
        self._noted: tuple[str | None, float] | None = None

    def step(self) -> None:
        with self._ledger.read() as tx:
            config = configuration.in_force(tx)
        wanted = config.catalog.models.get(self._model)
        if wanted is None:
            self._wake.wait(NOTE_S)  # until the roster stops this loop
            return
        poll_s, now = wanted.release_poll.total_seconds(), time.monotonic()
        self._looked_at = now
        try:
            settled = self._look(config, wanted, now - (TOGETHER_S if self._called else poll_s))
        except HeadraceError as error:
            self._note(error.message)
        else:
            self._note(None)
            if not settled:
                return
        due = self._looked_at + poll_s
        self._wake.wait(max(0.0, due - time.monotonic()))
        self._called = time.monotonic() < due

    def close(self) -> None:
        """Holds nothing."""

    def _look(self, config: InForce, wanted: Model, since: float) -> bool:
        """Take in what the repository offers, asked for after `since`; False when another watcher or a new configuration came between, and it must be done again."""
        before = self._newest_seen()
        url, below = wanted.repository, wanted.subdirectory
        mirror = Mirror(self._mirrors, url, allow_local=True, credentials=wanted.credentials, parts=below is not None)
        fixed = wanted.release != "latest" and ":" not in wanted.release  # a commit: nothing can move it
        refs = {} if fixed else self._ask(mirror, wanted, since)
        name, commit = resolve(wanted.release, refs, pattern=wanted.tags, prereleases=wanted.prereleases)
        if self._judged == (config.digest, name, commit):
            return True
        mirror.fetch(commit, below=below)
        read, tag = (
            self._read(mirror, commit, config, wanted),
            wanted.release == "latest" or wanted.release.startswith("tag:"),
        )
        with self._ledger.write() as tx:
            tx.lock("configuration", shared=True)  # what the release was judged by stays in force until it is adopted
            if configuration.in_force(tx).digest != config.digest or _id(releases.seen(tx, self._model)) != before:
                return False
            if isinstance(read, Refused):
                releases.refused(tx, self._model, name, commit, read.message, tag=tag)
            else:
                planning.adopt(tx, self._model, name, commit, read.declared, content=read.content, tag=tag)
        self._judged = config.digest, name, commit
        log.info("release.seen", model=self._model, release=name, commit=commit, refused=isinstance(read, Refused))
        return True

    def _ask(self, mirror: Mirror, wanted: Model, since: float) -> Mapping[str, str]:
        answer = self._refs.look((wanted.repository, wanted.credentials), mirror.remote_refs, since)
        self._looked_at = answer.came_at
        return answer.read()

    def _newest_seen(self) -> int | None:
        with self._ledger.read() as tx:
            return _id(releases.seen(tx, self._model))

    def _read(self, mirror: Mirror, commit: str, config: InForce, wanted: Model) -> Read | Refused:
        below = wanted.subdirectory
        try:
            files = mirror.check(commit, below)
            text = mirror.show(commit, f"{below}/{FILE}" if below else FILE, MAX_BYTES)
            if text is None:
                where = below or "at the top of the repository"
                raise Refused(f"{FILE} is missing {'in ' * bool(below)}{where}; add one with a table [tool.headrace]")
            declared = parse(text)
            check_declaration(declared, config.catalog, self._model)
            return Read(declared, content.digest(files, declared, text))
        except Refused as refusal:
            return refusal

    def _note(self, error: str | None) -> None:
        """Write down that the repository was looked at: at once when the answer is another one, else now and then."""
        now = time.monotonic()
        if self._noted is not None and self._noted[0] == error and now - self._noted[1] < NOTE_S:
            return
        if error is not None and (self._noted is None or self._noted[0] != error):
            log.warning("repository.unreadable", model=self._model, why=error)
        with self._ledger.write() as tx:
            releases.looked(tx, self._model, error)
        self._noted = error, now


def _id(row: object) -> int | None:
    return None if row is None else int(row.id)  # type: ignore[attr-defined]
