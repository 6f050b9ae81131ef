"""Packages from the operator's indexes: which one provides a name, and what a repository may say of indexes."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from headrace.environment import EnvironmentRefused, Environments, Recipe, find_uv
from headrace.indexes import split

from services.trainer.checkout import Workshop
from shared.errors import ConfigurationError
from shared.settings import load
from tests.package_index import Index, serving

PROJECT = """
[project]
name = "small"
version = "1.0.0"
requires-python = ">=3.11"
dependencies = ["torchy", "plain"]
"""
ENVIRON = {f"HEADRACE_{name}_URL": "sqlite://" for name in ("LEDGER", "REDIS", "BLOBS", "LOGS")}
NAMED = """
[tool.uv.sources]
torchy = {{ index = "cpu" }}

[[tool.uv.index]]
name = "cpu"
url = "{url}"
explicit = true
"""


@pytest.fixture
def main() -> Iterator[Index]:
    with serving() as index:
        for name, version in (("torchy", "2.0"), ("plain", "1.0"), ("plain", "1.1")):
            index.add(name, version, "main")
        yield index


@pytest.fixture
def extra() -> Iterator[Index]:
    with serving("planted-secret") as index:
        index.add("torchy", "2.0+cpu", "extra")
        index.add("plain", "1.0", "extra")
        yield index


@pytest.fixture
def environments(tmp_path: Path) -> Environments:
    return Environments(tmp_path / "environments", find_uv(), tmp_path / "cache")


def checkout(tmp_path: Path, **files: str) -> Path:
    place = tmp_path / "checkout"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    for name, text in files.items():
        (place / name.replace("_", ".")).write_text(text)
    return place


def locked_by_uv(tmp_path: Path, main: Index, extra: Index) -> Path:
    """As an author does it, whose project names the second index for one package."""
    place = checkout(tmp_path, pyproject_toml=PROJECT + NAMED.format(url=extra.url))
    environment = {
        **os.environ, "UV_CACHE_DIR": str(tmp_path / "authors-cache"), "UV_DEFAULT_INDEX": main.url,
        "UV_INDEX_CPU_USERNAME": "ci", "UV_INDEX_CPU_PASSWORD": "planted-secret",
    }  # fmt: skip
    subprocess.run([find_uv(), "lock"], cwd=place, check=True, capture_output=True, env=environment)
    return place


def says(environment: Path) -> dict[str, str]:
    code = "import torchy, plain, importlib.metadata as m; print(torchy.SAYS, m.version('torchy'), plain.SAYS, m.version('plain'))"
    done = subprocess.run([environment / "bin/python", "-I", "-c", code], capture_output=True, text=True, check=True)
    found = done.stdout.split()
    return {"torchy": " ".join(found[:2]), "plain": " ".join(found[2:])}


def test_the_first_index_that_knows_a_name_provides_it_and_further_ones_come_first(
    environments: Environments, tmp_path: Path, main: Index, extra: Index
) -> None:
    place = checkout(tmp_path, requirements_txt="torchy\nplain\n")
    one = environments.lock(Recipe(place, index_url=main.url))
    both = environments.lock(Recipe(place, index_url=main.url, extra_index_urls=(extra.own_url,)))
    assert ("torchy==2.0 " in one.text, "plain==1.1 " in one.text) == (True, True)
    assert says(environments.build(both)) == {"torchy": "extra 2.0+cpu", "plain": "extra 1.0"}
    assert one.digest != both.digest
    assert extra.told == []
    assert "planted-secret" not in repr(both) + both.text


def test_the_order_and_the_list_of_indexes_are_part_of_an_environments_name(
    environments: Environments, tmp_path: Path, main: Index, extra: Index
) -> None:
    place = checkout(tmp_path, requirements_txt="torchy")
    lists = ((), (extra.own_url,), (extra.own_url, main.url), (main.url, extra.own_url))
    digests = {environments.lock(Recipe(place, index_url=main.url, extra_index_urls=extras)).digest for extras in lists}
    assert len(digests) == len(lists)


def test_a_lock_with_two_indexes_is_installed_by_its_hashes_where_the_operator_has_both(
    environments: Environments, tmp_path: Path, main: Index, extra: Index
) -> None:
    """The second index has an older `plain`, which must not stand in the way of the locked one."""
    place = locked_by_uv(tmp_path, main, extra)
    locked = environments.lock(Recipe(place, index_url=main.url, extra_index_urls=(extra.own_url,)))
    assert says(environments.build(locked)) == {"torchy": "extra 2.0+cpu", "plain": "main 1.1"}


@pytest.mark.parametrize("constraints", [None, "plain<2"])
def test_a_lock_with_an_index_that_is_not_the_operators_says_what_to_ask_for(
    environments: Environments, tmp_path: Path, main: Index, extra: Index, constraints: str | None
) -> None:
    place = locked_by_uv(tmp_path, main, extra)
    asked = len(extra.asked)
    with pytest.raises(EnvironmentRefused) as refused:
        environments.build(environments.lock(Recipe(place, index_url=main.url, constraints=constraints)))
    first, _, more = refused.value.message.partition("\n")
    assert first.startswith(f"uv.lock takes torchy from {extra.url}, which is not among the operator's indexes")
    assert "HEADRACE_EXTRA_INDEX_URLS" in first
    assert "torchy" in more, "what uv says stands below"
    assert len(extra.asked) == asked, "nobody has asked there"


def test_a_lock_made_elsewhere_is_taken_where_the_operators_index_has_the_same_files(
    environments: Environments, tmp_path: Path, main: Index, extra: Index
) -> None:
    place = locked_by_uv(tmp_path, main, extra)
    main.add("torchy", "2.0+cpu", "extra")
    locked = environments.lock(Recipe(place, index_url=main.url))
    assert says(environments.build(locked)) == {"torchy": "extra 2.0+cpu", "plain": "main 1.1"}


@pytest.mark.parametrize(
    "line", ["--extra-index-url {url}", "--extra-index-url={url}/", "--index-url {url}", "-i {url}"]
)
def test_a_list_may_name_an_index_that_the_operator_lists_too(
    environments: Environments, tmp_path: Path, main: Index, extra: Index, line: str
) -> None:
    place = checkout(tmp_path, requirements_txt=f"{line.format(url=extra.url)}\ntorchy\n")
    with pytest.raises(EnvironmentRefused, match="HEADRACE_EXTRA_INDEX_URLS"):
        environments.lock(Recipe(place, index_url=main.url))
    locked = environments.lock(Recipe(place, index_url=main.url, extra_index_urls=(extra.own_url,)))
    assert "torchy==2.0+cpu" in locked.text


def test_a_project_may_name_an_index_that_the_operator_lists_too(
    environments: Environments, tmp_path: Path, main: Index, extra: Index
) -> None:
    place = checkout(tmp_path, pyproject_toml=PROJECT + NAMED.format(url=extra.url))
    with pytest.raises(EnvironmentRefused, match="HEADRACE_EXTRA_INDEX_URLS"):
        environments.lock(Recipe(place, index_url=main.url))
    locked = environments.lock(Recipe(place, index_url=main.url, extra_index_urls=(extra.own_url,)))
    assert "torchy==2.0+cpu" in locked.text


def test_a_password_in_an_index_of_a_repository_is_not_told(environments: Environments, tmp_path: Path) -> None:
    place = checkout(tmp_path, requirements_txt="-i https://me:planted@index.example.com/simple\nsix\n")
    with pytest.raises(EnvironmentRefused) as refused:
        environments.lock(Recipe(place))
    assert "https://index.example.com/simple" in refused.value.message
    assert "planted" not in refused.value.message


def test_the_trainer_hands_its_settings_on(tmp_path: Path, main: Index, extra: Index) -> None:
    told = {"HEADRACE_INDEX_URL": main.url, "HEADRACE_EXTRA_INDEX_URLS": f"{extra.own_url}, {main.url}"}
    workshop = Workshop(load({**ENVIRON, **told, "HEADRACE_STATE_DIR": str(tmp_path / "state")}))
    assert "torchy==2.0+cpu" in workshop._lock_requirements(checkout(tmp_path, requirements_txt="torchy")).text


def test_indexes_are_listed_with_commas_or_spaces_and_a_wrong_one_is_told_by_its_number(tmp_path: Path) -> None:
    assert split(" https://a/simple, https://b/simple https://c/simple ") == (
        "https://a/simple", "https://b/simple", "https://c/simple",
    )  # fmt: skip
    assert split("") == ()
    settings = load(
        {**ENVIRON, "HEADRACE_STATE_DIR": str(tmp_path), "HEADRACE_EXTRA_INDEX_URLS": "https://a/simple cpu=pass"}
    )
    with pytest.raises(ConfigurationError, match="extra_index_urls: number 2 is no URL") as refused:
        Workshop(settings)
    assert "pass" not in refused.value.message
