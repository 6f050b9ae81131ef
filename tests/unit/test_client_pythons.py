"""The client is for every Python from 3.9 on, and for those without any package."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import headrace
import pytest

HOME = Path(headrace.__file__).parent
FILES = sorted(HOME.rglob("*.py"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(HOME).as_posix())
def test_every_file_is_python_3_9(file: Path) -> None:
    tree = ast.parse(file.read_text(), feature_version=(3, 9))
    assert any(isinstance(node, ast.ImportFrom) and node.module == "__future__" for node in tree.body), (
        "annotations are evaluated on 3.9"
    )


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(HOME).as_posix())
def test_only_the_command_line_knows_a_package_outside_the_standard_library(file: Path) -> None:
    known = {"headrace", *sys.stdlib_module_names, *(["rich"] if "cli" in file.parts else [])}
    imported = {
        name.split(".")[0]
        for node in ast.parse(file.read_text()).body
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    assert imported <= known
