"""A model that asks for another Python than the platform's gets it, where one is installed: in its environment, for its training."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from headrace.environment import EnvironmentFailed, EnvironmentRefused, Environments, Recipe, find_uv

from services.trainer.sandbox import Sandbox
from tests.children import train
from tests.contract.test_sandbox import WHY

PROJECT = '[project]\nname = "old"\nversion = "1.0.0"\nrequires-python = "{asked}"\ndependencies = []\n'
BODY = """
(job.scratch / "seen.json").write_text(json.dumps([list(sys.version_info[:2]), sys.prefix]))
return {"a": 1}
"""


def others() -> dict[str, Path]:
    """Version → program of every other CPython from 3.9 on that is on the PATH or among pyenv's."""
    roots = [Path(place) for place in os.environ["PATH"].split(os.pathsep)]
    roots += Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")).glob("versions/*/bin")
    found: dict[str, Path] = {}
    for minor in (minor for minor in range(9, 20) if minor != sys.version_info.minor):
        programs = [root / f"python3.{minor}" for root in roots if root.name != "shims"]
        found |= {f"3.{minor}": program for program in programs if program.is_file()}
    return found


OTHERS = others()
another = pytest.mark.skipif(not OTHERS, reason="there is no other Python here")


@another
@pytest.mark.parametrize("version", dict.fromkeys((*list(OTHERS)[:1], *list(OTHERS)[-1:])))  # the oldest and the newest
def test_a_project_is_trained_with_the_python_that_it_asks_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    monkeypatch.setenv("PATH", f"{OTHERS[version].parent}{os.pathsep}{os.environ['PATH']}")
    environments = Environments(tmp_path / "environments", find_uv(), tmp_path / "cache")
    digests = set()
    for asked in (f"=={version}.*", ">=3.11"):
        (tmp_path / asked).mkdir()
        (tmp_path / asked / "pyproject.toml").write_text(PROJECT.format(asked=asked))
        locked = environments.lock(Recipe(tmp_path / asked))
        digests.add(locked.digest)
        if asked != ">=3.11":
            python = environments.build(locked) / "bin" / "python"
    assert len(digests) == 2, "the same packages for another Python are another environment"
    train(tmp_path, BODY, python=str(python), sandbox=None if WHY else Sandbox())
    seen = json.loads((tmp_path / "scratch" / "work" / "seen.json").read_text())
    assert seen == [[int(part) for part in version.split(".")], str(python.parent.parent)]


@another
def test_one_that_is_not_here_is_fetched_where_the_operator_allows_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An archive of this test's own, whose Python hands on to the real one."""
    version, program = list(OTHERS.items())[-1]
    monkeypatch.setenv("PATH", os.pathsep.join(part for part in nowhere_else(version)))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("UV_PYTHON_DOWNLOADS_JSON_URL", str(offer(tmp_path, version, program)))
    (tmp_path / "pyproject.toml").write_text(PROJECT.format(asked=f"=={version}.*"))
    pythons = tmp_path / "pythons"
    with pytest.raises(EnvironmentRefused, match="is installed here; install one"):
        Environments(tmp_path / "environments", find_uv(), tmp_path / "cache").lock(Recipe(tmp_path))
    assert not pythons.exists()
    environments = Environments(tmp_path / "environments", find_uv(), tmp_path / "cache", pythons)
    assert environments.lock(Recipe(tmp_path)).python == str(program), "the fetched one says where the real one is"
    assert list(pythons.glob(f"cpython-{version}.*/bin"))
    (tmp_path / "pyproject.toml").write_text(PROJECT.format(asked="==3.98.*"))
    with pytest.raises(EnvironmentFailed, match=r"no Python ==3\.98\.\* is installed here, and none could be fetched"):
        environments.lock(Recipe(tmp_path))


def nowhere_else(version: str) -> list[str]:
    """The PATH without directories that have this one."""
    return [part for part in os.environ["PATH"].split(os.pathsep) if not (Path(part) / f"python{version}").exists()]


def offer(place: Path, version: str, program: Path) -> Path:
    """What uv could fetch, as it wants it told."""
    code = "import sys, platform; print(sys.version_info[2], platform.machine(), *platform.libc_ver()[:1])"
    told = subprocess.run([program, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    made = place / "archive" / "python" / "bin" / f"python{version}"
    made.parent.mkdir(parents=True)
    made.write_text(f'#!/bin/sh\nexec {program} "$@"\n')
    made.chmod(0o755)
    library = made.parents[1] / "lib" / f"python{version}"
    library.mkdir(parents=True)
    (library / f"_sysconfigdata__{sys.platform}_{told[1]}-linux-gnu.py").write_text(
        "# system configuration generated and used by the sysconfig module\nbuild_time_vars = {}\n"
    )
    archive = place / "python.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(place / "archive" / "python", arcname="python")
    major, minor = map(int, version.split("."))
    one = {
        "name": "cpython", "arch": {"family": told[1], "variant": None}, "os": sys.platform, "libc": "gnu", "major": major, "minor": minor,
        "patch": int(told[0]), "prerelease": "", "url": archive.as_uri(), "sha256": hashlib.sha256(archive.read_bytes()).hexdigest(),
        "variant": None, "build": "1",
    }  # fmt: skip
    offered = place / "offered.json"
    offered.write_text(json.dumps({f"cpython-{version}.{told[0]}-{sys.platform}-{told[1]}-gnu": one}))
    return offered


def test_one_that_nobody_has_is_refused_by_its_number(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text(PROJECT.format(asked="==3.98.*"))
    environments = Environments(tmp_path / "environments", find_uv(), tmp_path / "cache")
    with pytest.raises(EnvironmentRefused, match=r"no Python ==3\.98\.\* is installed here"):
        environments.lock(Recipe(tmp_path))


def test_the_platforms_own_python_comes_first_where_it_is_allowed(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text(PROJECT.format(asked=">=3.9"))
    locked = Environments(tmp_path / "environments", find_uv(), tmp_path / "cache").lock(Recipe(tmp_path))
    code = "import sys; print(*sys.version_info[:3])"
    told = [
        subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout
        for python in (locked.python, sys.executable)
    ]
    assert told[0] == told[1]
