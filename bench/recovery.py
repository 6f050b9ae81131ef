"""`python -m bench.recovery`: how soon the product goes on after what it is made to survive. Seconds, with the worst of a few."""

from __future__ import annotations

import os
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.redis_server import start_valkey
from tests.swallowing import Swallowing
from tests.system.product import Model, Product

TURNS, NOTICES, HANGING, POSTS = 5, 40, 20, 300


@contextmanager
def started(**elsewhere: str) -> Iterator[Product]:
    with tempfile.TemporaryDirectory() as folder:
        product = Product(Path(folder), elsewhere=elsewhere)
        try:
            product.start()
            yield product
            product.audit()
        finally:
            product.stop()


def told_at(value: str) -> float:
    return datetime.fromisoformat(value.replace("Z", "+00:00")).timestamp()


def after_a_killed_worker(product: Product, name: str) -> list[float]:
    """From SIGKILL of a trainer in mid training to the start of the next attempt."""
    model, took = product.add_model(name), []
    for turn in range(TURNS):
        model.hold()
        model.insert()
        run = in_training(model)
        killed_at = time.time()
        os.kill(product.pid("trainer-standard"), signal.SIGKILL)
        attempts = product.wait("the next attempt", lambda: second_attempt(product, run))  # noqa: B023
        took.append(told_at(attempts[1]["started_at"]) - killed_at)
        model.go()
        model.wait_for_champion(turn + 1)
    return took


def in_training(model: Model) -> int:
    run = int(model.wait_for_state("running")["id"])
    log = f"/v1/runs/{run}/log"
    model.product.wait("the author's code to run", lambda: "training on" in model.product.get(log)["text"])
    return run


def second_attempt(product: Product, run: int) -> list[dict[str, Any]] | None:
    attempts: list[dict[str, Any]] = product.get(f"/v1/runs/{run}")["attempts"]
    return attempts if len(attempts) == 2 else None


def after_a_lost_ring(product: Product, proxy: Swallowing) -> list[float]:
    """From the plan of a run, due at once, whose first ring is swallowed, to its start."""
    model, took = product.add_model("unheard"), []
    for turn in range(TURNS):
        proxy.every, lost = 1, proxy.swallowed
        model.insert()
        product.wait("a ring to be lost", lambda: proxy.swallowed > lost, look_s=0.005)  # noqa: B023
        proxy.every = None
        model.wait_for_champion(turn + 1)
        run = model.runs()[0]
        took.append(told_at(run["started_at"]) - told_at(run["planned_at"]))
    return took


def of_a_warm_shutdown(product: Product) -> list[float]:
    """From SIGTERM to the end of a trainer in mid training."""
    model, took = product.add_model("leaves"), []
    for turn in range(TURNS):
        model.hold()
        model.insert()
        in_training(model)
        pid, asked = product.pid("trainer-standard"), time.monotonic()
        os.kill(pid, signal.SIGTERM)
        while Path(f"/proc/{pid}/cmdline").exists() and Path(f"/proc/{pid}/cmdline").read_bytes():
            time.sleep(0.01)
        took.append(time.monotonic() - asked)
        model.go()
        model.wait_for_champion(turn + 1)
    return took


def of_a_notice_beside_hanging_endpoints(product: Product) -> list[float]:
    """From the commit of a notice to its arrival at a consumer, while twenty others take connections and never answer."""
    with hanging() as port:
        for n in range(HANGING):
            product.add_section(
                f'[[subscriptions]]\nname = "hangs-{n}"\nurl = "http://127.0.0.1:{port}/{n}"\nsecret = "env:HOOK_SECRET"\n'
                'types = ["*"]\nallow_private = true\n'
            )
        product.add_section('[datasets.beside]\nsource = { kind = "rest" }\n')
        took = []
        product.wait("the dataset to be known", lambda: product.post("/v1/events", report("beside", "first")))
        for n in range(NOTICES):
            seen = len(product.hook.received)
            product.post("/v1/events", report("beside", str(n)))
            product.wait("the notice", lambda: len(product.hook.received) > seen)  # noqa: B023
            took.append(time.time() - told_at(product.hook.received[-1]["time"]))
        return took


def report(dataset: str, id: str) -> dict[str, object]:
    return {"dataset": dataset, "rows": 1, "id": f"{dataset} {id}"}


@contextmanager
def hanging() -> Iterator[int]:
    over = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            over.wait()

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port
    over.set()
    server.shutdown()
    server.server_close()


def of_a_report_without_redis(product: Product, kill: Callable[[], None]) -> list[float]:
    """Of `POST /v1/events`, from the request to its 202, while the broker is away."""
    product.add_section('[datasets.without]\nsource = { kind = "rest" }\n')
    product.wait("the dataset to be known", lambda: product.post("/v1/events", report("without", "first")))
    kill()
    took = []
    for n in range(POSTS):
        began = time.monotonic()
        product.post("/v1/events", report("without", str(n)))
        took.append(time.monotonic() - began)
    return took


def show(what: str, took: list[float], limit: str) -> None:
    ordered = sorted(took)
    p95 = ordered[min(len(ordered) - 1, int(len(ordered) * 0.95))]
    print(f"{what:62}{statistics.median(took):8.2f}{p95:8.2f}{ordered[-1]:8.2f}   {limit}", flush=True)


def main() -> int:
    print(f"{'seconds':62}{'median':>8}{'p95':>8}{'worst':>8}   wanted")
    with tempfile.TemporaryDirectory() as folder:
        valkey = start_valkey(Path(folder) / "valkey")
        with Swallowing(valkey.port) as proxy:
            with started(HEADRACE_REDIS_URL=f"redis://127.0.0.1:{proxy.port}/0") as product:
                show(
                    "a killed worker's run is claimed again (lease 6 s)",
                    after_a_killed_worker(product, "killed"),
                    "≤ 10",
                )
                show("a run whose ring is lost starts", after_a_lost_ring(product, proxy), "≤ 10")
                show("SIGTERM in mid training to the end of the worker", of_a_warm_shutdown(product), "≤ 10")
                show(
                    "a notice arrives beside twenty that hang", of_a_notice_beside_hanging_endpoints(product), "p95 ≤ 2"
                )
                show(
                    "202 for a report while Redis is away", of_a_report_without_redis(product, valkey.kill), "p99 ≤ 0.1"
                )
                valkey.restart()
            slow = {"HEADRACE_LEASE_S": "30", "HEADRACE_HEARTBEAT_S": "10", "HEADRACE_LOOK_S": "3"}
            with started(**slow) as product:
                show(
                    "a killed worker's run is claimed again (lease 30 s)",
                    after_a_killed_worker(product, "killed"),
                    "≤ 45",
                )
        valkey.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
