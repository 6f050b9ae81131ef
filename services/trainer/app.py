"""The trainer process: `python -m services.trainer`, or `celery -A services.trainer.app worker -Q train.<class> -P threads`."""

from __future__ import annotations

import threading
from datetime import timedelta
from functools import cache, partial
from typing import Any

import structlog
from celery import Celery
from celery.signals import worker_init, worker_shutdown, worker_shutting_down
from headrace.job import HARNESS

from services.trainer import tasks
from services.trainer.ahead import Ahead
from services.trainer.attempt import Trainer
from services.trainer.checkout import Workshop
from services.trainer.claims import LedgerClaims, LedgerScores, LedgerWork
from services.trainer.evaluate import Evaluator
from services.trainer.failures import Stopped
from services.trainer.heart import Heart
from services.trainer.lookout import Due, Lookout, Slots
from services.trainer.shares import Shares, own_cpus, own_gpus
from services.trainer.tidy import DiskTidy
from services.trainer.usage import Meter
from services.trainer.warm import Parents
from shared import git, messages
from shared.blobs import make_blobs
from shared.celery_app import make_app, work
from shared.errors import HeadraceError
from shared.ledger import Ledger
from shared.ledger.schema import await_schema
from shared.log import configure
from shared.logs import make_logs
from shared.settings import Settings, load

log = structlog.get_logger()
AFTER_GRACE_S = 3.0  # what a training has left is kept, and its run handed back


def build(settings: Settings) -> Celery:
    """The Celery application with everything that its messages need; verifies ledger and stores, and opens nothing to Redis."""
    ledger = Ledger(settings.ledger_url)
    await_schema(ledger, settings.patience_s)
    leaving, slots = threading.Event(), Slots(settings.slots)
    classes = (settings.compute_class,)
    app, bell = make_app(settings, classes), make_app(settings, classes, patient=False)
    workshop = Workshop(settings)
    do = _make_work(settings, ledger, workshop, leaving, bell)
    work = LedgerWork(ledger, settings.worker, settings.compute_class, settings.slots)
    lookout = Lookout(work, slots, lambda due: _ring(bell, settings.compute_class, due), do, leaving, settings.look_s)
    tasks.register(app, slots, lookout, do)
    ahead, tidy = Ahead(work, workshop, slots, leaving), DiskTidy(settings.state_dir, work.catalog, leaving)
    _connect(settings, lookout, ahead, tidy, workshop.parents)
    return app


def _make_work(settings: Settings, ledger: Ledger, workshop: Workshop, leaving: threading.Event, bell: Celery) -> Any:
    home, lease = settings.state_dir / "trainer", timedelta(seconds=settings.lease_s)
    blobs, logs = make_blobs(settings.blobs_url), make_logs(settings.logs_url)
    workshop.users.verify(HARNESS, home / "scratch" / "first-try")
    evaluator = Evaluator(workshop, blobs, logs, home)
    claims, scores = LedgerClaims(ledger, settings.worker, lease), LedgerScores(ledger, lease)
    shares = Shares(settings.slots, own_cpus(), own_gpus(settings.gpus), home / "gpus")
    trainer = Trainer(
        claims, workshop, evaluator, blobs, logs, home, shares, settings.heartbeat_s, leaving, settings.grace_s
    )

    def score(run: int, holdout: str) -> None:
        if (wanted := scores.claim(run, holdout)) is None:
            return
        subject, ranges, config = wanted
        model, sources = config.catalog.models.get(subject.release.model), config.catalog.datasets
        found = None
        try:
            if model is not None:
                asked = config.catalog.compute_classes.get(settings.compute_class)
                with (
                    Heart(lambda *_: scores.beat(run, holdout), settings.heartbeat_s, leaving) as heart,
                    shares.one(asked.gpus if asked is not None else 0) as share,
                ):
                    name = f"later-{holdout[-12:]}"  # one run may be scored on two holdouts at once
                    say = partial(log.info, "score", run=run)
                    found = evaluator.score(
                        subject,
                        model,
                        sources,
                        ranges,
                        heart,
                        by=name,
                        say=lambda text: say(text=text),
                        share=share,
                        meter=Meter(),
                    )
        finally:
            if found is not None:
                scores.store(run, holdout, found)
            else:
                scores.release(run, holdout)

    def do(due: Due) -> None:
        try:
            if isinstance(due, int):
                if trainer.attempt(due):
                    messages.ring(bell, messages.REGISTER, messages.REGISTRY_QUEUE, due)
            else:
                score(*due)
        except Stopped as stopped:
            log.info("work_stopped", due=due, reason=stopped.message)
        except Exception:  # the edge of a task: the lease of what it held runs out, and a free slot looks again
            log.exception("work_failed", due=due)

    return do


def _ring(bell: Celery, compute_class: str, due: Due) -> bool:
    queue = messages.train_queue(compute_class)
    if isinstance(due, int):
        return messages.ring(bell, messages.TRAIN, queue, due)
    return messages.ring(bell, messages.EVALUATE, queue, *due)


def _connect(settings: Settings, lookout: Lookout, ahead: Ahead, tidy: DiskTidy, parents: Parents) -> None:
    """Celery's moments: the look into the ledger starts before the broker is reached, and a warm stop hands runs back."""

    @worker_init.connect(weak=False)  # type: ignore[untyped-decorator]
    def started(**_: Any) -> None:
        lookout.start()
        ahead.start()
        tidy.start()
        if advice := git.too_old(git.version()):
            log.warning("git_is_old", advice=advice)
        settings.announce_ready()
        log.info("trainer_ready", compute_class=settings.compute_class, slots=settings.slots)

    @worker_shutting_down.connect(weak=False)  # type: ignore[untyped-decorator]
    def leaving(**_: Any) -> None:
        lookout.leaving.set()
        lookout.slots.freed.set()

    @worker_shutdown.connect(weak=False)  # type: ignore[untyped-decorator]
    def left(**_: Any) -> None:
        lookout.stop(settings.grace_s + AFTER_GRACE_S)
        parents.close()


def main() -> int:
    """The exit code: 0 after SIGTERM, 1 when it cannot start, 70 when it has become deaf and wants to be started again."""
    try:
        settings, app = load(), _process()
    except HeadraceError as error:
        log.critical("trainer.cannot_start", why=error.message)
        return 1
    return work(app, settings, messages.train_queue(settings.compute_class), settings.slots)


@cache
def _process() -> Celery:
    settings = load()
    configure(settings)
    return build(settings)


def __getattr__(name: str) -> Celery:
    """`app`, for `celery -A services.trainer.app`: made when asked for, since importing does nothing."""
    if name == "app":
        return _process()
    raise AttributeError(name)
