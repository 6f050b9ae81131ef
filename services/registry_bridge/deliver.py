"""Sends what is due to each subscription: in order for one, side by side for many, so that a hanging consumer holds up nobody else."""

from __future__ import annotations

import random
import threading
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import timedelta

import structlog

from services.registry_bridge import webhook
from services.registry_bridge.webhook import Answer
from shared import settings
from shared.errors import ConfigurationError
from shared.ledger import Ledger, deliveries
from shared.ledger.deliveries import Sending
from shared.points import point
from shared.subscriptions import Subscription, check_secret

LEASE = timedelta(seconds=25)  # one delivery takes 15 s at worst; what waits behind it is kept with each answer
BATCH = 64  # deliveries of one claim
SENDERS = 256  # threads, made when they are needed; a consumer has one at a time, and so many may hang before another waits for them
_POST = point("webhook post", __name__)
log = structlog.get_logger()


@dataclass
class Deliverer:
    """One process's sender; several may run, since each delivery is leased."""

    ledger: Ledger
    rng: random.Random = field(default_factory=random.Random)

    def __post_init__(self) -> None:
        self._pool = ThreadPoolExecutor(SENDERS, thread_name_prefix="deliver")
        self._busy: set[str] = set()
        self._lock = threading.Lock()

    def send_due(self) -> float | None:
        """Start to send what is due, and return at once; seconds until more becomes due, None if nothing waits."""
        with self._lock:
            busy = tuple(self._busy)
        with self.ledger.read() as tx:
            next_due, now = deliveries.next_due(tx, busy), tx.now
        if next_due is None or next_due > now:
            return (next_due - now).total_seconds() if next_due is not None else None
        with self.ledger.write() as tx:
            claimed = deliveries.claim_due(tx, LEASE, BATCH, busy)
        by_subscription = defaultdict(list)
        for one in claimed:
            by_subscription[one.subscription.name].append(one)
        for name, batch in by_subscription.items():
            with self._lock:
                self._busy.add(name)
            self._pool.submit(self._send_batch, name, batch)
        return 0.0

    def stop(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _send_batch(self, name: str, batch: Sequence[Sending]) -> None:
        try:
            for place, one in enumerate(batch, 1):
                self._send(one, batch[place:])
        except Exception:  # the edge of a thread: what is left is claimed again when the lease has run out
            log.exception("delivery_failed", subscription=name)
        finally:
            with self._lock:
                self._busy.discard(name)

    def _send(self, one: Sending, behind: Sequence[Sending]) -> None:
        answer = self._attempt(one)
        with self.ledger.write() as tx:
            if answer.error is None:
                deliveries.delivered(tx, one.id, answer.status or 0)
            else:
                deliveries.undelivered(tx, one.id, answer.status, answer.error, self._again_in(one, answer))
            deliveries.keep(tx, [other.id for other in behind], LEASE)
        log.info(
            "delivery",
            delivery=one.id,
            subscription=one.subscription.name,
            notice=one.notice.sequence,
            status=answer.status,
            error=answer.error,
        )

    def _attempt(self, one: Sending) -> Answer:
        subscription = one.subscription
        try:
            secret, body = _secret(subscription), one.notice.body()
        except ConfigurationError as error:
            return Answer(None, error.message)
        except (
            ValueError
        ) as error:  # a number or a character that JSON cannot carry: it must not hold up what comes after
            return Answer(None, f"the notice cannot be written as JSON: {error}")
        with _POST:
            return webhook.send(
                subscription.url,
                secret,
                delivery_id=one.id,
                body=body,
                now=self.ledger.clock.now(),
                allow_private=subscription.inside,
            )

    def _again_in(self, one: Sending, answer: Answer) -> timedelta | None:
        pause = None if answer.gone else webhook.retry_after(one.attempts + 1, self.rng)
        if pause is not None and answer.retry_after_s is not None:
            pause = max(pause, timedelta(seconds=answer.retry_after_s))
        return pause


def _secret(subscription: Subscription) -> str:
    return check_secret(subscription.secret.removeprefix("env:"), settings.resolve(subscription.secret))
