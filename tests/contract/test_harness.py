"""The harness as the trainer starts it: a script, a job file, files that it leaves. Nothing of it is imported here."""

from __future__ import annotations

import ast
import sqlite3
import sys
import time
from pathlib import Path

import pytest

from tests.harness_bench import HOME, STANDARD, Bench, make_bench

pytestmark = pytest.mark.usefixtures("way")


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return make_bench(tmp_path)


def test_a_training_leaves_a_model_its_metrics_and_its_times(bench: Bench) -> None:
    result = bench.run()
    assert bench.code == 0, bench.output
    assert result["ok"] is True
    assert result["metrics"] == {"mean": 4.5, "rows": 2.0}
    assert set(result["seconds"]) == {"import", "train", "save", "evaluate"}
    assert bench.left("metrics.json") == {"metrics": {"mean": 4.5, "rows": 2.0}, "history": []}
    assert bench.left("parameters.json") == {"depth": "3"}
    assert bench.left("model/headrace.json")["python"] == ".".join(map(str, sys.version_info[:3]))
    assert [event["name"] for event in bench.events("phase")] == ["import", "train", "save", "evaluate"]


def test_a_saved_model_is_evaluated_on_other_rows(bench: Bench) -> None:
    bench.run()
    datasets = bench.job["datasets"]
    datasets["sales"]["train"] = None
    datasets["sales"]["holdout"]["above"] = 9
    result = bench.run(action="evaluate", model_dir=str(bench.place / "output" / "model"))
    assert result["metrics"] == {"mean": 4.5, "rows": 1.0}
    assert set(result["seconds"]) == {"import", "load", "evaluate"}


def test_a_model_that_cannot_be_loaded_back_is_not_judged(bench: Bench) -> None:
    bench.write(STANDARD + "    def refuse(*_): raise ValueError('not again')\n    Model.__setstate__ = refuse\n")
    result = bench.run()
    assert (result["ok"], result["kind"]) == (False, "bad_output")
    assert "cannot be loaded back: ValueError: not again" in result["message"]


def test_what_the_author_logs_is_kept(bench: Bench) -> None:
    bench.write(
        STANDARD
        + """
    def train(job):
        for step in range(3):
            job.log_metric("loss", 1 / (step + 1))
        job.log_metric("loss", 0.1, step=30)
        job.log_parameter("solver", "lbfgs")
        job.log_artifact("curve.svg", "<svg/>")
        (job.scratch / "report.html").write_text("<p>")
        job.log_artifact("report.html", job.scratch / "report.html")
        class Figure:
            def savefig(self, path): path.write_bytes(b"PNG")
        job.log_figure("roc.png", Figure())
        job.progress(0.5, "halfway")
        return Model(1.0)
    """
    )
    assert bench.run()["ok"], bench.output
    history = bench.left("metrics.json")["history"]
    assert [(point["key"], point["step"]) for point in history] == [("loss", 0), ("loss", 1), ("loss", 2), ("loss", 30)]
    assert all(abs(point["timestamp_ms"] / 1000 - time.time()) < 600 for point in history)
    assert bench.left("parameters.json") == {"depth": "3", "solver": "lbfgs"}
    plots = {path.name: path.read_text() for path in (bench.place / "output" / "plots").iterdir()}
    assert plots == {"curve.svg": "<svg/>", "report.html": "<p>", "roc.png": "PNG"}
    assert bench.events("progress") == [{"event": "progress", "fraction": 0.5, "note": "halfway"}]
    assert len(bench.events("metric")) == 4


@pytest.mark.parametrize(
    "returned",
    [
        "{'auc': float('nan')}",
        "{'auc': float('inf')}",
        "{'auc': '0.9'}",
        "{'auc': True}",
        "{'auc': None}",
        "{'auc': 10 ** 400}",
        "{3: 0.5}",
        "{'a\\nb': 0.5}",
        "{'': 0.5}",
        "{'x' * 251: 0.5}",
        "{f'm{n}': 0.5 for n in range(1001)}",
        "0.9",
        "None",
    ],
)
def test_metrics_that_are_no_finite_numbers_by_name_are_refused(bench: Bench, returned: str) -> None:
    bench.write(STANDARD + f"    def evaluate(job, model): return {returned}\n")
    result = bench.run()
    assert (bench.code, result["ok"], result["kind"]) == (1, False, "invalid_metric")
    assert not (bench.place / "output" / "metrics.json").exists()


def test_a_logged_metric_that_is_nan_is_refused_where_it_is_logged(bench: Bench) -> None:
    bench.write(STANDARD + "    def train(job):\n        job.log_metric('loss', float('nan'))\n")
    result = bench.run()
    assert result["kind"] == "invalid_metric"
    assert "job.log_metric('loss', float('nan'))" in result["traceback"]


