"""Idempotency keys: what a caller sends again with the same key gets the first answer, also where the report has no id of its own (I2)."""

from __future__ import annotations

from sqlalchemy import insert, select

from shared.arrivals import Report, fingerprint
from shared.errors import Refused
from shared.ledger import arrivals, configuration
from shared.ledger.arrivals import Receipt
from shared.ledger.session import Transaction
from shared.ledger.tables import report
from shared.ledger.transitions import transition


@transition
def receive(tx: Transaction, told: Report, caller: str, key: str) -> Receipt:
    """As `arrivals.receive`, once for each key of the caller; raises `Refused` for a key that was used for another report.

    arrival: none → stored
    run: none → waiting; waiting → same
    By: the API
    Fence: the caller's name and its key
    Again: the first answer, and nothing changes
    """
    source = _source(caller)
    tx.lock("configuration", shared=True)
    tx.lock(f"report {source} {key}")
    first = tx.execute(select(report).where(report.c.source == source, report.c.event_id == key)).first()
    if first is None:
        receipt = arrivals.receive(tx, told)
        _file(tx, told, source, key, receipt)
        return receipt
    if first.fingerprint != fingerprint(told):
        raise Refused(
            f"Idempotency-Key: {key!r} was used for another report about {first.dataset}, which counts; "
            "take a key of its own for each report, and the same one only to repeat it"
        )
    dataset = configuration.in_force(tx).catalog.datasets.get(first.dataset)
    return Receipt(first.arrival_id, repeated=True, nudged=dataset is not None and not dataset.reported)


def _source(caller: str) -> str:
    """A name in the column of sources that no sender can give itself: theirs have no control characters."""
    return f"\tidempotency-key {caller}"


def _file(tx: Transaction, told: Report, source: str, key: str, receipt: Receipt) -> None:
    values = {"source": source, "event_id": key, "dataset": told.dataset, "fingerprint": fingerprint(told)}
    tx.execute(insert(report).values(**values, arrival_id=receipt.arrival, received_at=tx.now))
