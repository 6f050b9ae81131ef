"""A ledger with a clock that a test holds, and the few steps that most tests start from."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from shared import catalog
from shared.cuts import Cut
from shared.declaration import Declaration, Gate, Use
from shared.gates import Decision, Verdict
from shared.ledger import Ledger, arrivals, attempts, datasets, planning, runs, versions
from shared.ledger.attempts import Claim
from shared.ledger.schema import create_all
from shared.ledger.tables import APPEND_ONLY, metadata

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


def empty(ledger: Ledger) -> None:
    """No rows any more, and numbers begin at 1 again; history too, which refuses that of everyone else."""
    with ledger.engine.begin() as connection:
        postgresql = connection.dialect.name == "postgresql"
        if postgresql:
            connection.exec_driver_sql("ALTER TABLE history DISABLE TRIGGER history_stays")
        else:
            connection.exec_driver_sql("DROP TRIGGER history_delete")
        for table in reversed(metadata.sorted_tables):
            connection.execute(table.delete())
        if postgresql:  # where numbers go on otherwise
            connection.exec_driver_sql("SELECT setval(oid::regclass, 1, false) FROM pg_class WHERE relkind = 'S'")
            connection.exec_driver_sql("ALTER TABLE history ENABLE TRIGGER history_stays")
        else:
            connection.exec_driver_sql(APPEND_ONLY["sqlite"][1])


def put_config(ledger: Ledger, config: str) -> None:
    with ledger.write() as tx:
        planning.put_in_force(tx, catalog.parse(config.encode()), "test")


def declare(dataset: str = "flights", **more: object) -> Declaration:
    values = {
        "train": "delays:train",
        "evaluate": "delays:evaluate",
        "datasets": {dataset: Use()},
        "gates": {"auc": Gate(min=0.6, max_drop=0.005)},
    }
    return Declaration.model_validate(values | more)


def adopt(
    ledger: Ledger,
    model: str = "delays",
    name: str = "v1.0.0",
    commit: str = "a" * 40,
    content: str | None = None,
    **more: object,
) -> None:
    """The watcher sees a version tag."""
    with ledger.write() as tx:
        planning.adopt(tx, model, name, commit, declare(**more), content=content, tag=True)  # type: ignore[arg-type]


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


def waiting(ledger: Ledger, model: str = "delays") -> int:
    """The run that waits."""
    with ledger.read() as tx:
        return int(runs.find_waiting(tx, model).id)


def finish(ledger: Ledger, claimed: Claim, bundle: str = "sha256:" + "b" * 64) -> None:
    with ledger.write() as tx:
        attempts.finish(tx, claimed.run, claimed.token, bundle, {"train": 1.5})


def train(ledger: Ledger, rows: int = 1000) -> int:
    """New rows make a run due, which is claimed and ends well."""
    grow(ledger, rows)
    claimed = claim(ledger, waiting(ledger))
    assert claimed is not None
    finish(ledger, claimed)
    return claimed.run


def register(ledger: Ledger, run: int, number: int) -> None:
    with ledger.write() as tx:
        versions.registered(tx, run, number, "sha256:" + f"{number:064x}", f"r{number}", f"m-{number}")


def decide(ledger: Ledger, number: int, decision: Decision = Decision.PROMOTE, *, automatic: bool = True) -> None:
    """A verdict on the version, beside the champion of this moment."""
    with ledger.write() as tx:
        row, champion = versions.find(tx, "delays", number), versions.champion(tx, "delays")
        versions.decide(tx, row, champion, Verdict(decision, ("auc: passes",)), "sha256:h", automatic=automatic)


def follow(ledger: Ledger) -> int | None:
    """The alias follows the intent, if there is one: the number of the version that serves from now on."""
    with ledger.write() as tx:
        intended = versions.claim_intent(tx, "delays", LEASE)
        if intended is None:
            return None
        versions.served(tx, intended)
        return int(intended.number)


def serve(ledger: Ledger, number: int, rows: int = 1000) -> int:
    """A run becomes the champion with this number; the run."""
    run = train(ledger, rows)
    register(ledger, run, number)
    decide(ledger, number)
    assert follow(ledger) == number
    return run


def champion(ledger: Ledger, model: str = "delays") -> int | None:
    with ledger.read() as tx:
        row = versions.champion(tx, model)
        return int(row.number) if row is not None else None
