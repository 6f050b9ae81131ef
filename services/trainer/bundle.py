"""The bundle: what a successful attempt leaves, checked, hashed and stored."""

from __future__ import annotations

from pathlib import Path

from headrace import bundle

from services.trainer import metrics
from services.trainer.checkout import Prepared
from services.trainer.failures import AttemptFailed, explained
from shared.blobs import Blobs, materialise, store_tree
from shared.errors import Refused
from shared.manifest import Manifest, read_tree


def complete(output: Path, prepared: Prepared, log: bytes) -> None:
    """Add what makes it loadable and judgeable later. Raises `AttemptFailed`."""
    with explained():
        bundle.complete(output, prepared.checkout, prepared.requirements, log)


def check(output: Path) -> Manifest:
    """The manifest of a bundle that holds what it must; raises `AttemptFailed` of the kind `bad_output`."""
    try:
        manifest = read_tree(output)
        if not any(file.path.startswith("model/") for file in manifest.files):
            raise Refused(bundle.NO_MODEL)
        metrics.read(output / "metrics.json")
    except Refused as error:
        raise AttemptFailed("bad_output", error.message, "mend the code and tag a new release") from error
    return manifest


def store(blobs: Blobs, output: Path, manifest: Manifest) -> str:
    """Put every file and then the manifest; returns the bundle's digest. Nothing counts until the ledger names it."""
    store_tree(blobs, output, manifest)
    blobs.put_bytes(manifest.canonical())
    return manifest.digest


def fetch(blobs: Blobs, digest: str, into: Path) -> Path:
    """The files of a stored bundle in a directory, verified; made once and shared."""
    with blobs.open(digest.removeprefix("sha256:")) as stream:
        manifest = Manifest.model_validate_json(stream.read())
    into.parent.mkdir(parents=True, exist_ok=True)
    materialise(blobs, manifest, into)
    return into
