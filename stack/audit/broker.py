"""Redis holds a doorbell's worth and no storm (I9): no more messages than there is work, and few keys."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import redis

from shared.audit import Sheet
from shared.errors import ConfigurationError, Unavailable
from shared.ledger import Ledger, configuration
from shared.ledger.audit import mirror
from shared.messages import REGISTRY_QUEUE, train_queue

SPARE = 50
"""A ring may be repeated while it is on its way, by each of a few workers."""
MOST_KEYS = 1_000
TIMEOUT_S = 5.0
_PURGE = "nothing is lost by deleting it, the ledger knows all: `DEL {0}`; then look which process rings (`headrace.train` in its log)"


def audit_broker(ledger: Ledger, url: str, sheet: Sheet) -> None:
    """Raises `Unavailable` when Redis does not answer."""
    with ledger.read() as tx:
        try:
            classes = sorted(configuration.in_force(tx).catalog.compute_classes)
        except ConfigurationError:
            classes = []
    with _connection(url) as client:
        for queue, name in [(REGISTRY_QUEUE, None), *((train_queue(name), name) for name in classes)]:
            length = int(client.llen(queue))
            with ledger.read() as tx:
                work = mirror.queues(tx, name) if name is not None else mirror.unserved(tx)
            _length(sheet, queue, length, work)
        _length(sheet, "unacked", int(client.hlen("unacked")), 0)
        keys = int(client.dbsize())
        sheet.looked("I9", "keys in Redis", keys)
        if keys > MOST_KEYS:
            what = f"Redis holds {keys} keys in this database; Headrace needs a few dozen"
            sheet.violated(
                "I9",
                "keys",
                what,
                "give Headrace a database of its own (the number at the end of redis_url), and look what writes there",
            )


def _length(sheet: Sheet, queue: str, length: int, work: int) -> None:
    sheet.looked("I9", "messages in Redis", length)
    if length > work + SPARE:
        what = f"the queue {queue} holds {length} messages, but there is work for {work}"
        sheet.violated("I9", "storm", what, _PURGE.format(queue), queue=queue)


@contextmanager
def _connection(url: str) -> Iterator[redis.Redis]:
    try:
        client = redis.Redis.from_url(url, socket_timeout=TIMEOUT_S, socket_connect_timeout=TIMEOUT_S)
        with client:
            yield client
    except (redis.RedisError, ValueError, OSError) as error:
        raise Unavailable(f"Redis did not answer: {error}") from error
