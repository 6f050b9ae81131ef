"""`python -m bench.soak`: the product at work for a while, and whether anything of it grows that should stay level."""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.system.product import Model, Product

MODELS, PAUSE_S, LOOK_S = 3, 0.5, 2.0
ABORTED = 5  # requests a turn that break off
WARM_SHARE = 0.4  # of the time: caches fill, pools open
ALLOWED = {"memory MB": 20.0, "descriptors": 10.0, "redis keys": 20.0, "redis MB": 5.0, "wal MB": 4.0}
WAL_MB = 16.0


@dataclass
class Series:
    """One thing that was looked at now and then: (seconds, value)."""

    of: str
    kind: str
    seen: list[tuple[float, float]]

    def growth(self) -> float:
        """By how much the fitted line rises over the time after the first warm share."""
        began, ended = self.seen[0][0], self.seen[-1][0]
        late = [(at, value) for at, value in self.seen if at >= began + WARM_SHARE * (ended - began)]
        if len(late) < 3:
            return 0.0
        slope = statistics.linear_regression(*zip(*late, strict=True)).slope
        return slope * (late[-1][0] - late[0][0])

    @property
    def grew(self) -> bool:
        return self.growth() > ALLOWED[self.kind] or (self.kind == "wal MB" and max(v for _, v in self.seen) > WAL_MB)


def look(product: Product) -> Iterator[tuple[str, str, float]]:
    """Every (of, kind, value) of this moment."""
    for name, pid in product.endpoints["pids"].items():
        try:
            yield name, "memory MB", _resident_bytes(pid) / 1e6
            yield name, "descriptors", float(len(list(Path(f"/proc/{pid}/fd").iterdir())))
        except OSError:
            continue  # it is being started again; its name stays
    yield "redis", "redis keys", float(product.redis("DBSIZE").split(b":")[1].split(b"\r")[0])
    memory = next(line for line in product.redis("INFO memory").splitlines() if line.startswith(b"used_memory:"))
    yield "redis", "redis MB", int(memory.split(b":")[1]) / 1e6
    wal = product.state / "ledger" / "ledger.db-wal"
    yield "ledger", "wal MB", (wal.stat().st_size if wal.exists() else 0) / 1e6


def _resident_bytes(pid: int) -> int:
    """Of the process and of what it has started."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * 4096


def work(product: Product, models: list[Model], minutes: float, pause_s: float = PAUSE_S) -> list[Series]:
    """Report data, break requests off, and look, until the time is over."""
    found: dict[tuple[str, str], Series] = {}
    began, looked = time.monotonic(), 0.0
    while (now := time.monotonic() - began) < minutes * 60:
        for model in models:
            product.post("/v1/events", event(model.name))
        for _ in range(ABORTED):
            break_off(product)
        if now - looked >= LOOK_S:
            looked = now
            for of, kind, value in look(product):
                found.setdefault((of, kind), Series(of, kind, [])).seen.append((now, value))
        time.sleep(pause_s)
    return list(found.values())


def event(dataset: str) -> dict[str, object]:
    return {"dataset": dataset, "rows": 1, "to": time.time_ns() // 1000, "id": str(time.time_ns())}


def break_off(product: Product) -> None:
    """Ask for notices that do not come, and go away."""
    import socket
    from urllib.parse import urlsplit

    address = urlsplit(product.endpoints["api"])
    ask = f"GET /v1/notices?after=999999&wait=30 HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {product.token}\r\n\r\n"
    with socket.create_connection((str(address.hostname), int(address.port or 80)), timeout=5) as connection:
        connection.sendall(ask.encode())


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    minutes = parser.parse_args().minutes
    with tempfile.TemporaryDirectory() as folder:
        product = Product(Path(folder))
        try:
            product.start()
            models = [product.add_model(f"soak-{n}", kind="rest") for n in range(MODELS)]
            for model in models:
                product.wait(f"{model.name} to be known", lambda: product.post("/v1/events", event(model.name)))  # noqa: B023
                model.wait_for_champion(1)
            series = work(product, models, minutes)
            done = {state: sum(len(model.runs(state)) for model in models) for state in ("trained", "failed")}
            done["all"] = max(run["id"] for model in models for run in model.runs())
        finally:
            product.stop()
    return report(series, minutes, done)


def report(series: list[Series], minutes: float, done: dict[str, int]) -> int:
    print(
        f"{minutes:g} minutes, {done['all']} runs; of the last 200 of each model {done['trained']} trained, {done['failed']} failed"
    )
    print(f"{'':18}{'':14}{'first':>9}{'last':>9}{'growth after warm-up':>22}{'allowed':>9}")
    for one in sorted(series, key=lambda each: (each.kind, each.of)):
        mark = "  GREW" if one.grew else ""
        growth, allowed = one.growth(), ALLOWED[one.kind]
        print(f"{one.of:18}{one.kind:14}{one.seen[0][1]:9.1f}{one.seen[-1][1]:9.1f}{growth:22.2f}{allowed:9.0f}{mark}")
    return int(any(one.grew for one in series) or done["failed"] > 0)


if __name__ == "__main__":
    sys.exit(main())
