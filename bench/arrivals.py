"""`python -m bench.arrivals`: durable arrivals a second, beside a bare loop that writes the very same rows to the same disk in commits of the same size.

Ours and the bare loop take turns, so that both have the same neighbours; each ratio is the median of the turns.
"""

from __future__ import annotations

import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import TypeVar

from shared.arrivals import Report
from shared.ledger import Ledger, arrivals
from shared.ledger.intake import Intake
from shared.ledger.reports import Sent
from shared.ledger.schema import migrate
from tests import ledgers

Item = TypeVar("Item")
TURNS, THREADS = 7, 16
SIZES = {1: 100, 50: 1000, 100: 2000}  # reports in a commit, and in a turn; 50 is what one read of the stream brings
TABLES = {"arrival": "id", "report": "arrival_id", "notice": "sequence", "delivery": "sequence"}
"""What an arrival leaves a row in, and its number there: a notice and one delivery to each arrival, and nothing else is told here."""


@dataclass(frozen=True)
class Measured:
    """Reports a second of each turn."""

    ours: list[float]
    bare: list[float]
    in_one_commit: float

    @property
    def ratio(self) -> float:
        return statistics.median(mine / its for mine, its in zip(self.ours, self.bare, strict=True))


def parts(whole: Sequence[Item], size: int) -> list[Sequence[Item]]:
    return [whole[at : at + size] for at in range(0, len(whole), size)]


class Bench:
    """A ledger in which one model uses a dataset that is reported, and a bare copy of it."""

    def __init__(self, folder: Path) -> None:
        urls = [f"sqlite:///{folder / name}" for name in ("ours.db", "bare.db")]
        for url in urls:
            migrate(url)
        self.ledger = Ledger(urls[0])
        ledgers.put_config(self.ledger, ledgers.CONFIG)
        ledgers.adopt(self.ledger, dataset="reported")
        self._ours = sqlite3.connect(folder / "ours.db")
        self._bare = sqlite3.connect(folder / "bare.db", isolation_level=None)
        self._bare.execute("PRAGMA synchronous=FULL")
        self._ids = count(1)

    def compare(self, take: Callable[[Sequence[Sent]], None], size: int, each: int) -> Measured:
        """`size`: reports in a commit of the bare loop; `each`: reports in a turn."""
        ours, bare, commits = [], [], 0
        for turn in range(TURNS + 1):
            sent = [self._sent() for _ in range(each)]
            known = self._newest()
            began = time.perf_counter()
            take(sent)
            mine = each / (time.perf_counter() - began)
            its = self._bare_per_s(known, size)
            if turn:  # the first fills caches
                ours.append(mine)
                bare.append(its)
                commits += self._commits_after(known)
            self.train()
        return Measured(ours, bare, TURNS * each / commits)

    def train(self) -> None:
        """What waits is trained, as in a house with a worker: planning looks at every arrival that no run has taken yet."""
        claimed = ledgers.claim(self.ledger, ledgers.waiting(self.ledger))
        assert claimed is not None
        ledgers.finish(self.ledger, claimed)

    def close(self) -> None:
        self.ledger.close()
        self._ours.close()
        self._bare.close()

    def _sent(self) -> Sent:
        return Sent(Report(dataset="reported", source="/bench", event_id=str(next(self._ids)), rows=1000))

    def _newest(self) -> int:
        return int(self._ours.execute("SELECT coalesce(max(id), 0) FROM arrival").fetchone()[0])

    def _commits_after(self, known: int) -> int:
        """A transaction has one time."""
        return int(
            self._ours.execute("SELECT count(DISTINCT observed_at) FROM arrival WHERE id > ?", (known,)).fetchone()[0]
        )

    def _bare_per_s(self, known: int, size: int) -> float:
        rows = {
            table: self._ours.execute(
                f"SELECT * FROM {table} WHERE {number} > ? ORDER BY {number}", (known,)
            ).fetchall()
            for table, number in TABLES.items()
        }
        inserts = {
            table: f"INSERT INTO {table} VALUES ({', '.join('?' * len(found[0]))})" for table, found in rows.items()
        }
        commits = list(zip(*(parts(found, size) for found in rows.values()), strict=True))
        began = time.perf_counter()
        for commit in commits:
            self._bare.execute("BEGIN IMMEDIATE")
            for insert, part in zip(inserts.values(), commit, strict=True):
                self._bare.executemany(insert, part)
            self._bare.execute("COMMIT")
        return len(rows["arrival"]) / (time.perf_counter() - began)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder))
        intake = Intake(bench.ledger)

        def take(sent: Sequence[Sent], size: int) -> None:
            for part in parts(sent, size):
                with bench.ledger.write() as tx:
                    arrivals.receive_all(tx, part)

        def by_threads(sent: Sequence[Sent]) -> None:
            with ThreadPoolExecutor(THREADS) as pool:
                list(pool.map(intake.take, sent))

        found = {
            f"{size} in a commit": bench.compare(partial(take, size=size), size, each) for size, each in SIZES.items()
        } | {
            f"{THREADS} threads, as the API": bench.compare(by_threads, THREADS, 800),
        }
        bench.close()
    print(f"{'arrivals a second on SQLite, medians':40}{'ours':>10}{'bare':>10}{'ratio':>8}{'in a commit':>14}")
    for way, one in found.items():
        ours, bare = statistics.median(one.ours), statistics.median(one.bare)
        print(f"{way:40}{ours:10.0f}{bare:10.0f}{one.ratio:8.2f}{one.in_one_commit:14.1f}")


if __name__ == "__main__":
    main()
