"""A ledger with stores behind it in which models have a past: bundles, versions, logs, all of them old."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from services.registry_bridge.tidy import Tidy
from shared.blobs import DiskBlobs, store_tree
from shared.gates import Decision
from shared.ledger import Ledger, retention, runs, versions
from shared.logs import DiskLogs
from shared.manifest import Manifest, read_tree
from tests import ledgers
from tests.ledgers import HandClock
from tests.registry_twin import RegistryTwin

LONG_AGO = timedelta(days=400)


@dataclass
class House:
    """`tidy` works on the stores; versions of "delays" are numbered from 1 on."""

    ledger: Ledger
    clock: HandClock
    blobs: DiskBlobs
    logs: DiskLogs
    registry: RegistryTwin
    place: Path
    versions: int = 0

    @property
    def tidy(self) -> Tidy:
        return Tidy(self.ledger, self.registry, self.blobs, self.logs)

    def store(self, files: Mapping[str, str]) -> str:
        """The digest of a stored tree."""
        root = self.place / f"tree-{len(list(self.place.iterdir()))}"
        for path, text in files.items():
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_text(text)
        manifest = read_tree(root)
        store_tree(self.blobs, root, manifest)
        self.blobs.put_bytes(manifest.canonical())
        return manifest.digest

    def train(self) -> int:
        ledgers.grow(self.ledger)
        claimed = ledgers.claim(self.ledger, ledgers.waiting(self.ledger))
        assert claimed is not None
        run = claimed.run
        self.logs.append(f"runs/{run}/{claimed.token}", b"epoch 1\n")
        bundle = self.store({"model/weights": f"weights {run}", "source/model.py": "the same", "log.txt": f"log {run}"})
        ledgers.finish(self.ledger, claimed, bundle)
        return run

    def register(self, run: int) -> int:
        self.versions += 1
        number = self.versions
        digest = self.store({"data/model/weights": f"weights {run}", "MLmodel": f"model {run}"})
        with self.ledger.write() as tx:
            versions.registered(tx, run, number, digest, f"r{number}", f"m-{number}")
        self.registry.runs.setdefault("delays", []).append(run)
        return number

    def version(self, decision: Decision | None, *, automatic: bool = True) -> int:
        number = self.register(self.train())
        if decision is not None:
            ledgers.decide(self.ledger, number, decision, automatic=automatic)
            if ledgers.follow(self.ledger) is not None:
                self.registry.aliases["delays"] = number
        return number

    def age(self) -> None:
        """All that is there is old from now on."""
        self.clock.at = datetime.now(UTC)
        for path in [*self.place.rglob("*")]:
            if path.is_file():
                os.utime(path, ((self.clock.at - LONG_AGO).timestamp(),) * 2)

    def files(self, number: int) -> Manifest:
        """The version's list of files, each of which is read to its end."""
        with self.ledger.read() as tx:
            digest = versions.find(tx, "delays", number).digest
        return self.read(digest)

    def read(self, digest: str) -> Manifest:
        with self.blobs.open(digest.removeprefix("sha256:")) as stream:
            manifest = Manifest.model_validate_json(stream.read())
        for file in manifest.files:
            with self.blobs.open(file.sha256) as stream:
                stream.read()
        return manifest

    def whole(self) -> None:
        """Nothing that the ledger still names has lost a byte."""
        with self.ledger.read() as tx:
            bundles, files = retention.named(tx, (0, 0), 1000)
        for row in bundles:
            self.read(row.bundle)
        for row in files:
            self.read(row.digest)

    def tidied(self) -> tuple[set[int], set[int]]:
        """Numbers of versions, and runs, whose files were taken."""
        with self.ledger.read() as tx:
            gone = {row.number for row in versions.find_all(tx, "delays", before=None, limit=1000) if row.tidied_at}
            return gone, {row.id for row in runs.find_all(tx, limit=1000) if row.tidied_at}

    def stored(self) -> set[str]:
        return {sha256 for sha256, _, _ in self.blobs.stored()}


def furnish(ledger: Ledger, clock: HandClock, place: Path) -> House:
    """A house with a past: 1 served, 2 serves, 3 is pinned, 4 to 6 are rejected, 7 awaits a word, 8 is not judged."""
    clock.at = datetime.now(UTC) - LONG_AGO
    house = House(ledger, clock, DiskBlobs(place / "blobs"), DiskLogs(place / "logs"), RegistryTwin(), place)
    ledgers.adopt(ledger)
    for _ in range(2):
        house.version(Decision.PROMOTE)
    for _ in range(4):
        house.version(Decision.REJECT)
    with ledger.write() as tx:
        retention.pin(tx, "delays", 3, "alice", "the storefront runs it")
    house.version(Decision.UNDECIDED)
    house.version(None)
    house.age()
    return house
