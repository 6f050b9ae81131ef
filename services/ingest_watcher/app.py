"""The watcher's process: built here, verified, run until SIGTERM."""

from __future__ import annotations

import signal
import threading

import structlog

from services.ingest_watcher.loop import Loop, Wake
from services.ingest_watcher.roster import JOIN_S, Roster
from shared import git
from shared import log as structured_log
from shared.celery_app import make_app
from shared.errors import HeadraceError
from shared.ledger import Ledger
from shared.ledger.schema import await_schema
from shared.messages import TRAIN, ring, train_queue
from shared.settings import Settings, load

ALIVE_S = 0.2

log = structlog.get_logger()


class CeleryDoorbell:
    """Rings on the queues of these compute classes. Redis may be away, now and later."""

    def __init__(self, settings: Settings, compute_classes: tuple[str, ...]) -> None:
        self._app = make_app(settings, compute_classes, patient=False)

    def ring(self, run: int, compute_class: str) -> bool:
        return ring(self._app, TRAIN, train_queue(compute_class), run)

    def close(self) -> None:
        self._app.close()


class Watcher:
    """Every loop of this process; raises `HeadraceError` while the ledger is not as it must be."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._ledger = Ledger(settings.ledger_url)
        await_schema(self._ledger, settings.patience_s)
        wake = Wake()
        self._roster = Roster(self._ledger, settings, lambda classes: CeleryDoorbell(settings, classes), wake)
        self._roster.reconcile()
        self._loop = Loop("roster", self._roster, wake)

    def run(self, stop: threading.Event) -> int:
        """Keep watch until `stop` is set; 1 when a loop has died, so that the supervisor starts the process anew."""
        while not stop.wait(ALIVE_S):
            dead = self._roster.dead() + ([self._loop.name] if self._loop.died else [])
            if dead:
                log.critical("watcher.loop_died", loops=dead)
                return 1
        return 0

    def close(self) -> None:
        self._loop.stop()
        self._loop.join(JOIN_S + ALIVE_S)
        self._ledger.close()


def main() -> int:
    """The exit code: 0 after SIGTERM or SIGINT, 1 when it cannot start or a loop has died."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: stop.set())
    try:
        settings = load()
        structured_log.configure(settings)
        watcher = Watcher(settings)
    except HeadraceError as error:
        log.critical("watcher.cannot_start", why=error.message)
        return 1
    if advice := git.too_old(git.version()):
        log.warning("git_is_old", advice=advice)
    settings.announce_ready()
    log.info("watcher.ready", worker=settings.worker)
    code = watcher.run(stop)
    watcher.close()
    log.info("watcher.stopped", code=code)
    return code
