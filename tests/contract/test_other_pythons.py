"""A model that asks for another Python than the platform's gets it, where one is installed: in its environment, for its training."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from headrace.environment import EnvironmentRefused, Environments, Recipe, find_uv

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
