"""docs/how-to/existing-repository.md, word for word, up to where a stack is started."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from shared import catalog, declaration

PAGE = (Path(__file__).parents[2] / "docs" / "how-to" / "existing-repository.md").read_text()
# without the first try, which the second repeats with metrics
STEPS = dict(re.findall(r"<!-- tested: (\w+) -->\n```sh\n(.*?)```", PAGE, re.DOTALL))
del STEPS["try"]


def test_the_page_leads_from_a_script_to_a_release_that_passes_its_gate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("LANG", "C.UTF-8")
    said = {}
    place = tmp_path
    for step, commands in STEPS.items():
        done = subprocess.run(["sh", "-eu", "-c", commands], cwd=place, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{step}: {done.stdout}{done.stderr}"
        said[step] = done.stdout
        place = tmp_path / "churn"
    assert "trained on 1800 customers" in said["judge"]
    assert "saved as joblib (model/model.joblib), loaded back" in said["judge"]
    assert re.search(r"^auc +holds +at least 0\.7$", said["judge"], re.MULTILINE)
    assert "is not deterministic" not in said["judge"]

    declared = declaration.parse((place / "pyproject.toml").read_bytes())
    assert declared.can_score
    config = catalog.parse((tmp_path / "headrace.toml").read_bytes())
    assert config.models["churn"].repository == str(place)
    assert set(declared.datasets) == set(config.datasets)
    assert (tmp_path / "customers.db").stat().st_size > 10_000
    tracked = subprocess.check_output(["git", "-C", place, "ls-tree", "--name-only", "v1.0.0"], text=True).split()
    assert tracked == [".gitignore", "evaluate.py", "pyproject.toml", "requirements.txt", "train.py"]
