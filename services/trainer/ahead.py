"""While a run waits for its time, a trainer that has nothing else to do makes the checkout and the environment that it will need."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Protocol

import structlog

from services.trainer.checkout import Workshop
from services.trainer.failures import AttemptFailed, Leaving
from services.trainer.lookout import Slots
from shared.catalog import Model
from shared.errors import HeadraceError
from shared.ledger.releases import Release

EVERY_S = 5.0
log = structlog.get_logger()


class Coming(Protocol):
    """The worker's view of the ledger; see `claims.LedgerWork`."""

    def coming(self) -> list[tuple[Model, Release]]: ...


@dataclass
class Ahead:
    """Looks every 5 s while all slots are free; one release at a time, each once."""

    work: Coming
    workshop: Workshop
    slots: Slots
    leaving: threading.Event
    _tried: set[tuple[str, str | None, str]] = field(default_factory=set)

    def start(self) -> None:
        threading.Thread(target=self._loop, name="ahead", daemon=True).start()

    def _loop(self) -> None:
        while not self.leaving.wait(EVERY_S):
            try:
                self.prepare()
            except HeadraceError as error:
                log.warning("not_prepared_ahead", error=error.message)
            except Exception:  # the edge of a thread: the run prepares for itself
                log.exception("not_prepared_ahead")

    def prepare(self) -> None:
        """What keeps it from being made is left to the run that it is for, which tells its author."""
        coming = {
            (model.repository, model.subdirectory, release.commit): (model, release)
            for model, release in self.work.coming()
        }
        self._tried &= coming.keys()
        for key, (model, release) in coming.items():
            if key in self._tried or self.slots.busy:
                continue
            self._tried.add(key)
            try:
                with self.workshop.prepared(model, release, self._go_on):
                    log.info("prepared_ahead", model=release.model, release=release.name)
            except (AttemptFailed, Leaving) as error:
                log.info("not_prepared_ahead", model=release.model, release=release.name, reason=error.message)

    def _go_on(self, _note: str) -> None:
        if self.leaving.is_set():
            raise Leaving("the worker shuts down")
