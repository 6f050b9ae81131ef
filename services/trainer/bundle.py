"""The bundle: what a successful attempt leaves, checked, hashed and stored."""

from __future__ import annotations

import shutil
import stat
from pathlib import Path

from services.trainer import metrics
from services.trainer.checkout import Prepared
from services.trainer.child import LOADER
from services.trainer.failures import AttemptFailed
from shared.blobs import Blobs, materialise, store_tree
from shared.errors import Refused
from shared.manifest import Manifest, read_tree

MAX_SOURCE_BYTES = 1024**2
LEFT_OUT = {"tests", "test", "docs", "node_modules", "__pycache__"}


def complete(output: Path, prepared: Prepared, log: bytes) -> None:
    """Add to the author's output what makes it loadable and judgeable later: source, loader, locked requirements, log.

    Raises `AttemptFailed` for a link, through which we would write elsewhere, and for a pipe, at which we would wait.
    """
    if any(_is_odd(path) for path in (output, *output.rglob("*"))):
        message = "invalid_bundle: job.output holds a link, a pipe or a device; a bundle holds plain files only"
        raise AttemptFailed("bad_output", message, "write files")
    for ours in ("source", "code", "requirements.txt", "log.txt"):
        _clear(output / ours)
    _copy_source(prepared.checkout, output / "source")
    (output / "code").mkdir()
    shutil.copyfile(LOADER, output / "code" / "headrace_loader.py")
    (output / "requirements.txt").write_text(prepared.requirements)
    (output / "log.txt").write_bytes(log)


def _is_odd(path: Path) -> bool:
    """A link, also a hard one (to a file that only we may read), a pipe, a device."""
    status = path.lstat()
    return not stat.S_ISDIR(status.st_mode) and not (stat.S_ISREG(status.st_mode) and status.st_nlink == 1)


def _clear(path: Path) -> None:
    """Take away what the author's code has put where the platform's own files go."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _copy_source(checkout: Path, into: Path) -> None:
    for path in sorted(checkout.rglob("*")):
        relative = path.relative_to(checkout)
        if any(part in LEFT_OUT or part.startswith(".") for part in relative.parts):
            continue
        if (
            path.is_file()
            and not path.is_symlink()
            and path.stat().st_size <= MAX_SOURCE_BYTES
            and path.suffix != ".pyc"
        ):
            (into / relative).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, into / relative)


def check(output: Path) -> Manifest:
    """The manifest of a bundle that holds what it must; raises `AttemptFailed` of the kind `bad_output`."""
    try:
        manifest = read_tree(output)
        if not any(file.path.startswith("model/") for file in manifest.files):
            raise Refused("train() returned nothing and left nothing in job.output; return the model, or save it there")
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
