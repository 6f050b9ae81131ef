"""Models that a command trains: what it finds, what is taken from it, and what it is told when there is nothing to take."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import sys
import textwrap
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import headrace.harness_mlflow as harness_mlflow
import headrace.loader as loader
import pytest

from services.trainer import bundle, child, jobs
from services.trainer.checkout import Prepared
from services.trainer.disk import Disk
from services.trainer.failures import AttemptFailed, Leaving
from services.trainer.heart import Heart
from services.trainer.users import Users
from services.trainer.warm import Parents
from shared import declaration
from shared.catalog import Dataset, Limits, Model, Sql
from shared.cuts import Cut, Range
from shared.ledger.releases import Release
from shared.logs import DiskLogs
from tests.children import within
from tests.harness_bench import Bench, make_bench

SHELL = Path(__file__).parents[2] / "examples" / "shell"
SCRIPT = """
    # a script as people have them: it reads a CSV file and writes model.pkl and metrics.json where it stands
    import csv, json, pickle
    from average import Average
    rows = list(csv.DictReader(open("data/sales/train.csv")))
    model = Average(sum(float(row["value"]) for row in rows) / len(rows))
    with open("model.pkl", "wb") as stream:
        pickle.dump(model, stream)
    held = [float(row["value"]) for row in csv.DictReader(open("data/sales/holdout.csv"))]
    with open("metrics.json", "w") as stream:
        json.dump({"error": abs(sum(held) / len(held) - model.mean), "rows": len(rows)}, stream)
    print("trained on", len(rows))
"""
AVERAGE = """
    class Average:
        def __init__(self, mean): self.mean = mean
        def predict(self, frame): return [self.mean for _ in frame]
