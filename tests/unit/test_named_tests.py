"""The pages on security and reliability name tests: each is there, so that a promise does not outlive what shows it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NODE = re.compile(r"`(?:tests/)?((?:unit|contract|integration|system|chaos)/\w+\.py|…)(?:::(\w+))?")


def named(page: str) -> Iterator[tuple[Path, str]]:
    """Each test file and test that a page names; `…` is the file before."""
    file = ""
    for match in NODE.finditer((ROOT / "docs" / page).read_text()):
        file = file if match[1] == "…" else match[1]
        yield ROOT / "tests" / file, match[2] or ""


@pytest.mark.parametrize(("page", "at_least"), [("security.md", 25), ("reliability.md", 80)])
def test_every_test_that_a_page_names_is_there(page: str, at_least: int) -> None:
    found = list(named(page))
    assert len(found) >= at_least
    assert not [(file.name, name) for file, name in found if not file.exists() or f"def {name}" not in file.read_text()]
