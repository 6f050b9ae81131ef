"""The page on security names tests: each is there, so that a promise does not outlive what shows it."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_test_that_the_page_on_security_names_is_there() -> None:
    named = set(re.findall(r"tests/[\w/]+\.py(?:::\w+)?", (ROOT / "docs/security.md").read_text()))
    assert len(named) > 25
    for node in named:
        file, _, name = node.partition("::")
        assert (ROOT / file).exists(), node
        assert not name or f"def {name}(" in (ROOT / file).read_text(), node
