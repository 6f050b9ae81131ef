"""The bundle: what a training leaves, made loadable and judgeable later. Alike for the platform's trainer and for `headrace try`."""

from __future__ import annotations

import shutil
import stat
from pathlib import Path

from headrace.job import LOADER
from headrace.outcome import RunFailed
from headrace.paths import plain_path

MAX_SOURCE_BYTES = 1024**2
LEFT_OUT = {"tests", "test", "docs", "node_modules", "__pycache__"}
MAX_FILES, MAX_BYTES = 2_000, 4 * 1024**3
NO_MODEL = "train() returned nothing and left nothing in job.output; return the model, or save it there"


def complete(output: Path, checkout: Path, requirements: str, log: bytes) -> None:
    """Add to the author's output what it needs: source, loader, locked requirements, log.

    Raises `RunFailed` for a link, through which we would write elsewhere, and for a pipe, at which we would wait.
    """
    if any(_is_odd(path) for path in (output, *output.rglob("*"))):
        message = "invalid_bundle: job.output holds a link, a pipe or a device; a bundle holds plain files only"
        raise RunFailed("bad_output", message, "write files")
    for ours in ("source", "code", "requirements.txt", "log.txt"):
        _clear(output / ours)
    _copy_source(checkout, output / "source")
    (output / "code").mkdir()
    shutil.copyfile(LOADER, output / "code" / "headrace_loader.py")
    (output / "requirements.txt").write_text(requirements)
    (output / "log.txt").write_bytes(log)


def check(output: Path) -> dict[str, int]:
    """The bundle's files with their sizes in bytes. Raises `RunFailed` for one that the platform would not keep: it has its own, stricter, look."""
    plain = [path for path in sorted(output.rglob("*")) if not path.is_dir()]
    files = {path.relative_to(output).as_posix(): path.lstat().st_size for path in plain}
    if not any(name.startswith("model/") for name in files):
        raise RunFailed("bad_output", NO_MODEL)
    odd = next((name for name in files if not plain_path(name)), None)
    if odd is not None:
        message = f"invalid_bundle: the path {odd!r} is not a plain relative one (letters, digits, _ @ + = , . - and single /)"
        raise RunFailed("bad_output", message, "give the file another name")
    if len(files) > MAX_FILES or sum(files.values()) > MAX_BYTES:
        taken = f"{len(files):,} files of {sum(files.values()):,} bytes"
        message = f"invalid_bundle: {taken}; at most {MAX_FILES:,} and {MAX_BYTES:,} are taken"
        raise RunFailed("bad_output", message, "leave out what the model does not need to predict")
    return files


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
