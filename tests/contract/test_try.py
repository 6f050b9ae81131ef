"""`headrace try`: a working tree trained as the platform would, in an environment of its own, with nothing left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from headrace.cli import main
from headrace.cli.trying import GATE_FAILS

from shared.manifest import read_tree

PYPROJECT = """\
[project]
name = "heat"
version = "1.0.0"
requires-python = ">=3.11"
dependencies = []

[tool.headrace]
train = "heat:train"
evaluate = "heat:evaluate"
predict = "heat:predict"
time_limit = "20s"

[tool.headrace.datasets.readings]

[tool.headrace.gates]
error = { max = 1.0, max_rise_percent = 5, lower_is_better = true }
"""
MODEL = """\
import contextlib, os, sys
from pathlib import Path

def read(rows):
    with contextlib.closing(rows.connect()) as connection:
        return connection.execute(rows.sql, rows.params).fetchall()

def train(job):
    rows = read(job.datasets["readings"].train)
    job.progress(0.5, "halfway")
    print("training on", len(rows), "rows; sees", sorted(os.environ))
    return {"mean": sum(load for _, load in rows) / len(rows)}

def evaluate(job, model):
    rows = read(job.datasets["readings"].holdout)
    guesses = predict(model, [{"hour": hour} for hour, _ in rows])
    return {"error": sum(abs(guess - load) for guess, (_, load) in zip(guesses, rows)) / len(rows)}

def predict(model, rows):
    return [model["mean"] for _ in rows]
"""


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One environment for all of these tests."""
    with pytest.MonkeyPatch.context() as patched:
        place = tmp_path_factory.mktemp("cache")
        patched.setenv("HEADRACE_CACHE", str(place))
        patched.setenv("SECRET_OF_THE_AUTHOR", "hush")
        yield place


@pytest.fixture
def repository(cache: Path, tmp_path: Path) -> Path:
    place = tmp_path / "heat"
    (place / "sample").mkdir(parents=True)
    (place / "pyproject.toml").write_text(PYPROJECT)
    (place / "heat.py").write_text(MODEL)
    (place / ".gitignore").write_text("ignored.py\n")
    rows = "".join(f"{n % 24},{20 + n % 24 / 24}\n" for n in range(200))
    (place / "sample" / "readings.csv").write_text("hour,load\n" + rows)
    git(place, "init", "-q")
    git(place, "add", "-A")
    git(place, "commit", "-qm", "one")
    return place


def git(place: Path, *arguments: str) -> None:
    who = ("-c", "user.name=author", "-c", "user.email=author@example.com")
    subprocess.run(["git", "-C", place, *who, *arguments], check=True)


def change(repository: Path, before: str, after: str, file: str = "heat.py") -> None:
    text = (repository / file).read_text()
    assert before in text
    (repository / file).write_text(text.replace(before, after))


