"""The model author of the demo: the example made into a real git repository, with releases by version tag."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

EXAMPLE = Path(__file__).parents[2] / "examples" / "flights"


class Author:
    """A git repository at `place` that starts as a copy of the example."""

    def __init__(self, place: Path) -> None:
        self.place = place
        shutil.copytree(EXAMPLE, place, ignore=shutil.ignore_patterns("__pycache__", ".venv", ".git"))
        self._git("init", "--quiet", "--initial-branch=main")

    @property
    def url(self) -> str:
        return self.place.as_uri()

    def release(self, version: str, message: str) -> None:
        """Commit what has changed and tag it as a version."""
        project = self.place / "pyproject.toml"
        project.write_text(re.sub(r'(?m)^version = ".*"$', f'version = "{version}"', project.read_text(), count=1))
        lock = self.place / "uv.lock"
        text = lock.read_text()
        lock.write_text(re.sub(r'(name = "flight-delays"\nversion = ")[^"]+', rf"\g<1>{version}", text, count=1))
        self._git("add", "--all")
        self._git("commit", "--quiet", "--message", message)
        self._git("tag", "--annotate", f"v{version}", "--message", message)

    def edit(self, file: str, before: str, after: str) -> None:
        """Change one place of the source, which must be there."""
        path = self.place / file
        text = path.read_text()
        if before not in text:
            raise RuntimeError(f"{file} of the example has no {before!r} any more")
        path.write_text(text.replace(before, after, 1))

    def _git(self, *arguments: str) -> None:
        nobody = {"GIT_AUTHOR_NAME": "Model Author", "GIT_AUTHOR_EMAIL": "author@example.com"}
        nobody |= {"GIT_COMMITTER_NAME": "Model Author", "GIT_COMMITTER_EMAIL": "author@example.com"}
        plain = {"GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": os.devnull}
        environment = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), **nobody, **plain}
        subprocess.run(
            ["git", "-C", str(self.place), *arguments], check=True, env=environment, stdin=subprocess.DEVNULL
        )
