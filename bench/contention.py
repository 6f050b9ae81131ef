"""`python -m bench.contention`: eight workers at one ledger claim, keep alive and finish runs as fast as it lets them, beside bare statements."""

from __future__ import annotations

import multiprocessing
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import insert, text

from shared.cuts import Cut
from shared.ledger import Ledger, attempts
from shared.ledger.schema import migrate
from shared.ledger.tables import dataset, model, release, run
from shared.lifecycle import RunState
from tests import ledgers
from tests.postgres_server import start_postgres

WORKERS, RUNS, DOUBLED = 8, 1600, 10  # one message in DOUBLED comes to a second worker too
WARM = 3  # runs of each worker before the clock starts: what its process does for the first time takes its own while
LEASE = timedelta(seconds=30)


@dataclass(frozen=True)
class Found:
    """What all workers did together; waits in milliseconds, of the single transactions."""

    runs_per_s: float
    median_ms: float
    worst_ms: float
    wrong: int


def measure(url: str, work: Any) -> Found:
    """Start the workers, let them go at once, and look at what they claimed."""
    context = multiprocessing.get_context("spawn")
    barrier, answers = context.Barrier(WORKERS + 1), context.Queue()
    workers = [context.Process(target=work, args=(url, number, barrier, answers)) for number in range(WORKERS)]
    for worker in workers:
        worker.start()
    barrier.wait()
    began = time.perf_counter()
    told = [answers.get() for _ in workers]
    took = time.perf_counter() - began
    for worker in workers:
        worker.join()
    claims = Counter(id for claimed, _ in told for id in claimed)
    waits = sorted(wait for _, waits in told for wait in waits)
    wrong = sum(number - 1 for number in claims.values()) + RUNS - len(claims)
    return Found(RUNS / took, waits[len(waits) // 2], waits[-1], wrong)


def mine(number: int) -> list[int]:
    """The messages that come to one worker: a share of the runs, and some that came to another one too."""
    return [
        id for id in range(1, RUNS + 1) if id % WORKERS == number or (id % DOUBLED, (id + 1) % WORKERS) == (0, number)
    ]


def warming(number: int) -> range:
    first = RUNS + 1 + number * WARM
    return range(first, first + WARM)


def by_transitions(url: str, number: int, barrier: Any, answers: Any) -> None:
    ledger, claimed, waits = Ledger(url), [], []

    def timed(step: Any, *arguments: Any) -> Any:
        began = time.perf_counter()
        with ledger.write(tells=step is not attempts.beat) as tx:
            done = step(tx, *arguments)
        waits.append((time.perf_counter() - began) * 1000)
        return done

    def carry_out(id: int) -> None:
        if (claim := timed(attempts.claim, id, f"w{number}", LEASE)) is not None:
            claimed.append(id)
            timed(attempts.beat, id, claim.token, LEASE, 0.5)
            timed(attempts.finish, id, claim.token, "sha256:" + "b" * 64, {})

    for id in warming(number):
        carry_out(id)
    barrier.wait()
    waits.clear()
    claimed.clear()
    for id in mine(number):
        carry_out(id)
    answers.put((claimed, waits))
    ledger.close()


def by_bare_statements(url: str, number: int, barrier: Any, answers: Any) -> None:
    """The least that a queue in a database can do: three updates, each with a commit of its own."""
    ledger, claimed, waits = Ledger(url), [], []
    claim = text("UPDATE run SET state='running', token=token+1 WHERE id=:id AND state='waiting'")
    beat = text("UPDATE run SET progress=0.5 WHERE id=:id AND token=1")
    finish = text("UPDATE run SET state='trained' WHERE id=:id AND token=1")
    connection = ledger.engine.connect()
    barrier.wait()
    for id in mine(number):
        for statement in (claim, beat, finish):
            began = time.perf_counter()
            done = connection.execute(statement, {"id": id}).rowcount
            connection.commit()
            waits.append((time.perf_counter() - began) * 1000)
            if not done:
                break
            if statement is claim:
                claimed.append(id)
    answers.put((claimed, waits))
    connection.close()
    ledger.close()


def fill(url: str) -> None:
    """As many models as runs, each with a release and a run that is due."""
    migrate(url)
    ledger = Ledger(url)
    names = [f"delays-{number}" for number in range(1, RUNS + 1 + WORKERS * WARM)]
    more = "".join(f'[models.{name}]\nrepository = "file:///nowhere/{name}.git"\n' for name in names)
    ledgers.put_config(ledger, ledgers.CONFIG + more)
    now, cut = datetime.now(UTC), Cut(upto=1000, rows=1000, holdout_above=900, holdout_rows=100, arrival=None)
    declared = ledgers.declare().model_dump_json()
    with ledger.engine.begin() as connection:
        connection.execute(insert(dataset).values(name="flights", cut=cut.to_json()))
        numbered = list(enumerate(names, 1))
        common = {"commit": "a" * 40, "name": "v1.0.0", "declaration": declared, "seen_at": now}
        connection.execute(insert(release), [{"id": id, "model": name, **common} for id, name in numbered])
        connection.execute(insert(model), [{"name": name, "release_id": id, "seen_id": id} for id, name in numbered])
        common = {"state": RunState.WAITING, "reason": "bench", "asked": True, "compute_class": "standard"}
        common |= {"planned_at": now, "due_at": now, "config_digest": "sha256:x"}
        connection.execute(
            insert(run), [{"id": id, "model": name, "release_id": id, **common} for id, name in numbered]
        )
    ledger.close()


def main() -> int:
    found: dict[tuple[str, str], Found] = {}
    server = start_postgres()
    with tempfile.TemporaryDirectory() as folder:
        for name, work in (("transitions", by_transitions), ("bare updates", by_bare_statements)):
            for database, url in (
                ("SQLite", f"sqlite:///{Path(folder) / name}.db"),
                ("PostgreSQL", server.new_database()),
            ):
                fill(url)
                found[database, name] = measure(url, work)
    server.stop()
    print(f"{WORKERS} workers, {RUNS} runs: claim, beat, finish, each a commit of its own")
    print(f"{'':26}{'runs/s':>8}{'median ms':>11}{'worst ms':>10}{'lost or doubled':>17}")
    for (database, name), one in found.items():
        print(
            f"{database + ', ' + name:26}{one.runs_per_s:8.0f}{one.median_ms:11.1f}{one.worst_ms:10.0f}{one.wrong:17}"
        )
    for database in ("SQLite", "PostgreSQL"):
        ratio = found[database, "transitions"].runs_per_s / found[database, "bare updates"].runs_per_s
        print(f"{database}: {ratio:.2f} of the bare updates' runs/s")
    return int(any(one.wrong for one in found.values()))


if __name__ == "__main__":
    sys.exit(main())
