"""A ledger with a clock that a test holds, and the few steps that most tests start from."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from shared import catalog
from shared.cuts import Cut
from shared.declaration import Declaration, Gate, Use
from shared.ledger import Ledger, arrivals, attempts, configuration, datasets, planning
from shared.ledger.attempts import Claim
from shared.ledger.session import create_all

START = datetime(2026, 1, 1, tzinfo=UTC)
LEASE = timedelta(seconds=30)
CONFIG = """
[datasets.flights]
source = { kind = "sql", url = "sqlite:////nowhere/flights.db", table = "flights", cursor = "id" }
holdout = { min_rows = 10 }

[datasets.reported]
source = { kind = "rest" }

[models.delays]
repository = "file:///nowhere/delays.git"
policy = { min_rows = 100 }

[[subscriptions]]
name = "shop"
url = "http://127.0.0.1:1/hook"
secret = "env:SHOP_SECRET"
allow_private = true
types = ["*"]
"""


@dataclass
class HandClock:
    """A clock that moves only when it is told to."""

    at: datetime = field(default=START)

    def now(self) -> datetime:
        return self.at

    def forward(self, **span: float) -> None:
        self.at += timedelta(**span)


def in_memory(config: str = CONFIG) -> tuple[Ledger, HandClock]:
    clock = HandClock()
    ledger = Ledger("sqlite://", clock)
    create_all(ledger)
    put_config(ledger, config)
    return ledger, clock


def put_config(ledger: Ledger, config: str) -> None:
    with ledger.write() as tx:
        configuration.put(tx, catalog.parse(config.encode()), "test")


def declare(dataset: str = "flights", **more: object) -> Declaration:
    values = {
        "train": "delays:train",
        "evaluate": "delays:evaluate",
        "datasets": {dataset: Use()},
        "gates": {"auc": Gate(min=0.6, max_drop=0.005)},
    }
    return Declaration.model_validate(values | more)


def adopt(ledger: Ledger, model: str = "delays", name: str = "v1.0.0", commit: str = "a" * 40, **more: object) -> None:
    with ledger.write() as tx:
        planning.adopt(tx, model, name, commit, declare(**more))  # type: ignore[arg-type]


def grow(ledger: Ledger, rows: int = 1000, dataset: str = "flights") -> int:
    """The watcher sees so many rows more; a tenth of all is the holdout."""
    with ledger.write() as tx:
        datasets.take(tx, dataset, "watcher", LEASE)
        before = datasets.known(tx, [dataset]).get(dataset)
        total = rows + (before.rows or 0 if before else 0)
        cut = Cut(upto=total, rows=total, holdout_above=total - total // 10, holdout_rows=total // 10)
        return arrivals.observe(tx, dataset, before, cut, rows, "watcher")


def claim(ledger: Ledger, run: int, worker: str = "w1") -> Claim | None:
    with ledger.write() as tx:
        return attempts.claim(tx, run, worker, LEASE)