def test_a_repository_is_trained_and_all_of_it_shown(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    change(repository, "import contextlib", "import contextlib, helper")
    (repository / "helper.py").write_text("")
    assert main(["try", str(repository)]) == 0
    out = capsys.readouterr().out
    assert "and what is not committed: heat.py, helper.py" in out
    assert "200 rows of readings.csv, the newest 20 held out" in out
    assert "50% halfway" in out
    assert "training on 180 rows; sees ['HEADRACE_RUN_ID', 'HOME', " in out
    assert "SECRET" not in out
    assert "error   holds  at most 1\n" in out
    assert "error   later  max_rise_percent 5: compared with the champion\n" in out
    assert "model/model.pkl" in out
    assert "saved as pickle (model/model.pkl), loaded back; predict takes hour long" in out
    assert [*(tmp_path / "scratch").iterdir()] == [], "nothing is left behind"
    assert subprocess.check_output(["git", "-C", repository, "status", "--porcelain"]).decode().count("\n") == 2


def test_the_bundle_is_one_that_the_platform_takes(
    repository: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    taken: list[set[str]] = []
    from headrace import trial

    def look(output: Path, *rest: Any) -> None:
        complete(output, *rest)
        taken.append({file.path for file in read_tree(output).files})

    complete = trial.bundle.complete
    monkeypatch.setattr(trial.bundle, "complete", look)
    assert main(["try", str(repository), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert set(told["files"]) == taken[0]
    assert {"source/heat.py", "code/headrace_loader.py", "metrics.json", "requirements.txt", "log.txt"} <= taken[0]
    assert set(told["seconds"]) == {"environment", "import", "train", "save", "evaluate"}
    assert told["metrics"].keys() == {"error"}
    assert told["passes"] is True


def test_a_model_that_is_trained_by_a_command_is_tried_too(
    cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "sales.csv").write_text("shop,value\n" + "".join(f"a,{n}\n" for n in range(40)))
    shell = Path(__file__).parents[2] / "examples" / "shell"
    assert main(["try", str(shell), "--data", f"sales={tmp_path / 'sales.csv'}", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert "model/mean" in told["files"]
    assert told["metrics"]["error"] == pytest.approx(20.0), "the mean of 0 to 35, on 36 to 39"


FAILURES = {
    "it raises": (
        ("    return {", "    raise KeyError('price')\n    return {"),
        "author_error",
        ["KeyError: 'price'", "heat.py", "in train", "mend it and try again", "would not try it again"],
    ),
    "a file that git ignores": (
        ("import contextlib", "import ignored, contextlib"),
        "author_error",
        ["no module 'ignored'"],
    ),
    "no number": (("zip(guesses, rows)) / len(rows)", "zip(guesses, rows)) * float('nan')"), "invalid_metric", ["error"]),
    "nothing saved": (("    return {", "    return None\n    return {"), "bad_output", ["wrote nothing into job.output"]),
    "no result": (("    return {", "    os._exit(3)\n    return {"), "bad_exit", ["exit code 3"]),
    "killed": (("    return {", "    os.kill(os.getpid(), 9)\n    return {"), "killed", ["SIGKILL", "would try it again"]),
    "only where it was trained": (
        ("    rows = read(job.datasets[\"readings\"].holdout)", "    assert job.output.joinpath('headrace.json').exists()\n    rows = read(job.datasets['readings'].holdout)"),
        "author_error",
        ["loaded and evaluated in another process, as a champion is, it failed: AssertionError"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FAILURES)
def test_a_failure_is_told_as_the_platform_classifies_it(
    repository: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (before, after), kind, said = FAILURES[name]
    change(repository, before, after)
    (repository / "ignored.py").write_text("")
    assert main(["try", str(repository)]) == 1
    err = capsys.readouterr().err
    assert err.startswith(f"headrace: {kind}: ")
    for words in said:
        assert words in err


def test_a_repositorys_own_tests_run_first_and_a_failure_is_named(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change(repository, 'time_limit = "20s"', 'test = "python -m unittest -q"\ntime_limit = "20s"', "pyproject.toml")
    lines = "import unittest, heat\nclass Heat(unittest.TestCase):\n    def test_mean(self):\n        "
    (repository / "test_heat.py").write_text(f"{lines}self.assertEqual(heat.predict({{'mean': 2}}, [1]), [2])\n")
    assert main(["try", str(repository)]) == 0
    said = capsys.readouterr().out
    assert said.index("[headrace] running the tests: python -m unittest -q") < said.index("training on")
    (repository / "test_heat.py").write_text(f"{lines}self.assertEqual(heat.predict({{'mean': 2}}, [1]), [3])\n")
    assert main(["try", str(repository)]) == 1
    told = capsys.readouterr()
    assert "test_failed: FAIL: test_mean (test_heat.Heat" in told.err
    assert "training on" not in told.out


def test_a_training_past_its_time_limit_is_ended_with_all_that_it_started(
    repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change(repository, 'time_limit = "20s"', 'time_limit = "1s"', "pyproject.toml")
    change(
        repository,
        "    job.progress",
        f"    import subprocess\n    child = subprocess.Popen(['sleep', '600'])\n    Path({str(tmp_path / 'pid')!r}).write_text(str(child.pid))\n    child.wait()\n    job.progress",
    )
    assert main(["try", str(repository), "--json"]) == 1
    error = json.loads(capsys.readouterr().out)["error"]
    assert (error["kind"], error["message"]) == ("time_limit", "it ran for longer than 1 s")
    assert "time_limit in pyproject.toml" in error["advice"]
    assert not Path(f"/proc/{(tmp_path / 'pid').read_text()}").exists()


def test_ctrl_c_ends_the_training_and_leaves_nothing(repository: Path, tmp_path: Path) -> None:
    started, scratch = tmp_path / "pid", tmp_path / "scratch"
    scratch.mkdir()
    write = f"    Path({str(tmp_path / 'draft')!r}).write_text(str(os.getpid()))\n    os.rename({str(tmp_path / 'draft')!r}, {str(started)!r})\n"
    change(repository, "    job.progress", f"{write}    import time; time.sleep(600)\n    job.progress")
    heard = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"  # who runs in the background does not
    )
    code = f"{heard}; import sys; from headrace.cli import main; sys.exit(main(['try', {str(repository)!r}]))"
    trying = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "TMPDIR": str(scratch)})
    deadline = time.monotonic() + 60
    while not started.exists():
        assert time.monotonic() < deadline
        assert trying.poll() is None
        time.sleep(0.05)
    trying.send_signal(signal.SIGINT)
    assert trying.wait(30) == 130
    assert not Path(f"/proc/{started.read_text()}").exists()
    assert [*scratch.iterdir()] == []


def test_an_environment_that_was_written_into_is_noticed_and_built_anew(
    repository: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["try", str(repository)]) == 0
    (mark,) = (cache / "environments").glob("*/headrace-environment.json")
    os.chmod(mark.parent, 0o700)
    (mark.parent / "mine.pth").write_text("import os")
    assert main(["try", str(repository)]) == 1
    said = capsys.readouterr()
    assert "somebody wrote into the environment" in said.err
    assert "would try it again" in said.err
    assert main(["try", str(repository)]) == 0
    assert ": built, " in capsys.readouterr().out


def test_without_uv_it_says_what_to_install(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert main(["try", str(repository)]) == 1
    err = capsys.readouterr().err
    assert "headrace: there is no uv; install it with: pip install 'headrace[build]'" in err
    assert "--python .venv/bin/python" in err


def test_what_the_platform_would_refuse_is_refused_before_anything_is_built(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change(repository, "dependencies = []", 'dependencies = ["mine @ git+https://example.com/mine"]', "pyproject.toml")
    assert main(["try", str(repository)]) == 1
    assert "headrace: environment: " in capsys.readouterr().err
    change(repository, "[tool.headrace]\n", "[tool.headrace]\ncomand = 'x'\n", "pyproject.toml")
    assert main(["try", str(repository)]) == 1
    assert "headrace: refused: pyproject.toml: tool.headrace.comand: unknown key" in capsys.readouterr().err


def test_a_gate_that_fails_has_an_exit_code_of_its_own(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change(repository, "max = 1.0", "max = 0.1", "pyproject.toml")
    assert main(["try", str(repository)]) == GATE_FAILS
    out = capsys.readouterr().out
    assert "error   fails  at most 0.1\n" in out
    assert "the platform would reject this version" in out


def test_a_score_that_changes_from_one_process_to_the_next_is_noted(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change(repository, "zip(guesses, rows)) / len(rows)", "zip(guesses, rows)) / len(rows) + os.getpid() / 1e6")
    assert main(["try", str(repository)]) == 0
    assert "evaluated again, " in capsys.readouterr().out


def test_without_rows_held_out_nothing_is_judged(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["try", str(repository), "--sample", "5"]) == GATE_FAILS
    out = capsys.readouterr().out
    assert "no rows were held out" in out
    assert "the platform's verdict would be undecided" in out


def test_where_there_is_no_repository_it_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["try", str(tmp_path / "none")]) == 1
    assert "headrace: there is no directory" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert main(["try", str(tmp_path / "empty")]) == 1
    assert "`headrace init` makes one" in capsys.readouterr().err


def test_the_operators_constraints_hold_in_a_try_too(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    change(repository, "dependencies = []", 'dependencies = ["six==1.16.0"]', "pyproject.toml")
    (tmp_path / "constraints.txt").write_text("six>=1.17\n")
    monkeypatch.setenv("HEADRACE_CONSTRAINTS", str(tmp_path / "constraints.txt"))
    assert main(["try", str(repository)]) == 1
    err = capsys.readouterr().err
    assert err.startswith("headrace: environment: ")
    assert "six" in err
    monkeypatch.setenv("HEADRACE_CONSTRAINTS", str(tmp_path / "none.txt"))
    assert main(["try", str(repository)]) == 1
    assert "HEADRACE_CONSTRAINTS: " in capsys.readouterr().err


def test_a_place_for_environments_that_is_none_is_told_without_a_traceback(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HEADRACE_CACHE", str(tmp_path / "file"))
    assert main(["try", str(repository)]) == 1
    err = capsys.readouterr().err
    assert err.startswith("headrace: infrastructure: Not a directory: ")
    assert "Traceback" not in err
