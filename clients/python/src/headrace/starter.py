"""A new model repository that trains at once: the files of `starters/`, with names filled in, and rows to try it on."""

from __future__ import annotations

import math
import random
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from string import Template

from headrace.connection import Problem
from headrace.installer import EnvironmentFailed, find_uv

VERSION = "v0.1.0"
DATASET = "readings"
_STARTERS = Path(__file__).with_name("starters")
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_HOURS = 28 * 24
_SHARED = {"ci.yml": ".github/workflows/test.yml", "README.md": "README.md", "gitignore": ".gitignore"}


@dataclass(frozen=True)
class Kind:
    """One starter: its template files and where they go; `source` and what it is are for the README."""

    files: dict[str, str]
    source: str
    told: str


KINDS = {
    "function": Kind(
        {
            "pyproject.toml": "pyproject.toml",
            "model.py": "$package/model.py",
            "test_model.py": "tests/test_model.py",
        },
        "$package/model.py",
        "`train`, `evaluate` and `predict`",
    ),
    "command": Kind(
        {
            "pyproject.toml": "pyproject.toml",
            "train.py": "train.py",
            "evaluate.py": "evaluate.py",
            "test_train.py": "tests/test_train.py",
        },
        "train.py",
        "what trains; `evaluate.py` judges. Either may be any other program",
    ),
}


def write(place: Path, kind: str, name: str | None = None) -> str:
    """Fill an empty or new directory; the model's name. Raises `Problem`."""
    model = name or re.sub(r"[^a-z0-9._-]+", "-", place.name.lower()).strip("-._")
    if not _NAME.fullmatch(model):
        raise Problem(f"{model!r} is no name for a model", "give one of small letters, digits and . _ -, with --name")
    if place.exists() and (not place.is_dir() or any(path.name != ".git" for path in place.iterdir())):
        raise Problem(
            f"{place} is not empty", "an existing repository needs a few lines only: docs/how-to/existing-repository.md"
        )
    package = re.sub(r"\W", "_", model)
    package = f"model_{package}" if package[0].isdigit() else package
    chosen = KINDS[kind]
    words = {"model": model, "package": package, "told": chosen.told}
    words["source"] = Template(chosen.source).substitute(words)
    for folder, files in ((kind, chosen.files), ("shared", _SHARED)):
        for template, target in files.items():
            text = Template((_STARTERS / folder / f"{template}.in").read_text("utf-8")).substitute(words)
            _put(place / Template(target).substitute(words), text)
    if (place / package).is_dir():
        _put(place / package / "__init__.py", "")
    _put(place / "sample" / f"{DATASET}.csv", sample())
    return model


def sample() -> str:
    """Four weeks of a load that has a shape: days, a weekend, and some noise."""
    noise = random.Random(7)
    lines = ["id,hour,weekday,load"]
    for number in range(_HOURS):
        hour, weekday = number % 24, number // 24 % 7
        load = 40 - 15 * math.cos(2 * math.pi * hour / 24) - 8 * (weekday > 4) + noise.gauss(0, 2)
        lines.append(f"{number + 1},{hour},{weekday},{load:.2f}")
    return "\n".join(lines) + "\n"


def lock(place: Path) -> str | None:
    """Write uv.lock; why there is none, if there is none."""
    try:
        done = subprocess.run(
            [str(find_uv()), "lock", "--quiet", "--project", str(place)], capture_output=True, text=True, check=False
        )
    except EnvironmentFailed as error:
        return error.message
    return None if done.returncode == 0 else done.stderr.strip()


def commit(place: Path) -> str | None:
    """Make it a repository with a first commit and its tag; why it is none, if it is none."""
    try:
        inside = _git(place, "rev-parse", "--show-toplevel")
        if inside.returncode == 0 and Path(inside.stdout.strip()) != place:
            return f"it lies in the repository {inside.stdout.strip()}; commit it there, and tag a version"
        _git(place, "init", "--quiet", "--initial-branch", "main")
        _git(place, "add", "--all")
        done = _git(place, "commit", "--quiet", "--message", "First version")
        if done.returncode == 0:
            done = _git(place, "tag", VERSION)
    except FileNotFoundError:
        return "there is no git here"
    return None if done.returncode == 0 else done.stderr.strip()


def _git(place: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["git", "-C", str(place), *arguments], capture_output=True, text=True, check=False)


def _put(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
