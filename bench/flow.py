"""From the commit of 1,000 rows to the consumer's receipt of the signed webhook, beside the same work done by hand: `python -m bench.flow`."""

from __future__ import annotations

import argparse
import base64
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol

from headrace.connection import Connection
from rich.console import Console

from bench import report
from bench.baseline import Loop, NotDone, Script, build_environment
from bench.hook import Hook, NotTold
from bench.measured import Measured
from bench.product import MODEL, Product
from bench.rows import HOLDOUT, Table, make_tables
from shared.errors import HeadraceError
from stack.demo.flights import Row
from stack.up import Stack

SOURCE = Path(__file__).with_name("model")
LOCK = Path(__file__).parents[1] / "examples" / "flights" / "uv.lock"  # of the same project name and dependencies
REST_S = 1.0
CONFIG = """\
[datasets.flights]
source = {{ kind = "sql", url = "env:FLIGHTS_URL", table = "flights", cursor = "id" }}
holdout = {{ newest = "10%", max_rows = {holdout} }}

[models.{model}]
repository = "{repository}"
policy = {{ min_rows = 1000 }}
pass_env = ["FLIGHTS_URL"]

[[subscriptions]]
name = "bench"
url = "{hook}"
secret = "env:BENCH_HOOK_SECRET"
types = ["version.promoted"]
allow_private = true
"""


class Contestant(Protocol):
    """Someone who does the work once for each arrival; `prepare` is not measured."""

    name: str

    def prepare(self) -> None: ...

    def once(self, rows: Sequence[Row]) -> Measured: ...


def run(repetitions: int, place: Path, say: Console) -> dict[str, list[Measured]]:
    """Everything under `place`; nothing is left running."""
    tables, batches = make_tables([place / f"{name}.db" for name in ("product", "script", "loop")])
    repository = make_repository(place / "repository")
    secret = "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode()
    os.environ |= {"FLIGHTS_URL": f"sqlite:///{tables[0].path}", "BENCH_HOOK_SECRET": secret}
    with ExitStack() as open_until_the_end:
        hook = open_until_the_end.enter_context(Hook(secret))
        config = place / "headrace.toml"
        config.write_text(
            CONFIG.format(holdout=HOLDOUT, model=MODEL, repository=repository.as_uri(), hook=hook.url), encoding="utf-8"
        )
        say.print("starting the stack", highlight=False)
        began = time.time()
        stack = open_until_the_end.enter_context(Stack(config, place / "state"))
        product = _make_product(stack, tables[0], hook)
        say.print("the first training builds the model's environment", highlight=False)
        product.wait_first(began)
        say.print("building the same environment with MLflow for the others", highlight=False)
        python = build_environment(place / "environment", repository, place / "state" / "trainer" / "uv-cache")
        job = {"source": str(repository), "holdout": HOLDOUT, "mlflow": stack.endpoints.mlflow}
        job |= {"hook": hook.url, "secret": secret}
        script, loop = (
            open_until_the_end.enter_context(
                kind(python, place, job | {"name": name, "database": str(table.path)}, table, hook)
            )
            for kind, name, table in ((Script, "by-script", tables[1]), (Loop, "by-loop", tables[2]))
        )
        return _take_turns([product, script, loop], batches, repetitions, say)


def _take_turns(
    contestants: Sequence[Contestant], batches: Iterator[Sequence[Row]], repetitions: int, say: Console
) -> dict[str, list[Measured]]:
    """One repetition to warm up, then each contestant once in each, so that what else the machine does hits all alike."""
    results: dict[str, list[Measured]] = {one.name: [] for one in contestants}
    for number in range(repetitions + 1):
        rows = next(batches)
        turn = number % len(contestants)
        for contestant in [*contestants[turn:], *contestants[:turn]]:
            contestant.prepare()
            time.sleep(REST_S)
            measured = contestant.once(rows)
            say.print(
                f"{f'repetition {number}' if number else 'warm-up'}: {contestant.name} {measured.total_s:.3f} s",
                highlight=False,
            )
            if number:
                results[contestant.name].append(measured)
    return results


def _make_product(stack: Stack, table: Table, hook: Hook) -> Product:
    token = Path(stack.endpoints.token_file).read_text().strip()
    return Product(Connection(stack.endpoints.api, token), table, hook)


def make_repository(place: Path, source: Path = SOURCE, lock: Path | None = LOCK) -> Path:
    """A git repository with the files of `source` and a lock, tagged v1.0.0."""
    shutil.copytree(source, place, ignore=shutil.ignore_patterns("__pycache__"))
    if lock is not None:
        shutil.copyfile(lock, place / "uv.lock")
    names = {f"GIT_{who}_{what}": "bench@example.com" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    plain = {"PATH": os.environ["PATH"], "HOME": str(place), "GIT_CONFIG_NOSYSTEM": "1"}
    for words in ("init --initial-branch=main", "add --all", "commit --message=Bench", "tag v1.0.0"):
        command, *more = words.split()
        quiet = [] if command in ("add", "tag") else ["--quiet"]
        subprocess.run(["git", "-C", str(place), command, *quiet, *more], check=True, env={**plain, **names})
    return place


def main() -> int:
    """0 with a table or JSON on stdout, 1 when something did not work."""
    parser = argparse.ArgumentParser(prog="python -m bench.flow", description=__doc__)
    parser.add_argument("-n", "--repetitions", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="every figure, as JSON on stdout")
    args = parser.parse_args()
    if args.repetitions < 1:
        parser.error("--repetitions: at least 1")
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    before = os.getloadavg()[0]
    try:
        with tempfile.TemporaryDirectory(prefix="headrace-bench-") as place:
            results = run(args.repetitions, Path(place), Console(stderr=True))
    except (HeadraceError, NotDone, NotTold) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    loads = (before, os.getloadavg()[0])
    if args.json:
        report.print_json(results, loads)
    else:
        report.print_table(Console(), results, loads)
    return 0


if __name__ == "__main__":
    sys.exit(main())
