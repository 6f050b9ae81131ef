"""Environments for models with real packages from the index."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from headrace.environment import find_uv


def build(place: Path, *requirements: str) -> Path:
    """The Python of an environment with these packages; how a trainer builds one is tested elsewhere.

    Of byte code there is only what is used: to compile all of scikit-learn and MLflow takes fifteen seconds more.
    """
    for words in (["venv", "--python", sys.executable, "."], ["pip", "install", "--python", ".", *requirements]):
        subprocess.run([find_uv(), "--no-config", "--quiet", *words], cwd=place, check=True)
    return place / "bin" / "python"
