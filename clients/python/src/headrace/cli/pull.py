"""`headrace pull` and `bump`: what a consumer does by hand or in a build."""

from __future__ import annotations

import sys
from argparse import Namespace
from contextlib import contextmanager
from pathlib import Path
from typing import Dict, Iterator, List, Optional

from headrace.cli import show
from headrace.connection import Problem
from headrace.consumer import Progress, receipt, resolve
from headrace.consumer import pull as fetch
from headrace.lock import CHAMPION, Choice, read_versions, set_version


def pull(arguments: Namespace) -> None:
    done: List[Dict[str, object]] = []
    for model, choice in _wanted(arguments).items():
        with _progress(f"{model} {choice}") as progress:
            place = fetch(model, choice, Path(arguments.into), progress=progress)
        sample = receipt(place).get("sample")
        done.append({"model": model, "version": int(place.name), "path": str(place), "sample": sample})
        if not arguments.json:
            print(f"{model} {place.name} is in {place}, checked{_caution(sample)}")
    if arguments.json:
        show.as_json(done)


def bump(arguments: Namespace) -> None:
    lock = Path(arguments.lock)
    changes = [_bump(lock, model, arguments.version) for model in _named(lock, arguments.model)]
    if arguments.json:
        return show.as_json(changes)
    for change in changes:
        if change["old"] == change["new"]:
            print(f"{change['model']} is on {change['version']} already")
        else:
            print(f"{change['model']}\n- {change['old']}\n+ {change['new']}{_caution(change['sample'])}")


def _bump(lock: Path, model: str, version: Optional[int]) -> Dict[str, object]:
    # Asked in any case: a version that does not exist must not get into the file.
    found = resolve(model, version or CHAMPION)
    old, new = set_version(lock, model, found.version)
    return {"model": model, "version": found.version, "old": old, "new": new, "sample": found.sample}


def _caution(sample: object) -> str:
    return f"\n  it was trained on {show.sample(str(sample))}: build against it, do not serve it" if sample else ""


def _wanted(arguments: Namespace) -> Dict[str, Choice]:
    lock, model, version = Path(arguments.lock), arguments.model, arguments.version
    if model is None:
        if version is not None:
            raise Problem("--version needs a MODEL", "headrace pull MODEL --version N")
        return read_versions(lock)
    named = read_versions(lock) if lock.exists() else {}
    return {model: version or named.get(model, CHAMPION)}


def _named(lock: Path, model: Optional[str]) -> List[str]:
    """One model, or all that the file gives a number; "champion" follows by itself."""
    if model is not None:
        return [model]
    return [name for name, choice in read_versions(lock).items() if choice != CHAMPION]


@contextmanager
def _progress(words: str) -> Iterator[Optional[Progress]]:
    if not sys.stderr.isatty():
        yield None
        return
    try:
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, TextColumn, TransferSpeedColumn
        from rich.progress import Progress as Bars
    except ImportError:  # headrace[cli] brings it; without it one waits without a bar
        yield None
        return
    columns = (TextColumn(words, markup=False), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Bars(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task(words, total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)
