"""`make env`: random passwords for the compose file, made once."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / ".env.example"


def make_env(into: Path) -> dict[str, str]:
    subprocess.run(["sh", "deploy/env.sh", str(EXAMPLE), str(into)], cwd=ROOT, check=True, capture_output=True)
    return read(into)


def read(path: Path) -> dict[str, str]:
    lines = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
    return dict(line.split("=", 1) for line in lines)


def test_every_placeholder_becomes_a_random_value_of_its_own(tmp_path: Path) -> None:
    made, again = make_env(tmp_path / "one"), make_env(tmp_path / "two")
    random = [name for name, value in read(EXAMPLE).items() if value == "<random>"]
    values = [made[name] for name in random] + [again[name] for name in random]
    assert len(random) == 7
    assert all(re.fullmatch(r"[0-9a-f]{48}", value) for value in values)
    assert len(set(values)) == len(values)


def test_only_its_owner_can_read_it(tmp_path: Path) -> None:
    make_env(tmp_path / "env")
    assert (tmp_path / "env").stat().st_mode & 0o777 == 0o600


def test_one_that_exists_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "env").write_text("MINE=1\n")
    assert make_env(tmp_path / "env") == {"MINE": "1"}


def test_the_compose_file_has_no_password_of_its_own() -> None:
    """Whatever the example leaves to chance is asked for, and refused where it is missing."""
    compose = (ROOT / "docker-compose.yml").read_text()
    for name, value in read(EXAMPLE).items():
        if value == "<random>":
            uses = re.findall(rf"\${{{name}(.*?)}}", compose)
            assert uses, name
            assert set(uses) == {":?run make env first"}, name
