"""Which loops run: one for each dataset with a source and each model of the configuration in force, the stream and the bell."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import structlog

from services.ingest_watcher.bell import Bell, Doorbell
from services.ingest_watcher.loop import Body, Loop, Wake
from services.ingest_watcher.sources.refs import Refs
from services.ingest_watcher.sources.releases import ReleaseWatch
from services.ingest_watcher.sources.sql import SqlSource
from services.ingest_watcher.sources.stream import StreamReader
from services.ingest_watcher.watch import DatasetWatch
from shared import settings as surroundings
from shared.catalog import Catalog, Dataset, Sql
from shared.errors import ConfigurationError
from shared.ledger import Ledger, configuration, datasets
from shared.settings import Settings

LONGEST_WAIT_S = 5.0
JOIN_S = 1.2  # all loops together; one that hangs in a database or in git is left behind with the process
REPLACE_S = 5.0

log = structlog.get_logger()
Key = tuple[str, str]


@dataclass(frozen=True)
class Post:
    """A loop at work, and the definition that it was started for."""

    definition: object
    loop: Loop


class Roster:
    """The body of the loop that starts and stops the others and hands nudges to them."""

    def __init__(
        self, ledger: Ledger, settings: Settings, connect: Callable[[tuple[str, ...]], Doorbell], wake: Wake
    ) -> None:
        self._ledger, self._settings, self._connect, self._wake = ledger, settings, connect, wake
        self._changes = ledger.watch()
        self._posts: dict[Key, Post] = {}
        self._digest: str | None = None
        self._refs = Refs()

    def step(self) -> None:
        self.reconcile()
        self._changes.wait(LONGEST_WAIT_S, self._wake.stopped)

    def reconcile(self) -> None:
        """Make what runs agree with the ledger; called again it changes nothing."""
        self._changes.poll()
        with self._ledger.read() as tx:
            try:
                config = configuration.in_force(tx)
            except ConfigurationError:
                return  # before the first `apply` there is nothing to do
            nudges = {row.name: row.nudged_at for row in datasets.find_all(tx)}
        if config.digest != self._digest:
            self._fill(config.catalog)
            self._digest = config.digest
            log.info("configuration.in_force", digest=config.digest, loops=len(self._posts))
        self._nudge(nudges)

    def dead(self) -> list[str]:
        """The names of loops that have ended although nobody stopped them."""
        return [post.loop.name for post in list(self._posts.values()) if post.loop.died]

    def close(self) -> None:
        self._changes.close()
        posts = list(self._posts.values())
        for post in posts:
            post.loop.stop()
        deadline = time.monotonic() + JOIN_S
        left = [post.loop.name for post in posts if not post.loop.join(deadline - time.monotonic())]
        if left:
            log.warning("loops.left_behind", loops=left)

    def _fill(self, catalog: Catalog) -> None:
        wanted: dict[Key, Any] = {
            ("dataset", name): one for name, one in catalog.datasets.items() if isinstance(one.source, Sql)
        }
        wanted |= {("model", name): None for name in catalog.models} | {("bell", "bell"): None}
        wanted |= {("stream", "stream"): None}  # always: a dataset of any kind may be spoken of there
        for key, post in list(self._posts.items()):
            if key not in wanted or wanted[key] != post.definition:
                post.loop.stop()
                post.loop.join(REPLACE_S)
                del self._posts[key]
        for key, definition in wanted.items():
            if key in self._posts:
                self._posts[key].loop.call()  # a release is judged by the configuration too
            else:
                wake = Wake()
                loop = Loop(" ".join(dict.fromkeys(key)), self._make(key, definition, wake), wake)
                self._posts[key] = Post(definition, loop)

    def _make(self, key: Key, definition: Any, wake: Wake) -> Body:
        kind, name = key
        if kind == "dataset":
            return self._watch(name, definition, wake)
        if kind == "model":
            return ReleaseWatch(self._ledger, name, self._settings.state_dir / "git", self._refs, wake)
        if kind == "stream":
            lease = timedelta(seconds=self._settings.lease_s)
            return StreamReader(self._ledger, self._settings.redis_url, self._settings.worker, lease)
        return Bell(self._ledger, self._connect, wake)

    def _watch(self, name: str, dataset: Dataset, wake: Wake) -> DatasetWatch:
        source = dataset.source
        assert isinstance(source, Sql)

        def open_source() -> SqlSource:
            url = surroundings.resolve(source.url)
            return SqlSource(
                url, source.table, source.cursor, source.lag, source.time_column, dataset.holdout, told=wake.call
            )

        lease = timedelta(seconds=self._settings.lease_s)
        return DatasetWatch(
            self._ledger, name, open_source, wake, owner=self._settings.worker, lease=lease, poll=source.poll
        )

    def _nudge(self, nudges: dict[str, datetime | None]) -> None:
        for (_, name), post in self._posts.items():
            if isinstance(post.loop.body, DatasetWatch):
                post.loop.body.nudge(nudges.get(name))
