"""The three messages and their queues. A message is a doorbell: it carries ids and may be lost, doubled or late without harm."""

from __future__ import annotations

from typing import Final

from celery import Celery
from celery.exceptions import CeleryError
from kombu.exceptions import KombuError
from redis.exceptions import RedisError

from shared.points import point

TRAIN: Final = "headrace.train"  # (run id) → queue train.<class>
EVALUATE: Final = "headrace.evaluate"  # (run id, holdout digest) → queue train.<class>
REGISTER: Final = "headrace.register"  # (run id) → queue registry
REGISTRY_QUEUE: Final = "registry"
_PUBLISH: Final = {message: point(f"publish {message}", __name__) for message in (TRAIN, EVALUATE, REGISTER)}


def train_queue(compute_class: str) -> str:
    return f"train.{compute_class}"


def ring(app: Celery, message: str, queue: str, *ids: int | str) -> bool:
    """Send one doorbell; False when the broker cannot be reached within its short time limits (nothing is lost: the ledger knows).

    Blocks for a few seconds at worst, so never call it where a person waits for an answer.
    """
    try:
        with _PUBLISH[message]:
            app.send_task(message, args=list(ids), queue=queue, retry=False)
    except (CeleryError, KombuError, RedisError, OSError):
        return False
    return True