@pytest.mark.parametrize("name", ["../x.png", "a/b.png", "x.exe", ".png", "", "x" * 120 + ".png"])
def test_a_plot_stays_where_plots_are_kept(bench: Bench, name: str) -> None:
    bench.write(STANDARD + f"    def train(job):\n        job.log_artifact({name!r}, b'x')\n")
    assert bench.run()["kind"] == "author_error"
    assert not list(bench.place.rglob("*.exe"))


def test_an_authors_error_carries_the_authors_last_frames_only(bench: Bench) -> None:
    bench.write(
        STANDARD + "    def train(job): return deeper(12)\n    def deeper(n): return deeper(n - 1) if n else 1 / 0\n"
    )
    result = bench.run()
    assert (bench.code, result["kind"], result["message"]) == (1, "author_error", "ZeroDivisionError: division by zero")
    assert "1 / 0" in result["traceback"]
    assert len(result["traceback"].splitlines()) < 30
    assert "shop.py" in result["traceback"]
    assert "harness.py" not in result["traceback"]
    assert "ZeroDivisionError" in bench.output


def test_a_missing_package_is_named_with_what_to_do(bench: Bench) -> None:
    bench.write("import no_such_package.inner\n")
    result = bench.run()
    assert result["kind"] == "author_error"
    assert "'no_such_package'" in result["message"]
    assert "uv lock" in result["message"]


def test_a_syntax_error_shows_its_line(bench: Bench) -> None:
    bench.write("def train(job:\n")
    assert "def train(job:" in bench.run()["message"]


def test_sys_exit_is_no_success(bench: Bench) -> None:
    bench.write(STANDARD + "    def train(job):\n        raise SystemExit(0)\n")
    result = bench.run()
    assert (bench.code, result["kind"]) == (1, "author_error")
    assert "sys.exit(0)" in result["message"]


@pytest.mark.parametrize(
    ("returned", "why"),
    [
        ("lambda frame: frame", "no predict"),
        ("object()", "no predict"),
        ("None", "no predict"),
        ("With()", "cannot be saved"),
    ],
)
def test_what_cannot_serve_is_refused_with_what_to_do(bench: Bench, returned: str, why: str) -> None:
    bench.write(
        STANDARD
        + f"""
    class With(Model):
        def __init__(self): import threading; self.lock = threading.Lock()
    def train(job): return {returned}
    """
    )
    result = bench.run()
    assert result["kind"] == "bad_output"
    assert why in result["message"]


def test_a_model_that_train_has_written_itself_is_read_by_its_load_entry(bench: Bench) -> None:
    bench.write(
        """
    import json
    def train(job):
        (job.output / "weights.json").write_text("[1, 2]")
    def load(path): return json.loads((path / "weights.json").read_text())
    def predict(model, frame): return [sum(model)] * len(frame)
    def evaluate(job, model): return {"sum": sum(model)}
    """
    )
    assert bench.run(predict="shop:predict", load="shop:load")["metrics"] == {"sum": 3.0}
    assert bench.left("model/headrace.json")["format"] == "own"


def test_signature_and_example_come_from_what_evaluate_gives_to_predict(bench: Bench) -> None:
    bench.write(
        STANDARD
        + """
    def evaluate(job, model):
        given = [{"day": day} for _, _, day in read(job.datasets["sales"].holdout)]
        return {"first": predict(model, given)[0]}
    def predict(model, rows): return [model.mean + 0 * len(row["day"]) for row in rows]
    """
    )
    assert bench.run(predict="shop:predict")["metrics"] == {"first": 4.5}, bench.output
    assert bench.left("signature.json") == {
        "inputs": [{"name": "day", "type": "string"}],
        "outputs": [{"type": "double"}],
    }
    assert bench.left("input_example.json") == {"columns": ["day"], "data": [["2026-01-09"], ["2026-01-10"]]}
    assert bench.left("model/headrace.json")["takes"] == "records"


def test_an_example_that_cannot_be_made_fails_nothing(bench: Bench) -> None:
    bench.write(
        STANDARD
        + """
    class Odd(dict):
        def values(self): raise RuntimeError("no values here")
    def evaluate(job, model): return {"rows": len(model.predict([Odd(a=1)]))}
    """
    )
    assert bench.run()["metrics"] == {"rows": 1.0}
    assert "no input example was made: RuntimeError: no values here" in bench.output
    assert not (bench.place / "output" / "signature.json").exists()


