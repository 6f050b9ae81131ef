"""`python -m bench.stores`: a bundle stored and fetched on a disk and on a real S3 server on this machine, as a ratio.

The bundle: one file of 50 MB and 20 of 20 kB, new bytes each time. Only the ratio says anything: no network lies between.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

from shared.blobs import Blobs, make_blobs, materialise, store_tree
from shared.manifest import Manifest, read_tree
from tests.s3_server import start_s3

REPETITIONS = 5


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        server = start_s3(place / "s3")
        os.environ.update(server.environment)
        try:
            disk = measure(make_blobs(f"file://{place}/blobs"), place)
            s3 = measure(make_blobs(server.new_url()), place)
        finally:
            server.stop()
    for step, on_disk, on_s3 in zip(("store", "store again", "fetch"), disk, s3, strict=True):
        print(f"{step:12} disk {on_disk:6.3f} s   s3 {on_s3:6.3f} s   ratio {on_s3 / on_disk:5.2f}")


def measure(blobs: Blobs, place: Path) -> list[float]:
    """Medians of storing, of storing what is there, and of fetching."""
    found = []
    for _ in range(REPETITIONS):
        manifest = make_bundle(place / "bundle")
        steps: list[Callable[[], None]] = [
            lambda manifest=manifest: store_tree(blobs, place / "bundle", manifest),  # type: ignore[misc]
            lambda manifest=manifest: store_tree(blobs, place / "bundle", manifest),  # type: ignore[misc]
            lambda manifest=manifest: materialise(blobs, manifest, place / "copy"),  # type: ignore[misc]
        ]
        found.append([seconds(step) for step in steps])
        shutil.rmtree(place / "bundle")
        shutil.rmtree(place / "copy")
    return [median(times) for times in zip(*found, strict=True)]


def make_bundle(root: Path) -> Manifest:
    root.mkdir()
    (root / "weights").write_bytes(os.urandom(50_000_000))
    for number in range(20):
        (root / f"file-{number}").write_bytes(os.urandom(20_000))
    return read_tree(root)


def seconds(step: Callable[[], None]) -> float:
    begun = time.perf_counter()
    step()
    return time.perf_counter() - begun


if __name__ == "__main__":
    main()
