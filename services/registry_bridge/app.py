"""The bridge process: `python -m services.registry_bridge`, or `celery -A services.registry_bridge.app worker -Q registry -P threads`."""

from __future__ import annotations

from functools import cache
from typing import Any

import structlog
from celery import Celery
from celery.signals import worker_init, worker_shutdown

from services.registry_bridge import tasks
from services.registry_bridge.deliver import Deliverer
from services.registry_bridge.janitor import Janitor
from services.registry_bridge.mlflow_registry import MlflowRegistry
from services.registry_bridge.promote import Promoter, Wanted
from services.registry_bridge.register import Registrar
from services.registry_bridge.sweep import Sweep
from services.registry_bridge.tidy import Tidy
from shared import messages
from shared.blobs import make_blobs
from shared.celery_app import make_app, work
from shared.errors import ConfigurationError, HeadraceError
from shared.ledger import Ledger, configuration
from shared.ledger.schema import await_schema
from shared.log import configure
from shared.logs import make_logs
from shared.settings import Settings, load

log = structlog.get_logger()
LEAVE_WITHIN_S = 5.0
MESSAGES_AT_ONCE = 4


def build(settings: Settings) -> Celery:
    """The Celery application with everything that its message needs; MLflow may still be away."""
    ledger = Ledger(settings.ledger_url)
    await_schema(ledger, settings.patience_s)
    app, registry, blobs = make_app(settings, ()), MlflowRegistry(settings.mlflow_url), make_blobs(settings.blobs_url)
    janitor = Janitor(ledger, Tidy(ledger, registry, blobs, make_logs(settings.logs_url)), settings.worker)
    registrar = Registrar(ledger, registry, blobs, settings.state_dir / "bridge")
    promoter = Promoter(ledger, registry, lambda wanted: _ask(settings, ledger, wanted))
    sweep = Sweep(ledger, registrar, promoter, Deliverer(ledger), janitor)
    tasks.register(app, sweep)
    _connect(settings, sweep)
    return app


def _ask(settings: Settings, ledger: Ledger, wanted: Wanted) -> bool:
    """Ring for a missing score; a free trainer finds the wish in the ledger too."""
    run, holdout, compute_class = wanted
    try:
        with ledger.read() as tx:
            classes = tuple(configuration.in_force(tx).catalog.compute_classes)
    except ConfigurationError:
        return False
    bell = make_app(settings, classes, patient=False)
    return messages.ring(bell, messages.EVALUATE, messages.train_queue(compute_class), run, holdout)


def _connect(settings: Settings, sweep: Sweep) -> None:
    @worker_init.connect(weak=False)  # type: ignore[untyped-decorator]
    def started(**_: Any) -> None:
        sweep.start()
        settings.announce_ready()

    @worker_shutdown.connect(weak=False)  # type: ignore[untyped-decorator]
    def left(**_: Any) -> None:
        sweep.stop(LEAVE_WITHIN_S)


def main() -> int:
    """The exit code: 0 after SIGTERM, 1 when it cannot start."""
    try:
        settings, app = load(), _process()
    except HeadraceError as error:
        log.critical("bridge.cannot_start", why=error.message)
        return 1
    return work(app, settings, messages.REGISTRY_QUEUE, MESSAGES_AT_ONCE)


@cache
def _process() -> Celery:
    settings = load()
    configure(settings)
    return build(settings)


def __getattr__(name: str) -> Celery:
    """`app`, for `celery -A services.registry_bridge.app`: made when asked for, since importing does nothing."""
    if name == "app":
        return _process()
    raise AttributeError(name)
