"""A ledger in which a good deal has happened, all of it by the transitions themselves, and what an audit says of it."""

from __future__ import annotations

from datetime import timedelta

from shared.arrivals import Report
from shared.audit import Sheet, Violation
from shared.gates import Decision
from shared.ledger import Ledger, arrivals, attempts, datasets, deliveries, planning, retention, versions, workers
from shared.ledger.attempts import Failure
from shared.ledger.audit import CHECKS
from tests import ledgers
from tests.ledgers import HandClock

LEASE = timedelta(seconds=30)
LATER = timedelta(minutes=3)  # longer than what is taken for under way


def furnish(ledger: Ledger, clock: HandClock) -> None:
    """Versions 1 and 2 have served, and 1 serves again; 3 is rejected and pinned, 4 awaits a word. Of the runs behind them one has lost a worker,
    one has failed, one was cancelled; the newest waits for rows. Everything was told, and a worker is idle."""
    clock.at += LATER
    ledgers.adopt(ledger)
    for number, decision in enumerate((Decision.PROMOTE, Decision.PROMOTE, Decision.REJECT, Decision.UNDECIDED), 1):
        clock.at += LATER
        ledgers.register(ledger, ledgers.train(ledger), number)
        clock.at += LATER
        ledgers.decide(ledger, number, decision)
        ledgers.follow(ledger)
    with ledger.write() as tx:
        versions.roll_back(tx, "delays", None, "alice", "the shop complained")
        retention.pin(tx, "delays", 3, "bob", "we compare with it")
        arrivals.receive(tx, Report(dataset="reported", source="/loader", event_id="e-1", rows=50))
    clock.at += LATER
    ledgers.follow(ledger)
    _fail(ledger, clock)
    _cancel(ledger)
    clock.at += LATER
    ledgers.grow(ledger, 50)
    clock.at += LATER
    settle(ledger)


def _fail(ledger: Ledger, clock: HandClock) -> None:
    ledgers.grow(ledger)
    run = ledgers.waiting(ledger)
    assert ledgers.claim(ledger, run) is not None
    clock.at += LATER
    again = ledgers.claim(ledger, run, "w2")
    assert again is not None
    with ledger.write() as tx:
        attempts.fail(tx, run, again.token, Failure("author_error", "KeyError"), {})


def _cancel(ledger: Ledger) -> None:
    with ledger.write() as tx:
        run = planning.ask(tx, "delays", "alice wants it")
        planning.cancel(tx, run, "no, she does not")


def settle(ledger: Ledger) -> None:
    """What is due is sent, and the watcher and an idle worker are there."""
    with ledger.write() as tx:
        for one in deliveries.claim_due(tx, LEASE, 1000):
            deliveries.delivered(tx, one.id, 204)
    attend(ledger)


def attend(ledger: Ledger) -> None:
    """The watcher and an idle worker are there."""
    with ledger.write() as tx:
        datasets.take(tx, "flights", "watcher", LEASE)
        workers.seen(tx, "w1", "standard", 2, 0)


def audited(ledger: Ledger) -> Sheet:
    sheet = Sheet()
    for check in CHECKS:
        check(ledger, sheet)
    return sheet


def found(ledger: Ledger) -> list[Violation]:
    return list(audited(ledger).found.values())
