"""How we use Celery: as a doorbell over Redis. Each setting with its reason; the measurements are in docs/decisions.md."""

from __future__ import annotations

from celery import Celery
from celery.utils.nodenames import host_format
from kombu import Queue

from shared.messages import REGISTRY_QUEUE, train_queue
from shared.settings import Settings, load


def make_app(settings: Settings, compute_classes: tuple[str, ...] = ("standard",), *, patient: bool = True) -> Celery:
    """A Celery application. `patient=False` is for those who only ring: they give up within seconds."""
    app = Celery("headrace", broker=settings.redis_url, backend=None, set_as_current=False)
    timeout_s = 10 if patient else 1
    app.conf.update(
        task_serializer="json",
        accept_content=["json"],  # never a pickle from whoever can reach Redis
        task_ignore_result=True,  # the ledger holds the results
        task_acks_late=False,  # late acks start a second copy after the visibility timeout (celery#5935)
        task_publish_retry=False,
        task_create_missing_queues=False,  # a misspelt queue fails when sending
        task_queues=[Queue(REGISTRY_QUEUE), *(Queue(train_queue(name)) for name in compute_classes)],
        task_default_queue=REGISTRY_QUEUE,
        worker_prefetch_multiplier=1,
        worker_disable_prefetch=True,  # otherwise a message waits in a busy worker while another is free (celery#6500)
        worker_send_task_events=True,  # Flower shows every attempt
        task_send_sent_event=True,
        worker_enable_remote_control=True,  # for Flower alone: it asks for queues; we never use it
        worker_cancel_long_running_tasks_on_connection_loss=False,
        worker_hijack_root_logger=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_connection_timeout=5 if patient else 1,
        broker_transport_options={
            "socket_timeout": timeout_s,  # kombu's default waits for ever on a half-open connection (kombu#2590)
            "socket_connect_timeout": 5 if patient else 1,
            "socket_keepalive": True,
            "health_check_interval": 5,
            "retry_on_timeout": False,
        },
        timezone="UTC",
    )
    return app


def work(app: Celery, settings: Settings, queue: str, slots: int) -> int:
    """Be the worker of one queue until SIGTERM; the exit code. The pool is of threads: what a task starts is exec'd, never forked (celery#10339).

    The node name is fixed, for each new one would leave a mailbox in Redis for ever (celery#6089). Gossip and mingle leave lists there and carry
    what we do not use. Not by Celery's command line, which imports Flower's and a shell's.
    """
    worker = app.Worker(
        hostname=host_format(f"{settings.process}@%h"),
        queues=[queue],
        pool_cls="threads",
        concurrency=slots,
        without_gossip=True,
        without_mingle=True,
        task_events=True,
        quiet=True,
        loglevel="WARNING",
    )
    worker.start()
    return int(worker.exitcode or 0)


def __getattr__(name: str) -> Celery:
    """`app`, for `celery -A shared.celery_app flower`: made when asked for, since importing does nothing."""
    if name == "app":
        return make_app(load())
    raise AttributeError(name)
