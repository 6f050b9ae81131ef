"""What of a commit decides what a training makes of it, its data aside: two releases of the same content give the same model (pure)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

from shared.declaration import Declaration
from shared.errors import Refused
from shared.toml import read_toml
from shared.worktree import Entry

_REQUIREMENTS = ("uv.lock", "requirements.txt")
_BESIDE = {"name", "version", "paths", "compute_class", "time_limit", "test"}
"""What a release may say otherwise without another model coming of it."""


def digest(entries: Sequence[Entry], declaration: Declaration, pyproject: bytes) -> str:
    """`sha256:…` of all files; where the release names `paths`, of what is under those, of the requirements and of what it declares.

    Raises `Refused` for a path with nothing under it.
    """
    paths = declaration.paths
    for path in paths:
        if not any(_is_under(entry, path) for entry in entries):
            raise Refused(
                f'tool.headrace.paths: the release has nothing under "{path}"; name what there is, or drop it'
            )
    counted = [
        (entry.path, entry.mode, entry.blob)
        for entry in sorted(entries, key=lambda entry: entry.path)
        if not paths or entry.path in _REQUIREMENTS or any(_is_under(entry, path) for path in paths)
    ]
    declared = [_requirements(pyproject), declaration.model_dump(mode="json", exclude=_BESIDE)] if paths else None
    text = json.dumps([counted, declared], sort_keys=True, separators=(",", ":"))
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def _is_under(entry: Entry, path: str) -> bool:
    return entry.path == path or entry.path.startswith(f"{path}/")


def _requirements(pyproject: bytes) -> object:
    project = read_toml(pyproject, "pyproject.toml").data.get("project")
    return project.get("dependencies") if isinstance(project, dict) else None
