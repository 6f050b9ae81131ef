"""models.toml: reading it, and changing one line of it."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from headrace import Problem
from headrace.lock import read_versions, set_version
from hypothesis import given
from hypothesis import strategies as st

PLAIN = """\
# what the storefront runs; ask ml@example.com before version = 13
owner = "storefront, version = 9"

[models.churn]   # not ours
version = 3

[models.flight-delays]
note = '''
version = 12
'''
version   =  12   # since the autumn timetable: version = 12
region = "nyc"
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "models.toml"


def test_one_line_changes_and_everything_else_stays(file: Path) -> None:
    file.write_text(PLAIN)
    old, new = set_version(file, "flight-delays", 14)
    assert old == "version   =  12   # since the autumn timetable: version = 12"
    assert new == "version   =  14   # since the autumn timetable: version = 12"
    assert file.read_text() == PLAIN.replace(old, new)
    assert read_versions(file) == {"churn": 3, "flight-delays": 14}


@pytest.mark.parametrize(
    "text",
    [
        '[models]\nchurn = {version=3}\nflight-delays = { region = "version = 12", version = @12@ }\n',
        "[models]\nchurn.version = 3\nflight-delays.version = @12@\n",
        'models.churn.version = 3\nmodels."flight-delays".version = @12@\n',
        '[models."churn"]\n"version" = 3\n[ models . "flight-delays" ]\n"version" = @12@',
        "[models.churn]\r\nversion = 3\r\n\r\n[models.flight-delays]\r\nversion = @12@ # ü\r\n",
        "models = { churn = { version = 3 }, flight-delays = { version = @12@ } }",
        '[models.churn]\nversion = 3\n[models.flight-delays]\nversion = @"champion"@\n',
        "[models.churn]\nversion = 3\n[models.flight-delays]\nversion = @1_2@\n",
    ],
)
def test_every_way_to_write_it_is_edited_in_place(file: Path, text: str) -> None:
    before, value, after = text.split("@")
    file.write_bytes((before + value + after).encode())
    set_version(file, "flight-delays", 4711)
    assert file.read_bytes().decode() == before + "4711" + after
    assert read_versions(file) == {"churn": 3, "flight-delays": 4711}


@given(comment=st.text(st.characters(exclude_categories=["Cc", "Cs"]), max_size=40), version=st.integers(1, 10**9))
def test_no_comment_confuses_it(tmp_path_factory: pytest.TempPathFactory, comment: str, version: int) -> None:
    file = tmp_path_factory.mktemp("lock") / "models.toml"
    file.write_bytes(
        f"# {comment}\n[models.a]\nversion = 7 # {comment}\n[models.b]\nversion = 7 # {comment}\n".encode()
    )
    old, new = set_version(file, "b", version)
    assert read_versions(file) == {"a": 7, "b": version}
    assert (old, new) == (f"version = 7 # {comment}", f"version = {version} # {comment}")


def test_the_same_version_leaves_the_file_untouched(file: Path) -> None:
    file.write_text(PLAIN)
    before = file.stat()
    old, new = set_version(file, "flight-delays", 12)
    assert old == new == "version   =  12   # since the autumn timetable: version = 12"
    assert file.stat().st_mtime_ns == before.st_mtime_ns
    assert file.stat().st_ino == before.st_ino


def test_a_link_stays_a_link_and_permissions_stay(tmp_path: Path, file: Path) -> None:
    real = tmp_path / "real.toml"
    real.write_text(PLAIN)
    real.chmod(0o640)
    file.symlink_to(real)
    set_version(file, "churn", 4)
    assert file.is_symlink()
    assert real.stat().st_mode & 0o777 == 0o640
    assert tomllib.loads(real.read_text())["models"]["churn"]["version"] == 4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["models.toml", "real.toml"]


def test_an_unknown_model_is_answered_with_the_lines_to_add(file: Path) -> None:
    file.write_text(PLAIN)
    with pytest.raises(Problem, match=r"\[models\.prices\]\nversion = 2"):
        set_version(file, "prices", 2)
    assert file.read_text() == PLAIN


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "names no model"),
        ("models = 3", "names no model"),
        ("[models.a]\n", "no usable version: None"),
        ("[models.a]\nversion = 0\n", "no usable version: 0"),
        ("[models.a]\nversion = true\n", "no usable version: True"),
        ('[models.a]\nversion = "latest"\n', "no usable version: 'latest'"),
        ("[models.a\n", "not valid TOML"),
    ],
)
def test_a_wrong_file_is_refused_with_what_would_be_right(file: Path, text: str, told: str) -> None:
    file.write_text(text)
    with pytest.raises(Problem, match=told):
        read_versions(file)


def test_a_missing_file_is_a_problem_not_a_traceback(file: Path) -> None:
    with pytest.raises(Problem, match="there is no"):
        read_versions(file)
