"""`python -m bench.trainer`: what the platform adds to a training, and how many trainings it carries; a real trainer at a real Redis and ledger.

One attempt     milliseconds from its claim to trained, less the author's function: the first, which builds the environment, then with the
                environment there, then with a warm parent. Of a model that needs no package, and of one that imports scikit-learn and pandas.
Many            runs that do nothing, all due at once, until the last is trained: with 1, 2 and 4 slots.
One build       eight runs that need the same environment, all due at once, and none built.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table
from sqlalchemy import func, insert, select

from bench.flow import LOCK, make_repository
from shared import messages
from shared.celery_app import make_app
from shared.cuts import Cut
from shared.ledger import Ledger, tables
from shared.ledger.schema import migrate
from shared.lifecycle import RunState
from shared.settings import Settings
from tests import ledgers
from tests.redis_server import start_valkey

PATIENCE_S = 300.0
SLOTS, BUILDERS, COLD, WARM = (1, 2, 4), 8, "0", "4"  # the last two: HEADRACE_WARM_PARENTS
HEAD = """
[project]
name = "flight-delays"
version = "1.0.0"
requires-python = ">=3.11"
"""
DECLARED = """
[tool.headrace]
train = "nothing:train"
predict = "nothing:predict"

[tool.headrace.datasets.reported]
"""
CODE = """
def train(job):
    return {}


def predict(model, frame):
    return [0.0] * len(frame)
