"""Real environments for models, from the package index, built as a trainer builds them."""

from __future__ import annotations

import subprocess
from pathlib import Path

from headrace.environment import Environments, Recipe, find_uv


def build(place: Path, *requirements: str) -> Path:
    """The Python of an environment with these packages. The wheels come from the user's own cache, where they are in it."""
    cache = subprocess.run([find_uv(), "cache", "dir"], capture_output=True, text=True, check=True).stdout.strip()
    (place / "checkout").mkdir()
    (place / "checkout" / "requirements.txt").write_text("\n".join(requirements))
    environments = Environments(place / "environments", find_uv(), Path(cache))
    return environments.build(environments.lock(Recipe(place / "checkout"))) / "bin" / "python"
