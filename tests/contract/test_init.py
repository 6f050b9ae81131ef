"""`headrace init`: a new repository is one that the platform takes, and it trains at once, in a real environment."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from headrace import starter
from headrace.cli import main

from shared import catalog, declaration
from shared.repository import highest_version


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patched:
        place = tmp_path_factory.mktemp("cache")
        patched.setenv("HEADRACE_CACHE", str(place))
        yield place


@pytest.fixture(autouse=True)
def _somebody(monkeypatch: pytest.MonkeyPatch) -> None:
    for role in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{role}_NAME", "author")
        monkeypatch.setenv(f"GIT_{role}_EMAIL", "author@example.com")


def said(place: Path, *arguments: str) -> str:
    return subprocess.check_output(["git", "-C", place, *arguments], text=True)


def test_a_new_repository_trains_and_its_own_tests_pass(
    cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "Heat Load"
    assert main(["init", str(place), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["model"], told["unlocked"], told["uncommitted"]) == ("heat-load", None, None)
    assert said(place, "status", "--porcelain") == ""
    assert highest_version(said(place, "tag").split()) == "v0.1.0"
    assert declaration.parse((place / "pyproject.toml").read_bytes()).name == "heat-load"
    assert catalog.parse(told["config"].encode()).models["heat-load"].repository == str(place)
    assert "uv.lock" in said(place, "ls-files").split()

    assert main(["try", str(place), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["saved"]["format"] == "joblib"
    assert found["metrics"]["mean_error"] < 2.5, "the noise of its sample, and hardly more"
    assert [column["name"] for column in found["signature"]["inputs"]] == ["hour", "weekday"]
    assert found["remarks"] == []
    subprocess.run([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", place], check=True, cwd=place)


def test_one_that_is_trained_by_scripts_does_so_too(
    cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "heat"
    assert main(["init", str(place), "--command", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["uncommitted"] is None
    assert main(["try", str(place), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["saved"]["format"], found["saved"]["file"]) == ("joblib", "model.joblib")
    assert found["metrics"]["mean_error"] < 2.5
    assert found["remarks"] == []
    assert len([*(cache / "environments").glob("*/headrace-environment.json")]) == 1, (
        "the same packages, one environment"
    )


def test_its_checks_are_a_workflow_of_commands_that_exist(tmp_path: Path) -> None:
    starter.write(tmp_path / "heat", "function")
    steps = yaml.safe_load((tmp_path / "heat/.github/workflows/test.yml").read_text())["jobs"]["test"]["steps"]
    assert steps[-1]["run"] == 'uvx --python 3.12 --from "$HEADRACE" headrace try'
    assert "$" not in (tmp_path / "heat" / "README.md").read_text()


def test_what_is_there_is_never_written_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "train.py").write_text("mine")
    assert main(["init", str(tmp_path)]) == 1
    assert "is not empty\nan existing repository needs a few lines only" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["train.py"]


def test_inside_of_another_repository_nothing_is_committed(tmp_path: Path) -> None:
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    starter.write(tmp_path / "models" / "heat", "function")
    why = starter.commit(tmp_path / "models" / "heat")
    assert why is not None
    assert "commit it there" in why
    assert not (tmp_path / "models" / "heat" / ".git").exists()


@pytest.mark.parametrize(("folder", "package"), [("2nd.model", "model_2nd_model"), ("flight-delays", "flight_delays")])
def test_names_become_what_python_and_the_platform_take(tmp_path: Path, folder: str, package: str) -> None:
    assert starter.write(tmp_path / folder, "function") == folder
    assert (tmp_path / folder / package / "model.py").is_file()
    assert declaration.parse((tmp_path / folder / "pyproject.toml").read_bytes()).train == f"{package}.model:train"


def test_a_name_that_could_be_no_models_is_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", str(tmp_path / "模型")]) == 1
    assert "with --name" in capsys.readouterr().err