"""
LIBRARIES = "import pandas\nimport sklearn.ensemble\nimport sklearn.linear_model\n"


@dataclass(frozen=True)
class Kind:
    """A model that does nothing, with what it imports before."""

    name: str
    dependencies: str
    imports: str
    lock: Path | None


KINDS = (
    Kind("needs nothing", "dependencies = []\n", "", None),
    Kind("imports scikit-learn", 'dependencies = ["pandas>=2.2", "scikit-learn>=1.6"]\n', LIBRARIES, LOCK),
)


class Bench:
    """A ledger with as many models as wanted, all of one repository, and a trainer of so many slots."""

    def __init__(self, place: Path, repository: Path, models: int, slots: int, redis: str, warm: str) -> None:
        self._settings = Settings(
            state_dir=place,
            ledger_url=f"sqlite:///{place}/ledger.db",
            redis_url=redis,
            blobs_url=(place / "blobs").as_uri(),
            logs_url=(place / "logs").as_uri(),
            slots=slots,
        )
        self._place, self._warm = place, warm
        place.mkdir()
        migrate(self._settings.ledger_url)
        self._ledger = Ledger(self._settings.ledger_url)
        self._bell = make_app(self._settings, patient=False)
        self._fill(repository, [f"model-{number}" for number in range(1, models + 1)])

    def _fill(self, repository: Path, names: Sequence[str]) -> None:
        more = "".join(f'[models.{name}]\nrepository = "{repository.as_uri()}"\n' for name in names)
        ledgers.put_config(self._ledger, ledgers.CONFIG + more)
        cut = Cut(upto=1, arrival=None)
        declared = ledgers.declare(
            "reported", train="nothing:train", evaluate=None, predict="nothing:predict", gates={}
        )
        commit = subprocess.check_output(["git", "-C", str(repository), "rev-parse", "HEAD"], text=True).strip()
        common = {"commit": commit, "name": "v1.0.0", "declaration": declared.to_json(), "seen_at": datetime.now(UTC)}
        with self._ledger.engine.begin() as connection:
            connection.execute(insert(tables.dataset).values(name="reported", cut=cut.to_json()))
            rows = [{"id": id, "model": name, **common} for id, name in enumerate(names, 1)]
            connection.execute(insert(tables.release), rows)
            rows = [{"name": name, "release_id": id, "seen_id": id} for id, name in enumerate(names, 1)]
            connection.execute(insert(tables.model), rows)

    @contextmanager
    def trainer(self) -> Iterator[None]:
        """The process serves while the block lasts."""
        settings, log = self._place / "settings.json", self._place / "trainer.log"
        settings.write_text(self._settings.model_dump_json())
        told = {"HEADRACE_SETTINGS": str(settings), "HEADRACE_WARM_PARENTS": self._warm}
        with log.open("ab") as output:
            argv = [sys.executable, "-m", "services.trainer"]
            process = subprocess.Popen(argv, env={**os.environ, **told}, stdout=output, stderr=output)
        try:
            self._wait(lambda: (self._place / "ready" / self._settings.process).exists(), process)
            yield
            if process.poll() is not None:
                raise SystemExit(f"the trainer ended: {log.read_text()[-2000:]}")
        finally:
            process.terminate()
            process.wait(30)

    def run(self, models: Sequence[int]) -> list[int]:
        """A run of each of these models, all due now and rung for; their numbers, when all are trained."""
        now = datetime.now(UTC)
        common = {
            "state": RunState.WAITING,
            "reason": "bench",
            "asked": True,
            "again": True,
            "compute_class": "standard",
        }
        common |= {"planned_at": now, "due_at": now, "config_digest": "sha256:x"}
        with self._ledger.engine.begin() as connection:
            first = 1 + (connection.execute(select(func.max(tables.run.c.id))).scalar() or 0)
            numbered = list(enumerate(models, first))
            rows = [{"id": id, "model": f"model-{number}", "release_id": number, **common} for id, number in numbered]
            connection.execute(insert(tables.run), rows)
        ids = [id for id, _ in numbered]
        for id in ids:
            messages.ring(self._bell, messages.TRAIN, messages.train_queue("standard"), id)
        self._wait(lambda: self._trained() >= len(ids) + first - 1)
        return ids

    def _trained(self) -> int:
        with self._ledger.read() as tx:
            states = tx.execute(select(tables.run.c.state, func.count()).group_by(tables.run.c.state)).all()
        found = {state: number for state, number in states}
        if found.keys() & {RunState.FAILED, RunState.CANCELLED}:
            raise SystemExit(f"a run was not trained: {(self._place / 'trainer.log').read_text()[-2000:]}")
        return int(found.get(RunState.TRAINED, 0))

    def added_ms(self, id: int) -> float:
        """From claim to trained, less what the author's function took."""
        with self._ledger.read() as tx:
            row = tx.execute(select(tables.run).where(tables.run.c.id == id)).one()
            seconds = tx.execute(select(tables.attempt.c.seconds).where(tables.attempt.c.run_id == id)).scalar_one()
        return float((row.finished_at - row.started_at).total_seconds() - seconds["train.train"]) * 1000

    def steps(self, id: int) -> dict[str, float]:
        with self._ledger.read() as tx:
            found = tx.execute(select(tables.attempt.c.seconds).where(tables.attempt.c.run_id == id)).scalar_one()
        return dict(found)

    def span_s(self, ids: Sequence[int]) -> float:
        """From due to the last one's end."""
        with self._ledger.read() as tx:
            query = select(func.min(tables.run.c.planned_at), func.max(tables.run.c.finished_at))
            due, ended = tx.execute(query.where(tables.run.c.id.in_(ids))).one()
        return float((ended - due).total_seconds())

    def builds(self) -> int:
        """How many environments were built, as the runs' logs have it."""
        logs = self._place.glob("logs/**/*")
        return sum(path.read_bytes().count(b"] installing packages") for path in logs if path.is_file())

    def close(self) -> None:
        self._ledger.close()
        self._bell.close()

    def _wait(self, condition: Callable[[], bool], process: subprocess.Popen[bytes] | None = None) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            if time.monotonic() > deadline or (process is not None and process.poll() is not None):
                raise SystemExit(f"it takes too long: {(self._place / 'trainer.log').read_text()[-2000:]}")
            time.sleep(0.02)


