"""`python -m bench.ledger`: what a run costs in the ledger, on SQLite and on PostgreSQL, and how soon a commit wakes who waits."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bench import arrivals
from shared.ledger import Ledger, attempts
from shared.ledger.schema import migrate
from tests import ledgers
from tests.postgres_server import start_postgres

TURNS = 200
WAKES = 50


def measure(url: str) -> dict[str, float]:
    """Median milliseconds of each step, each in a transaction of its own."""
    migrate(url)
    ledger = Ledger(url)
    ledgers.put_config(ledger, ledgers.CONFIG)
    ledgers.adopt(ledger)
    ledgers.train(ledger)
    spent: dict[str, list[float]] = {"arrival and plan": [], "claim": [], "beat": [], "finish": []}

    def timed(step: str, work: Callable[..., object], *arguments: object) -> object:
        began = time.perf_counter()
        done = work(ledger, *arguments)
        spent[step].append((time.perf_counter() - began) * 1000)
        return done

    for _ in range(TURNS):
        timed("arrival and plan", ledgers.grow)
        claim = timed("claim", ledgers.claim, ledgers.waiting(ledger))
        assert isinstance(claim, attempts.Claim)
        timed("beat", beat, claim)
        timed("finish", ledgers.finish, claim)
    found = {step: statistics.median(times) for step, times in spent.items()}
    found["a commit wakes who waits"] = wake(ledger, url)
    ledger.close()
    return found


def beat(ledger: Ledger, claim: attempts.Claim) -> None:
    with ledger.write() as tx:
        attempts.beat(tx, claim.run, claim.token, ledgers.LEASE)


def wake(ledger: Ledger, url: str) -> float:
    """From the return of a commit in one connection to the return of a wait in another thread, median milliseconds."""
    other, changes, took = Ledger(url), ledger.watch(), []
    while changes.wait(0.5):
        pass
    for number in range(WAKES):
        with ThreadPoolExecutor(1) as pool:
            woken = pool.submit(lambda: changes.wait(10) and time.perf_counter())
            ledgers.adopt(other, name=f"v{number}.0.0", commit=f"{number:040x}")
            committed = time.perf_counter()
            took.append(max(0.0, woken.result() - committed) * 1000)
        changes.poll()
    other.close()
    return statistics.median(took)


def main() -> None:
    server = start_postgres()
    with tempfile.TemporaryDirectory() as folder:
        sqlite = measure(f"sqlite:///{Path(folder) / 'ledger.db'}")
        postgres = measure(server.url)
    server.stop()
    print(f"{'milliseconds, medians':28}{'SQLite':>10}{'PostgreSQL':>12}{'ratio':>8}")
    for step in sqlite:
        print(f"{step:28}{sqlite[step]:10.2f}{postgres[step]:12.2f}{postgres[step] / max(sqlite[step], 0.01):8.2f}")
    arrivals.main()


if __name__ == "__main__":
    main()
