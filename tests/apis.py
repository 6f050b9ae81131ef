"""The API in this process, without a server: requests from any thread, and a ledger in which a model has come as far as a test wants."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from anyio.from_thread import BlockingPortal, start_blocking_portal
from fastapi import FastAPI
from httpx import ASGITransport, AsyncClient, Response

from shared.blobs import DiskBlobs, store_tree
from shared.gates import Decision, Verdict
from shared.http import Stores
from shared.ledger import Ledger, attempts, runs, scores, tokens, versions
from shared.ledger.tokens import Scope
from shared.logs import DiskLogs
from shared.manifest import Manifest, read_tree
from stack.api import create_app
from tests import ledgers

FILES = {
    "MLmodel": b"flavors: {}\n",
    "data/model/weights.bin": bytes(range(256)) * 9000,  # more than one piece of a download
    "requirements.txt": b"scikit-learn==1.7.2\n",
}


@dataclass
class CountingClock(ledgers.HandClock):
    """Each transaction asks once, so it tells that a long poll has looked."""

    asked: int = 0

    def now(self) -> datetime:
        self.asked += 1
        return super().now()


@dataclass
class Api:
    """`get` and `post` carry the token of the operator unless another, or None, is given."""

    stores: Stores
    clock: CountingClock
    portal: BlockingPortal
    client: AsyncClient
    app: FastAPI
    secrets: dict[str, str] = field(default_factory=dict)

    @property
    def ledger(self) -> Ledger:
        return self.stores.ledger

    def get(self, path: str, *, token: str | None = "all", **query: object) -> Response:
        params = {key: str(value) for key, value in query.items()}
        return self.request("GET", path, token=token, params=params or None)

    def post(self, path: str, json: object = None, *, token: str | None = "all", **more: Any) -> Response:
        return self.request("POST", path, token=token, json=json, **more)

    @contextmanager
    def waiting(self, path: str, **query: object) -> Iterator[Future[Any]]:
        """The JSON of a long poll that has looked once in vain, and waits."""
        before = self.clock.asked
        with ThreadPoolExecutor(1) as aside:
            answer = aside.submit(lambda: self.get(path, wait=20, **query).json())
            deadline = time.monotonic() + 10
            while self.clock.asked < before + 2:  # the token's transaction, and its own
                assert not answer.done(), answer.result()
                assert time.monotonic() < deadline, "it never looked"
            yield answer

    def request(self, method: str, path: str, *, token: str | None = "all", **more: Any) -> Response:
        bearer = {"Authorization": f"Bearer {self.secrets.get(token, token)}".encode()} if token is not None else {}
        more["headers"] = bearer | more.get("headers", {})
        return self.portal.call(partial(self.client.request, method, path, timeout=30, **more))


@contextmanager
def serve(directory: Path, config: str = ledgers.CONFIG, database: Path | None = None) -> Iterator[Api]:
    """On a ledger in memory, or on `database`, a migrated file."""
    if database is None:
        ledger, _ = ledgers.in_memory(config)
    else:
        ledger = Ledger(f"sqlite:///{database}")
        ledgers.put_config(ledger, config)
    clock = CountingClock()
    ledger.go_by(clock)
    stores = Stores(ledger, DiskBlobs(directory / "blobs"), DiskLogs(directory / "logs"))
    with start_blocking_portal() as portal:
        app = create_app(stores)
        transport = ASGITransport(app, raise_app_exceptions=False)
        client = AsyncClient(transport=transport, base_url="http://headrace.test")
        yield Api(stores, clock, portal, client, app, make_tokens(ledger))
        portal.call(client.aclose)
    ledger.close()


def make_tokens(ledger: Ledger) -> dict[str, str]:
    """One for each scope, named after it, and one for all."""
    with ledger.write() as tx:
        single = {scope.value: tokens.create(tx, scope.value, (scope,)) for scope in Scope}
        return single | {"all": tokens.create(tx, "alice", tuple(Scope))}


def train(api: Api, rows: int = 1000) -> int:
    """A run that new rows have made due is claimed and ends well."""
    ledgers.adopt(api.ledger)
    ledgers.grow(api.ledger, rows)
    with api.ledger.read() as tx:
        run = runs.find_waiting(tx, "delays").id
    claim = ledgers.claim(api.ledger, run)
    assert claim is not None
    with api.ledger.write() as tx:
        attempts.finish(tx, run, claim.token, "sha256:" + "b" * 64, {"train": 1.5})
    return int(run)


def register(api: Api, run: int, number: int, directory: Path) -> Manifest:
    """The run's version, a candidate, with FILES in the blob store."""
    for path, data in FILES.items():
        (directory / path).parent.mkdir(parents=True, exist_ok=True)
        (directory / path).write_bytes(data)
    manifest = read_tree(directory)
    store_tree(api.stores.blobs, directory, manifest)
    api.stores.blobs.put_bytes(manifest.canonical())
    with api.ledger.write() as tx:
        scores.store(tx, run, "sha256:h", {}, "standard", {"auc": 0.7}, None)
        versions.registered(tx, run, number, manifest.digest, f"r{number}", f"m-{number}")
    return manifest


def judge(api: Api, number: int, decision: Decision, *, automatic: bool = True) -> None:
    with api.ledger.write() as tx:
        row, champion = versions.find(tx, "delays", number), versions.champion(tx, "delays")
        verdict = Verdict(decision, ("auc 0.7 is at least 0.6",))
        versions.decide(tx, row, champion, verdict, "sha256:h", automatic=automatic)


def follow_alias(api: Api, number: int) -> None:
    """What the bridge does when the alias has been moved."""
    with api.ledger.write() as tx:
        versions.served(tx, versions.find(tx, "delays", number))