def test_a_model_with_save_and_load_of_its_own_is_kept_by_them(bench: Bench) -> None:
    bench.write(
        STANDARD
        + """
    import pathlib
    class Model:
        def __init__(self, mean): self.mean = mean
        def predict(self, frame): return [self.mean for _ in frame]
        def save(self, path): pathlib.Path(path).write_text(str(self.mean))
        @classmethod
        def load(cls, path): return cls(float(pathlib.Path(path).read_text()))
    """
    )
    assert bench.run()["metrics"] == {"mean": 4.5, "rows": 2.0}, bench.output
    assert (bench.place / "output" / "model" / "saved").read_text() == "4.5"
    bench.write(
        (bench.place / "checkout" / "shop.py").read_text().replace("@classmethod", "")
        + "def read_back(path): return Model(1.5)\n"
    )
    assert bench.run(load="shop:read_back")["metrics"]["mean"] == 1.5


def test_returning_nothing_and_writing_nothing_is_refused(bench: Bench) -> None:
    bench.write(STANDARD + "    def train(job): pass\n    def predict(model, frame): pass\n")
    result = bench.run(predict="shop:predict")
    assert result["kind"] == "bad_output"
    assert "job.output" in result["message"]


def test_without_evaluate_there_are_no_metrics(bench: Bench) -> None:
    assert bench.run(evaluate=None)["metrics"] is None
    assert bench.left("metrics.json")["metrics"] == {}


def test_a_thread_that_the_author_left_does_not_hold_the_process(bench: Bench) -> None:
    bench.write(
        STANDARD
        + """
    def train(job):
        import threading, time
        threading.Thread(target=time.sleep, args=(300,)).start()
        print("left a thread")
        return Model(1.0)
    """
    )
    began = time.monotonic()
    assert bench.run()["ok"]
    assert time.monotonic() - began < 20
    assert "left a thread" in bench.output


def test_the_authors_packages_come_before_installed_ones_and_after_the_standard_library(bench: Bench) -> None:
    bench.write("raise ImportError('not the standard library')\n", "random.py")
    bench.write("NAME = 'mine'\n", "src/pytest.py")
    bench.write(
        STANDARD
        + """
    import random, pytest
    def evaluate(job, model): return {"mine": pytest.NAME == "mine" and 1, "random": random.randint(1, 1)}
    """,
        "src/shop.py",
    )
    assert bench.run().get("metrics") == {"mine": 1.0, "random": 1.0}, bench.output


def test_nothing_of_the_platform_can_be_imported(bench: Bench) -> None:
    bench.write(
        STANDARD
        + """
    def evaluate(job, model):
        import sys
        return {"beside": any(path.rstrip("/").endswith("/headrace") for path in sys.path)  + 0}
    """
    )
    assert bench.run()["metrics"] == {"beside": 0.0}


def test_the_newest_rows_since_a_time_can_be_asked_for(bench: Bench) -> None:
    held = bench.job["datasets"]["sales"]["holdout"]
    held.update(above=None, newest=5, since="2026-01-08")
    held["upto"] = 9
    bench.write(
        STANDARD
        + """
    def evaluate(job, model):
        rows = job.datasets["sales"].holdout
        connection = rows.connect()
        named = connection.execute(rows.sql, rows.params).fetchall()
        marks = connection.execute(*rows.query("qmark")).fetchall()
        assert named == marks == [(8, 8.0, "2026-01-08"), (9, 9.0, "2026-01-09")], named
        text, params = rows.query("pyformat")
        assert "%(upto)s" in text and params["upto"] == 9 and "{" not in text
        assert rows.query("format")[1] == (9, "2026-01-08") and "LIMIT 5" in rows.sql
        return {"count": rows.count}
    """
    )
    assert bench.run()["ok"], bench.output


def test_odd_names_of_tables_and_columns_are_quoted(bench: Bench) -> None:
    name, column = 'odd "{upto}" %s table', "{above} : key"
    quoted = name.replace('"', '""')
    with sqlite3.connect(bench.place / "sales.db") as connection:
        connection.execute(f'CREATE TABLE "{quoted}" ("{column}" INTEGER PRIMARY KEY)')
        connection.executemany(f'INSERT INTO "{quoted}" VALUES (?)', [(1,), (2,), (3,)])
    connection.close()
    bench.job["datasets"]["sales"]["holdout"].update(table=name, cursor=column, above=1, upto=3, newest=1)
    bench.write(
        STANDARD
        + """
    def evaluate(job, model):
        rows = job.datasets["sales"].holdout
        assert "%%s" in rows.query("pyformat")[0]
        assert rows.connect().execute(*rows.query("qmark")).fetchall() == [(3,)]
        return {"key": read(rows)[0][0]}
    """
    )
    assert bench.run().get("metrics") == {"key": 3.0}, bench.output