def measure_attempts(
    place: Path, redis: str, repository: Path, warm: str, times: int
) -> tuple[float, float, dict[str, float]]:
    """Milliseconds that the platform adds to the first attempt and, median, to the later ones; the steps of one of these."""
    bench = Bench(place, repository, 1, 1, redis, warm)
    with bench.trainer():
        first, _, _ = (bench.run([1])[0] for _ in range(3))  # the second starts the warm parent
        later = [bench.run([1])[0] for _ in range(times)]
    found = bench.added_ms(first), median(map(bench.added_ms, later)), bench.steps(later[-1])
    bench.close()
    return found


def measure_many(place: Path, redis: str, repository: Path, warm: str, runs: int, slots: int) -> float:
    """Seconds until the last of so many runs is trained; the environment is there."""
    bench = Bench(place, repository, runs, slots, redis, warm)
    with bench.trainer():
        for _ in range(2):
            bench.run([1])
        took = bench.span_s(bench.run(range(1, runs + 1)))
    bench.close()
    return took


def measure_build(place: Path, redis: str, repository: Path) -> int:
    bench = Bench(place, repository, BUILDERS, BUILDERS, redis, COLD)
    with bench.trainer():
        bench.run(range(1, BUILDERS + 1))
    bench.close()
    return bench.builds()


def make(place: Path, kind: Kind) -> Path:
    """The repository of a model that does nothing."""
    source = place / f"source {kind.name}"
    source.mkdir()
    (source / "pyproject.toml").write_text(HEAD + kind.dependencies + DECLARED)
    (source / "nothing.py").write_text(kind.imports + CODE)
    return make_repository(place / f"repository-{KINDS.index(kind)}", source, kind.lock)


def attempts(place: Path, redis: str, repositories: Sequence[Path], times: int, say: Console) -> None:
    table = Table("one attempt, ms added", *(kind.name for kind in KINDS))
    rows: dict[str, list[str]] = {"environment to be built": [], "environment there": [], "warm parent": []}
    for number, repository in enumerate(repositories):
        first, cold, steps = measure_attempts(place / f"cold-{number}", redis, repository, COLD, times)
        say.log(f"{KINDS[number].name}, environment there: {steps}")
        _, warm, steps = measure_attempts(place / f"warm-{number}", redis, repository, WARM, times)
        say.log(f"{KINDS[number].name}, warm parent: {steps}")
        for row, found in zip(rows.values(), (first, cold, warm), strict=True):
            row.append(f"{found:,.0f}")
    for name, cells in rows.items():
        table.add_row(name, *cells)
    Console().print(table)


def many(place: Path, redis: str, repository: Path, runs: int, say: Console) -> None:
    table = Table(f"{runs} runs that do nothing, s", *(f"{slots} slots" for slots in SLOTS))
    for name, warm in (("without", COLD), ("warm parents", WARM)):
        cells = []
        for slots in SLOTS:
            cells.append(measure_many(place / f"many-{warm}-{slots}", redis, repository, warm, runs, slots))
            say.log(f"{runs} runs, {slots} slots, {name}: {cells[-1]:.1f} s")
        table.add_row(name, *(f"{cell:.1f}" for cell in cells))
    Console().print(table)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.trainer", description=__doc__.partition("\n")[0])
    parser.add_argument("-n", "--times", type=int, default=10, help="attempts of each kind")
    parser.add_argument("--runs", type=int, default=200, help="runs that do nothing; 0: leave that part out")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    say, loads = Console(stderr=True), os.getloadavg()
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as folder:
        place = Path(folder)
        server = start_valkey(place / "redis")
        try:
            repositories = [make(place, kind) for kind in KINDS]
            attempts(place, server.url, repositories, args.times, say)
            if args.runs:
                many(place, server.url, repositories[0], args.runs, say)
            print(
                f"{BUILDERS} runs at once: {measure_build(place / 'build', server.url, repositories[0])} environment built"
            )
        finally:
            server.stop()
    print(f"{os.cpu_count()} cores, load {loads[0]:.2f} before and {os.getloadavg()[0]:.2f} after")
    return 0


if __name__ == "__main__":
    sys.exit(main())
