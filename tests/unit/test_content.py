"""What of a release counts: which changes are worth a training."""

from __future__ import annotations

import pytest

from shared import content
from shared.declaration import Declaration, parse
from shared.errors import Refused
from shared.worktree import Entry

PYPROJECT = """
[project]
name = "delays"
version = "1.0.0"
dependencies = ["six"]

[tool.headrace]
train = "delays.model:train"
evaluate = "delays.model:evaluate"
paths = ["delays", "columns.json"]

[tool.headrace.datasets.flights]
rows = 1000

[tool.headrace.gates]
auc = { min = 0.6 }
"""
FILES = {"pyproject.toml": "1", "delays/model.py": "2", "columns.json": "3", "README.md": "4", "uv.lock": "5", "delays2/x.py": "6"}  # fmt: skip


def digest(pyproject: str = PYPROJECT, **changed: str) -> str:
    """Of the files, some with another content: `README__md="…"` is README.md."""
    files = FILES | {name.replace("__", ".").replace("_of_", "/"): blob for name, blob in changed.items()}
    entries = [Entry(path, "100644", blob * 40, 1) for path, blob in files.items()]
    return content.digest(entries, parse(pyproject.encode()), pyproject.encode())


@pytest.mark.parametrize("path", ["README__md", "delays2_of_x__py", "docs_of_new__md", "pyproject__toml"])
def test_what_lies_outside_the_paths_does_not_count(path: str) -> None:
    assert digest(**{path: "9"}) == digest()


@pytest.mark.parametrize(
    "path", ["delays_of_model__py", "columns__json", "delays_of_new__py", "uv__lock", "requirements__txt"]
)
def test_what_lies_under_the_paths_and_the_requirements_count(path: str) -> None:
    assert digest(**{path: "9"}) != digest()


@pytest.mark.parametrize(
    ("before", "after", "counts"),
    [
        ('version = "1.0.0"', 'version = "1.0.1"', False),
        ("[tool.headrace]", '[tool.headrace]\ncompute_class = "gpu"\ntime_limit = "2h"', False),
        ('["six"]', '["six>=1.17"]', True),
        ("min = 0.6", "min = 0.7", True),
        ("rows = 1000", "rows = 2000", True),
        ("[tool.headrace.gates]", "[tool.headrace.parameters]\nrate = 0.1\n[tool.headrace.gates]", True),
        ("model:train", "model:fit", True),
    ],
)
def test_of_the_declaration_counts_what_changes_the_model_or_its_verdict(before: str, after: str, counts: bool) -> None:
    assert before in PYPROJECT
    assert (digest(PYPROJECT.replace(before, after)) != digest()) is counts


def test_without_paths_every_file_counts_and_only_the_files() -> None:
    plain = PYPROJECT.replace('paths = ["delays", "columns.json"]\n', "")
    assert digest(plain, README__md="9") != digest(plain)
    assert digest(plain) == digest(plain)
    entries = [Entry(path, "100644", blob * 40, 1) for path, blob in FILES.items()]
    other: Declaration = parse(plain.encode())
    assert content.digest(entries[::-1], other, plain.encode()) == digest(plain)


def test_a_path_with_nothing_under_it_is_refused() -> None:
    with pytest.raises(Refused, match='nothing under "delay"'):
        digest(PYPROJECT.replace('"delays", ', '"delay", '))


@pytest.mark.parametrize(
    "path", ["/etc", "../up", "a/../b", "a//b", "a/", ".git", "a/.git/x", "a b", "", ".", "-x\u0000"]
)
def test_a_path_that_leads_elsewhere_is_refused(path: str) -> None:
    with pytest.raises(Refused):
        parse(PYPROJECT.replace('"columns.json"', f'"{path.encode("unicode_escape").decode()}"').encode())