def test_the_data_cannot_be_written(bench: Bench) -> None:
    bench.write(STANDARD + "    def train(job): job.datasets['sales'].train.connect().execute('DELETE FROM sales')\n")
    assert "readonly" in bench.run()["message"]


def test_an_address_that_is_not_passed_on_names_the_line_to_add(bench: Bench) -> None:
    bench.job["datasets"]["sales"]["url_variable"] = "OTHER_URL"
    message = bench.run()["message"]
    assert 'pass_env = ["OTHER_URL"]' in message


def test_a_database_other_than_sqlite_is_for_the_authors_own_driver(bench: Bench) -> None:
    bench.job["datasets"]["sales"].update(url_variable=None, url="postgresql://db/shop")
    assert "postgresql" in bench.run()["message"]


@pytest.mark.parametrize("kind", ["rest", "stream"])
def test_data_that_was_only_told_about_is_a_range(bench: Bench, kind: str) -> None:
    bench.job["datasets"]["sales"] = {"kind": kind, "train": {"above": "a", "upto": "b", "rows": 7}, "holdout": None}
    bench.write(
        STANDARD
        + """
    def train(job):
        rows = job.datasets["sales"].train
        assert (rows.above, rows.upto, rows.count) == ("a", "b", 7)
        return Model(1.0)
    def evaluate(job, model): job.datasets["sales"].holdout
    """
    )
    assert "no holdout rows" in bench.run()["message"]


def test_the_files_keep_to_the_syntax_of_python_3_9() -> None:
    for path in [*HOME.glob("harness*.py"), *(HOME / name for name in ("loader.py", "warden.py", "warded.py"))]:
        ast.parse(path.read_text(), path.name, feature_version=(3, 9))


KEPT = {
    "anything that can be pickled": ("{'epoch': 3}", "found"),
    "bytes": ("b'weights'", "found"),
    "a file": ("job.scratch / 'weights.pt'", "(found.name, found.read_text())"),
    "a directory": ("job.scratch / 'state'", "(found.name, sorted(path.name for path in found.rglob('*')))"),
}


@pytest.mark.parametrize("name", KEPT)
def test_a_checkpoint_is_given_back_as_it_was_given(bench: Bench, name: str) -> None:
    given, look = KEPT[name]
    bench.write(
        STANDARD
        + f"""
    def train(job):
        found = job.resume()
        if found is not None:
            print("found", {look}, flush=True)
            return Model(1.0)
        (job.scratch / "weights.pt").write_text("weights")
        (job.scratch / "state" / "deep").mkdir(parents=True, exist_ok=True)
        (job.scratch / "state" / "deep" / "file").touch()
        given = {given}
        job.checkpoint(given, 0.5, "half")
        found = given
        print("gave", {look}, flush=True)
        return Model(1.0)
    """
    )
    assert bench.run()["ok"], bench.output
    gave = bench.output.partition("gave ")[2].splitlines()[0]
    assert bench.events("progress")[0]["fraction"] == 0.5
    assert bench.events("listens")
    kept = (bench.place / "scratch" / "checkpoint").read_bytes()
    resume = bench.place / "resume"
    resume.write_bytes(b"headrace checkpoint 00\n" + kept)
    assert bench.run(resume=str(resume))["ok"], bench.output
    assert bench.output.partition("found ")[2].splitlines()[0] == gave
    resume.write_bytes(b"headrace checkpoint 00\n" + kept[:10])
    assert bench.run(resume=str(resume))["ok"], bench.output
    assert "cannot be read" in bench.output
    assert "the training begins anew" in bench.output


def test_a_sigterm_is_a_word_for_code_that_keeps_checkpoints_and_the_end_for_what_it_has_forked(bench: Bench) -> None:
    bench.write(
        STANDARD
        + """
    import os, signal, time
    def train(job):
        job.checkpoint(1)
        there, tells = os.pipe()
        child = os.fork()
        if child == 0:
            os.write(tells, b"!")
            time.sleep(20)
            os._exit(0)
        os.read(there, 1)
        os.kill(child, signal.SIGTERM)
        print("the fork ended with", os.waitpid(child, 0)[1], flush=True)
        os.kill(os.getpid(), signal.SIGTERM)
        assert job.stopping
        job.checkpoint(2)
    """
    )
    assert bench.run()["kind"] == "stopped"
    assert "the fork ended with 15" in bench.output
    assert (bench.place / "scratch" / "checkpoint").exists()