"""


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    made = make_bench(tmp_path)
    (tmp_path / "checkout" / "shop.py").unlink()
    made.job.update(train=None, evaluate=None)
    return made


def runs(bench: Bench, command: str, **more: Any) -> dict[str, Any]:
    """The result of a model whose command is this shell script."""
    bench.write(command, "train.sh")
    return bench.run(command=["sh", "train.sh"], **more)


def test_a_script_as_people_have_them_needs_no_change(bench: Bench) -> None:
    bench.write(SCRIPT, "train.py")
    bench.write(AVERAGE, "src/average.py")
    bench.write("{}", "metrics.json")
    result = bench.run(command=["python3", "train.py"])
    assert result["ok"], bench.output
    assert result["metrics"] == {"error": 5.0, "rows": 8.0}
    assert "trained on 8" in bench.output
    assert bench.left("model/headrace.json")["file"] == "model.pkl"
    assert sorted(path.name for path in (bench.place / "checkout").iterdir()) == ["metrics.json", "src", "train.py"], (
        "only the copy was written to"
    )
    bench.write("def evaluate(job, model): return {'mean': model.predict([1])[0]}", "judge.py")
    again = bench.run(
        action="evaluate",
        command=["python3", "train.py"],
        evaluate="judge:evaluate",
        model_dir=str(bench.place / "output" / "model"),
    )
    assert again["metrics"] == {"mean": 4.5}


def test_the_example_in_shell_trains_and_scores_candidate_and_champion_alike(bench: Bench) -> None:
    shutil.rmtree(bench.place / "checkout")
    shutil.copytree(SHELL, bench.place / "checkout")
    commands = {
        "command": ["sh", "train.sh"],
        "evaluate_command": ["sh", "evaluate.sh"],
        "parameters": {"column": "value"},
    }
    assert bench.run(**commands).get("metrics") == {"error": 5.0}, bench.output
    assert (bench.place / "output" / "model" / "mean").read_text() == "4.5\n"
    assert bench.events("progress") == [{"event": "progress", "fraction": 0.9, "note": "fitted"}]
    bench.job["datasets"]["sales"]["train"] = None
    bench.job["datasets"]["sales"]["holdout"]["above"] = 9
    shutil.rmtree(bench.place / "scratch")
    (bench.place / "scratch").mkdir()
    scored = bench.run(**commands, action="evaluate", model_dir=str(bench.place / "output" / "model"))
    assert scored.get("metrics") == {"error": 5.5}, bench.output


def test_a_declared_command_runs_as_a_worker_runs_it(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "sales.db") as connection:
        connection.execute("CREATE TABLE sales (id INTEGER PRIMARY KEY, value REAL)")
        connection.executemany("INSERT INTO sales VALUES (?, ?)", [(number, number) for number in range(1, 11)])
    connection.close()
    release = Release(
        1, "m", "v1", "c" * 40, declaration.parse((SHELL / "pyproject.toml").read_bytes()), datetime.now(UTC)
    )
    source = Sql(kind="sql", url=f"sqlite:///{tmp_path / 'sales.db'}", table="sales", cursor="id")
    sources, model = {"sales": Dataset(source=source)}, Model(repository="https://example.com/m.git")
    cut, held = {"sales": Cut(10, 10, 8, 2)}, {"sales": Range(8, 10, 2)}
    prepared, scratch = Prepared(SHELL, Path(sys.executable), ""), tmp_path / "scratch"
    (scratch / "output").mkdir(parents=True)
    job = jobs.training_job(1, release, model, sources, cut, held, prepared, scratch)
    assert job["judged"]
    assert run_child(job, scratch, prepared, tmp_path).metrics == {"error": 5.0}
    bundle.complete(scratch / "output", prepared, b"")
    assert "model/mean" in {file.path for file in bundle.check(scratch / "output").files}
    again = tmp_path / "again"
    job = jobs.scoring_job(
        1, release, model, sources, {"sales": Range(9, 10, 1)}, prepared, again, scratch / "output" / "model"
    )
    assert run_child(job, again, prepared, tmp_path).metrics == {"error": 5.5}
    nothing = jobs.training_job(1, release, model, sources, cut, {"sales": Range(10, 10, 0)}, prepared, scratch)
    assert not nothing["judged"]
    shutil.rmtree(scratch)
    (scratch / "output").mkdir(parents=True)
    with pytest.raises(AttemptFailed, match=r"sh train.sh` ended with exit code 3\nthere is no column price"):
        run_child(nothing | {"parameters": {"column": "price"}}, scratch, prepared, tmp_path)


def run_child(
    job: dict[str, Any], scratch: Path, prepared: Prepared, place: Path, leaving: threading.Event | None = None
) -> child.Result:
    environment, parents = (
        child.environment((), 1, prepared, scratch),
        Parents(0, Disk(place)),
    )
    work = child.Work(job, scratch, "runs/1/1", timedelta(seconds=60), environment, Limits())
    with Heart(lambda _: None, 60.0, leaving or threading.Event()) as heart:
        return within(
            lambda: child.run(work, prepared, Users(None, place / "users"), parents, DiskLogs(place / "logs"), heart)
        )


def test_a_command_finds_rows_parameters_and_places(bench: Bench) -> None:
    with sqlite3.connect(bench.place / "sales.db") as connection:
        connection.execute("UPDATE sales SET day = 'a, \"quoted\" one' WHERE id = 2")
        connection.execute("UPDATE sales SET day = NULL, value = x'00ff' WHERE id = 3")
    connection.close()
    script = """
        cat data/sales/train.csv > "$HEADRACE_MODEL_DIR/rows"
        test ! -e data/sales/holdout.csv && cp "$HEADRACE_JOB" "$HEADRACE_MODEL_DIR/job"
        env > "$HEADRACE_MODEL_DIR/variables"; pwd > "$HEADRACE_MODEL_DIR/place"
    """
    bench.write("def evaluate(job, model): return {'a': 1}", "judge.py")
    parameters = {"depth": 3, "learning.rate": 0.1, "early": True}
    assert runs(bench, script, evaluate="judge:evaluate", parameters=parameters)["ok"], bench.output
    left = {path.name: path.read_text() for path in (bench.place / "output" / "model").iterdir()}
    assert left["rows"].splitlines()[:4] == ["id,value,day", "1,1.0,2026-01-01", '2,2.0,"a, ""quoted"" one"', "3,00ff,"]
    assert len(left["rows"].splitlines()) == 9
    told = json.loads(left["job"])
    assert (told["action"], told["run"], told["model"], told["parameters"]) == ("train", "17", "shop", parameters)
    sales = told["datasets"]["sales"]
    assert (sales["train"]["upto"], sales["train"]["rows"], sales["holdout"]) == (8, 8, None)
    assert Path(sales["train"]["file"]).name == "train.csv"
    assert "<= :upto" in sales["train"]["sql"]
    variables = dict(line.split("=", 1) for line in left["variables"].splitlines())
    named = {name: value for name, value in variables.items() if name.startswith("HEADRACE_PARAMETER_")}
    assert named == {
        "HEADRACE_PARAMETER_DEPTH": "3",
        "HEADRACE_PARAMETER_LEARNING_RATE": "0.1",
        "HEADRACE_PARAMETER_EARLY": "true",
    }
    assert variables["MLFLOW_TRACKING_URI"].startswith(f"file://{bench.place / 'scratch'}")
    assert variables["HEADRACE_DATA"] == f"{left['place'].strip()}/data"


def test_rows_are_not_exported_where_that_is_not_wanted(bench: Bench) -> None:
    result = runs(bench, 'test ! -e data && cp "$HEADRACE_JOB" "$HEADRACE_MODEL_DIR/job"', export=False)
    assert result["ok"], bench.output
    told = json.loads((bench.place / "output" / "model" / "job").read_text())["datasets"]["sales"]
    assert (told["train"]["file"], told["url_variable"]) == (None, "SALES_URL")


def test_data_that_was_only_told_about_is_a_range_in_the_job(bench: Bench) -> None:
    bench.job["datasets"]["sales"] = {
        "kind": "stream",
        "train": {"above": "a", "upto": "b", "rows": 7},
        "holdout": None,
    }
    assert runs(bench, 'cp "$HEADRACE_JOB" "$HEADRACE_MODEL_DIR/job"')["ok"], bench.output
    told = json.loads((bench.place / "output" / "model" / "job").read_text())["datasets"]["sales"]
    assert told == {"kind": "stream", "train": {"above": "a", "upto": "b", "rows": 7, "file": None}, "holdout": None}


def test_an_address_that_is_not_passed_on_names_the_line_to_add(bench: Bench) -> None:
    bench.job["datasets"]["sales"]["url_variable"] = "OTHER_URL"
    result = runs(bench, "true")
    assert result["kind"] == "author_error"
    assert 'pass_env = ["OTHER_URL"]' in result["message"]


def test_a_command_that_fails_is_told_with_its_exit_code_and_its_last_lines(bench: Bench) -> None:
    result = runs(
        bench,
        'i=0; while [ $i -lt 500 ]; do echo "line $i"; i=$((i+1)); done; echo "no such column: prize" >&2; exit 3',
    )
    assert (bench.code, result["kind"]) == (1, "author_error")
    assert result["message"] == "the command `sh train.sh` ended with exit code 3"
    assert result["traceback"].splitlines()[-2:] == ["line 499", "no such column: prize"]
    assert len(result["traceback"].splitlines()) <= 20
    assert "line 0\n" in bench.output


@pytest.mark.parametrize(
    ("program", "said"), [("Rscript-9", "there is no program 'Rscript-9'"), ("./train", "is not executable")]
)
def test_a_program_that_cannot_be_started_is_named(bench: Bench, program: str, said: str) -> None:
    bench.write("echo", "train")
    result = bench.run(command=[program, "train.R"])
    assert result["kind"] == "author_error"
    assert said in result["message"]


@pytest.mark.parametrize("script", ["kill -9 $$", "sh -c 'kill -9 $$'; exit $?"], ids=["itself", "below a shell"])
def test_a_signal_that_ends_the_command_ends_the_harness(bench: Bench, script: str) -> None:
    bench.write(script, "train.sh")
    with pytest.raises(FileNotFoundError, match=r"result\.json"):
        bench.run(command=["sh", "train.sh"])
    assert bench.code == -signal.SIGKILL


def test_what_the_command_leaves_running_does_not_hold_it(bench: Bench) -> None:
    assert runs(bench, 'sleep 60 & echo $! > "$HEADRACE_MODEL_DIR/pid"')["ok"]
    os.kill(int((bench.place / "output" / "model" / "pid").read_text()), signal.SIGKILL)


@pytest.mark.parametrize(
    ("script", "kind", "said"),
    [
        ("true", "bad_output", "left no model; write its files into the directory that HEADRACE_MODEL_DIR names"),
        ("echo x > model.txt; echo nonsense > metrics.json", "bad_output", "metrics.json is no JSON"),
        ("echo x > model.txt; echo '[1]' > metrics.json", "invalid_metric", "an object of at most 1000 numbers"),
        ("echo x > model.txt; echo '{\"a\": NaN}' > metrics.json", "invalid_metric", "no finite number"),
        ("echo x > model.pkl", "bad_output", "cannot be loaded back"),
    ],
)
def test_what_cannot_be_taken_is_refused_with_what_to_do(bench: Bench, script: str, kind: str, said: str) -> None:
    result = runs(bench, script)
    assert result["kind"] == kind, result
    assert said in result["message"]


def test_a_class_of_the_script_itself_is_told_to_move(bench: Bench) -> None:
    bench.write(
        textwrap.dedent(AVERAGE) + textwrap.dedent(SCRIPT).replace("from average import Average", ""), "train.py"
    )
    message = bench.run(command=["python3", "train.py"])["message"]
    assert "its class stands in the script itself; move it into a module of its own" in message


def test_what_an_earlier_commit_left_in_the_repository_is_not_taken(bench: Bench) -> None:
    bench.write("old", "model.txt")
    bench.write('{"auc": 0.99}', "metrics.json")
    assert "left no model" in runs(bench, "cat model.txt metrics.json")["message"]


def test_an_evaluate_command_that_writes_no_metrics_is_refused(bench: Bench) -> None:
    result = runs(bench, "echo 1 > model.bin", evaluate_command=["true"])
    assert result["kind"] == "bad_output"
    assert "`true` wrote no metrics.json" in result["message"]


def test_metrics_by_step_and_plots_are_kept(bench: Bench) -> None:
    script = """
        echo weights > model.bin
        echo '{"event": "metric", "key": "loss", "value": 0.5, "step": 3}' >> "$HEADRACE_EVENTS"
        echo 'nonsense' >> "$HEADRACE_EVENTS"
        echo '<svg/>' > "$HEADRACE_PLOTS/loss.svg"; echo x > "$HEADRACE_PLOTS/program.exe"
    """
    assert runs(bench, script)["metrics"] is None
    history = bench.left("metrics.json")["history"]
    assert [(point["key"], point["value"], point["step"]) for point in history] == [("loss", 0.5, 3)]
    assert "no event: b'nonsense'" in bench.output
    assert [path.name for path in (bench.place / "output" / "plots").iterdir()] == ["loss.svg"]
    assert "program.exe is not kept" in bench.output


def test_files_without_a_way_to_predict_say_so_when_they_are_asked(bench: Bench) -> None:
    assert runs(bench, "mkdir model; echo weights > model/w")["ok"], bench.output
    assert (bench.place / "output" / "model" / "model" / "w").read_text() == "weights\n"
    loaded = loader.load(bench.place / "output" / "model")
    with pytest.raises(TypeError, match=r'add predict = "module:function"'):
        loaded.predict([1])


def test_a_predict_entry_serves_the_files_of_a_command(bench: Bench) -> None:
    bench.write(
        "def predict(place, rows): return [float((place / 'mean').read_text())] * len(rows)\ndef evaluate(job, place): return {'first': predict(place, [{'a': 1}])[0]}",
        "serve.py",
    )
    result = runs(bench, 'echo 2.5 > "$HEADRACE_MODEL_DIR/mean"', predict="serve:predict", evaluate="serve:evaluate")
    assert result.get("metrics") == {"first": 2.5}, bench.output
    assert bench.left("signature.json")["inputs"] == [{"name": "a", "type": "long"}]


def logged_by_mlflow_2(store: Path, run: str, began: int, *, parent: str | None = None, model: bool = True) -> Path:
    """What MLflow 2.22 leaves of a run with a model, cut down to what is read."""
    place = store / "0" / run
    files = {
        "meta.yaml": f"artifact_uri: file://{place}/artifacts\nlifecycle_stage: active\nrun_id: {run}\nstart_time: {began}\nstatus: 3\n",
        "metrics/loss": "1795561331130 1.0 0\n1795561331131 0.5 1\n1795561331131 0.5 1\n1795561331132 nan 2\n",
        "metrics/val/auc": "1795561331133 0.9 0",
        "params/C": "1.0",
        "tags/mlflow.parentRunId": parent,
        "artifacts/estimator.html": "<p>",
        "artifacts/model/MLmodel": "flavors: {}\nutc_time_created: '2026-11-24 23:02:11.136621'\n" if model else None,
        "artifacts/better/MLmodel": "flavors: {}\nutc_time_created: '2026-11-24 23:02:12.000000'\n" if model else None,
    }
    for name, text in files.items():
        if text is not None:
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).write_text(text)
    return place


def test_the_store_of_mlflow_2_is_read_too(tmp_path: Path) -> None:
    assert harness_mlflow.last_run(tmp_path / "none") is None
    place = logged_by_mlflow_2(tmp_path, "a", 1)
    logged_by_mlflow_2(tmp_path, "b", 2, model=False)
    logged_by_mlflow_2(tmp_path, "c", 3, parent="a")
    logged_by_mlflow_2(tmp_path / ".trash", "d", 4)
    found = harness_mlflow.last_run(tmp_path)
    assert found is not None
    assert found.model == place / "artifacts" / "better"
    assert found.metrics == {"loss": 0.5, "val/auc": 0.9}
    assert [(point["value"], point["step"]) for point in found.history if point["key"] == "loss"] == [
        (1.0, 0),
        (0.5, 1),
    ]
    assert found.parameters == {"C": "1.0"}
    assert [name for name, _ in found.artifacts()] == ["estimator.html"]


def test_a_model_that_was_logged_outside_of_any_run_is_found(tmp_path: Path) -> None:
    place = tmp_path / "0" / "models" / "m-1"
    (place / "artifacts").mkdir(parents=True)
    (place / "artifacts" / "MLmodel").write_text("flavors: {}\n")
    (place / "meta.yaml").write_text("creation_timestamp: 1795561377960\nmodel_id: m-1\nsource_run_id: null\n")
    found = harness_mlflow.last_run(tmp_path)
    assert found is not None
    assert (found.model, found.metrics, list(found.artifacts())) == (place / "artifacts", {}, [])


def test_a_command_that_is_stopped_leaves_a_last_checkpoint_and_the_next_one_goes_on_from_it(bench: Bench) -> None:
    command = """
        if [ -n "$HEADRACE_RESUME" ]; then
            cp "$HEADRACE_RESUME" "$HEADRACE_MODEL_DIR/weights"
            exit 0
        fi
        trap 'sleep 0.5; echo "epoch 7" > epoch && mv epoch "$HEADRACE_CHECKPOINT"; exit 143' TERM
        touch "$HEADRACE_CHECKPOINT.begun"
        while true; do sleep 0.05; done
    """
    bench.write(command, "train.sh")
    scratch, leaving = bench.place / "scratch", threading.Event()
    prepared = Prepared(bench.place / "checkout", Path(sys.executable), "")
    watch = threading.Thread(target=set_after, args=(scratch / "checkpoint.begun", leaving))
    watch.start()
    with pytest.raises(Leaving):
        run_child(bench.job | {"command": ["sh", "train.sh"], "export": False}, scratch, prepared, bench.place, leaving)
    watch.join()
    kept = (scratch / "checkpoint").read_bytes()
    assert kept == b"epoch 7\n"
    shutil.rmtree(scratch)
    scratch.mkdir()
    (bench.place / "resume").write_bytes(b"headrace checkpoint 00\n" + kept)
    assert bench.run(command=["sh", "train.sh"], resume=str(bench.place / "resume"))["ok"], bench.output
    assert (bench.place / "output" / "model" / "weights").read_text() == "epoch 7\n"


def set_after(path: Path, event: threading.Event) -> None:
    deadline = time.monotonic() + 20
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    event.set()
