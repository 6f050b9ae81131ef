"""What keeps everything after a training moving, whether or not a message came: registrations, verdicts, promotions, deliveries."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from services.registry_bridge.deliver import Deliverer
from services.registry_bridge.janitor import Janitor
from services.registry_bridge.promote import Promoter
from services.registry_bridge.register import Registrar
from shared.errors import HeadraceError, Unavailable
from shared.ledger import Ledger, versions

SWEEP_EVERY_S = 2.0
MIRROR_EVERY_S = 60.0
EX_BROKEN = 70
log = structlog.get_logger()


@dataclass
class Sweep:
    """The loops of one bridge: one takes trained runs onward, one sends what is due, one tidies. Any number of bridges may run."""

    ledger: Ledger
    registrar: Registrar
    promoter: Promoter
    deliverer: Deliverer
    janitor: Janitor | None = None

    def __post_init__(self) -> None:
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self._mirrored_at = 0.0

    def start(self) -> None:
        steps = [("settle", self._settle_all), ("deliver", self.deliverer.send_due)]
        if self.janitor is not None:
            steps.append(("tidy", self.janitor.look))
        for name, step in steps:
            thread = threading.Thread(target=self._loop, args=(name, step), name=name, daemon=True)
            self._threads.append(thread)
            thread.start()

    def stop(self, timeout_s: float) -> None:
        self._stop.set()
        if self.janitor is not None:
            self.janitor.leaving.set()
        for thread in self._threads:
            thread.join(timeout_s)
        self.deliverer.stop()

    def advance(self, run: int) -> None:
        """Register the run if that is not done, and settle its version as far as it goes. What fails is looked at again by the sweep."""
        try:
            self.registrar.register(run)
            self.promoter.settle(run)
        except Unavailable as error:
            log.warning("advance_postponed", run=run, error=error.message)
        except Exception:  # the edge: one run that cannot be judged must not stop the others
            log.exception("advance_failed", run=run)

    def _follow(self, model: str) -> None:
        try:
            self.promoter.follow(model)
        except HeadraceError as error:  # such as a version that was deleted in MLflow: the other models go on
            log.error("alias_not_moved", model=model, error=error.message)

    def _settle_all(self) -> float | None:
        with self.ledger.read() as tx:
            waiting, models = versions.unregistered(tx), versions.with_intent(tx)
            candidates = versions.candidates(tx)
        for run in (*waiting, *candidates):
            self.advance(run)
        for model in models:
            self._follow(model)
        if time.monotonic() - self._mirrored_at > MIRROR_EVERY_S:
            self._mirrored_at = time.monotonic()
            self.promoter.mirror()
        return None

    def _loop(self, name: str, step: Callable[[], float | None]) -> None:
        """Run the step after each change of the ledger, when something becomes due, and every few seconds."""
        changes = self.ledger.watch()
        while not self._stop.is_set():
            try:
                pause = self._try(name, step)
                changes.wait(min(SWEEP_EVERY_S, pause if pause is not None else SWEEP_EVERY_S), self._stop)
            except Exception:  # the edge: this loop is what heals the rest, so it must not die quietly
                log.exception("sweep_failed", loop=name)
                os._exit(EX_BROKEN)
        changes.close()

    def _try(self, name: str, step: Callable[[], float | None]) -> float | None:
        try:
            return step()
        except HeadraceError as error:
            log.warning("sweep_postponed", loop=name, error=error.message)
            return None
