"""What models of real libraries become in their own environment: files that MLflow loads, and the library itself."""

from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import takewhile
from pathlib import Path
from typing import Any

import headrace
import pytest

from services.registry_bridge.compose import compose
from tests.model_environment import build

HOME = Path(headrace.__file__).parent
AT = datetime(2026, 11, 24, tzinfo=UTC)
pytestmark = pytest.mark.timeout(600)  # the first one builds the environment
READ = """
    import contextlib, pandas
    def read(rows):
        with contextlib.closing(rows.connect()) as connection:
            return pandas.read_sql(rows.sql, connection, params=rows.params)
"""


@pytest.fixture(scope="session")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of one environment for all that follows; its MLflow is not the platform's."""
    place = tmp_path_factory.mktemp("kinds")
    return build(place, "scikit-learn>=1.6,<2", "lightgbm>=4.5,<5", "pandas>=2.2,<3", "mlflow-skinny==3.5.1")


ASKED = """
import json, os, sys
import lightgbm, mlflow.pyfunc, mlflow.sklearn, pandas
for line in sys.stdin:
    if os.fork() == 0:
        try:
            exec(json.loads(line), {})
        finally:
            sys.stdout.flush()
            os._exit(0)
    os.wait()
    print("asked", flush=True)
"""


@pytest.fixture(scope="session")
def asked(python: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[subprocess.Popen[str]]:
    """A process of that environment which has imported what all programs do, and forks for each: that takes two seconds a time."""
    home = tmp_path_factory.mktemp("asked")
    environment = {"PATH": f"{python.parent}:/usr/bin:/bin", "HOME": str(home)}
    argv, pipe = [python, "-I", "-c", ASKED], subprocess.PIPE
    with subprocess.Popen(argv, env=environment, cwd=home, stdin=pipe, stdout=pipe, text=True) as process:
        yield process
        assert process.stdin is not None
        process.stdin.close()


@dataclass
class Workbench:
    """A repository with one module, `shop`, and a table `sales` of 60 rows, of which the last 20 are held out."""

    place: Path
    python: Path
    asked: subprocess.Popen[str]

    def write(self, name: str, source: str) -> None:
        (self.place / "checkout").mkdir(exist_ok=True)
        (self.place / "checkout" / name).write_text(textwrap.dedent(source))

    def run(self, **job: Any) -> dict[str, Any]:
        for name in ("output", "scratch"):
            (self.place / name).mkdir()
        rows = {"table": "sales", "cursor": "id"}
        url = f"sqlite:///{self.place / 'sales.db'}"
        sales = {"kind": "sql", "url": url, "train": {**rows, "upto": 40}, "holdout": {**rows, "above": 40}}
        described = {
            "action": "train", "run": "17", "model": "shop", "checkout": str(self.place / "checkout"),
            "source_roots": [str(self.place / "checkout")], "output": str(self.place / "output"), "scratch": str(self.place / "scratch"),
            "train": "shop:train", "evaluate": "shop:evaluate", "predict": None, "load": None, "loader": str(HOME / "loader.py"),
            "parameters": {}, "datasets": {"sales": sales},
        }  # fmt: skip
        (self.place / "job.json").write_text(json.dumps({**described, **job}))
        said = self.start("-I", str(HOME / "harness.py"), str(self.place / "job.json"))
        result: dict[str, Any] = json.loads((self.place / "scratch" / "result.json").read_text())
        assert result["ok"], said
        return result

    def composed(self) -> Path:
        """The model directory that the bridge makes of the bundle."""
        bundle, into = self.place / "output", self.place / "composed"
        (bundle / "code").mkdir()
        (bundle / "code" / "headrace_loader.py").write_bytes((HOME / "loader.py").read_bytes())
        (bundle / "requirements.txt").write_text("")
        shutil.copytree(self.place / "checkout", bundle / "source", ignore=shutil.ignore_patterns("__pycache__"))
        python = json.loads((bundle / "model" / "headrace.json").read_text())["python"]
        compose(bundle, into, model="shop", run=17, created_at=AT, python=python)
        return into

    def ask(self, code: str) -> Any:
        """What a program in the model's environment prints as JSON; it knows where `composed` lies, and nothing of the repository."""
        program = f"import json, sys\ncomposed, client = {str(self.composed())!r}, {str(HOME.parent)!r}\n{textwrap.dedent(code)}"
        assert self.asked.stdin is not None
        assert self.asked.stdout is not None
        print(json.dumps(program), file=self.asked.stdin, flush=True)
        said = [*takewhile(lambda line: line != "asked\n", self.asked.stdout)]
        return json.loads(said[-1])

    def start(self, *arguments: str) -> str:
        environment = {"PATH": f"{self.python.parent}:/usr/bin:/bin", "HOME": str(self.place)}
        done = subprocess.run(
            [self.python, *arguments], env=environment, cwd=self.place, capture_output=True, text=True, timeout=120
        )
        return done.stdout + done.stderr if done.returncode else done.stdout


@pytest.fixture
def bench(tmp_path: Path, python: Path, asked: subprocess.Popen[str]) -> Workbench:
    with sqlite3.connect(tmp_path / "sales.db") as connection:
        connection.execute("CREATE TABLE sales (id INTEGER PRIMARY KEY, price REAL, shop TEXT, many INTEGER)")
        rows = [(number, number % 7 / 2, "ab"[number % 2], number % 7 > 3) for number in range(1, 61)]
        connection.executemany("INSERT INTO sales VALUES (?, ?, ?, ?)", rows)
    connection.close()
    return Workbench(tmp_path, python, asked)


def test_a_scikit_learn_pipeline_serves_from_mlflow_and_from_its_own_file(bench: Workbench) -> None:
    bench.write(
        "shop.py",
        READ
        + """
    from sklearn.compose import make_column_transformer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder
    def train(job):
        frame = read(job.datasets["sales"].train)
        pipeline = make_pipeline(make_column_transformer((OneHotEncoder(), ["shop"]), remainder="passthrough"), LogisticRegression(C=100))
        return pipeline.fit(frame[["price", "shop"]], frame["many"])
    def evaluate(job, model):
        frame = read(job.datasets["sales"].holdout)
        sure = model.predict_proba(frame[["price", "shop"]])[:, 1] > 0.5
        return {"accuracy": (sure == frame["many"]).mean()}
    """,
    )
    assert bench.run()["metrics"]["accuracy"] > 0.9
    said = bench.ask(
        """
        import joblib, mlflow, pandas
        served, own = mlflow.pyfunc.load_model(composed), joblib.load(f"{composed}/data/model/model.joblib")
        frame = pandas.DataFrame({"price": [0.0, 3.0], "shop": ["a", "b"]})
        example = served.input_example
        print(json.dumps({
            "inputs": served.metadata.signature.inputs.to_dict(), "outputs": served.metadata.signature.outputs.to_dict(),
            "served": served.predict(frame).tolist(), "own": own.predict(frame).tolist(), "example": len(served.predict(example)),
        }))
        """
    )
    named = [
        {"type": "double", "name": "price", "required": True},
        {"type": "string", "name": "shop", "required": True},
    ]
    assert said == {
        "inputs": named, "outputs": [{"type": "long", "required": True}], "served": [0, 1], "own": [0, 1], "example": 5
    }  # fmt: skip


def test_a_lightgbm_booster_is_its_own_text_and_takes_arrays(bench: Workbench) -> None:
    bench.write(
        "shop.py",
        READ
        + """
    import lightgbm
    def train(job):
        frame = read(job.datasets["sales"].train)
        data = lightgbm.Dataset(frame[["id", "price"]].to_numpy(), frame["many"])
        return lightgbm.train({"objective": "binary", "min_data_in_leaf": 2, "verbose": -1}, data, 20)
    def evaluate(job, model):
        frame = read(job.datasets["sales"].holdout)
        return {"error": abs(model.predict(frame[["id", "price"]].to_numpy()) - frame["many"]).mean()}
    """,
    )
    assert bench.run()["metrics"]["error"] < 0.2
    assert (bench.place / "output" / "model" / "model.txt").read_text().startswith("tree\n")
    said = bench.ask(
        """
        import lightgbm, mlflow, numpy
        served, own = mlflow.pyfunc.load_model(composed), lightgbm.Booster(model_file=f"{composed}/data/model/model.txt")
        rows = numpy.array([[1.0, 0.0], [2.0, 3.0]])
        print(json.dumps({
            "inputs": served.metadata.signature.inputs.to_dict(), "served": served.predict(rows).tolist(), "own": own.predict(rows).tolist(),
            "example": len(served.predict(served.input_example)),
        }))
        """
    )
    assert said["inputs"] == [{"type": "tensor", "tensor-spec": {"dtype": "float64", "shape": [-1, 2]}}]
    assert said["served"] == said["own"]
    assert said["served"][0] < 0.3 < 0.7 < said["served"][1]
    assert said["example"] == 5


def test_a_lightgbm_estimator_is_kept_whole_and_its_trees_as_text_beside_it(bench: Workbench) -> None:
    bench.write(
        "shop.py",
        READ
        + """
    import lightgbm
    def train(job):
        frame = read(job.datasets["sales"].train)
        return lightgbm.LGBMClassifier(min_child_samples=2, verbose=-1).fit(frame[["price"]], frame["many"].map({0: "few", 1: "many"}))
    def evaluate(job, model):
        rows = [{"price": price} for price in read(job.datasets["sales"].holdout)["price"]]
        return {"many": sum(answer == "many" for answer in predict(model, rows))}
    def predict(model, rows):
        assert isinstance(rows, list), type(rows)
        return list(model.predict(pandas.DataFrame(rows)))
    """,
    )
    assert bench.run(predict="shop:predict")["metrics"]["many"] > 0
    said = bench.ask(
        """
        import lightgbm, mlflow
        served, own = mlflow.pyfunc.load_model(composed), lightgbm.Booster(model_file=f"{composed}/data/model/booster.txt")
        print(json.dumps([served.predict([{"price": 0.0}, {"price": 3.0}]), own.num_trees()]))
        """
    )
    assert said[0] == ["few", "many"]
    assert said[1] > 1


SCRIPT = """
    import mlflow, pandas
    from sklearn.linear_model import LogisticRegression
    mlflow.autolog(log_models=False)  # a model's requirements are worked out in a process of its own, which takes long
    mlflow.set_experiment("a name of their own")
    frame = pandas.read_csv("data/sales/train.csv")
    with mlflow.start_run():
        model = LogisticRegression(C=100).fit(frame[["price"]], frame["many"])
        for step in range(3):
            mlflow.log_metric("loss", 1 / (step + 1), step=step)
        held = pandas.read_csv("data/sales/holdout.csv")
        mlflow.log_metric("accuracy", model.score(held[["price"]], held["many"]))
        mlflow.log_metric("broken", float("nan"))
        mlflow.log_param("who", "author")
        mlflow.log_text("<p>seen</p>", "report/page.html")
        mlflow.sklearn.log_model(model, name="shop", registered_model_name="shop", pip_requirements=["scikit-learn"])
"""


def test_an_unchanged_mlflow_script_leaves_its_run_and_its_model(bench: Workbench) -> None:
    bench.write("train.py", SCRIPT)
    asked = {
        "train": None,
        "evaluate": None,
        "command": ["python", "train.py"],
        "evaluate_command": None,
        "export": True,
    }
    metrics = bench.run(**asked)["metrics"]
    assert not list(bench.place.rglob("mlruns")), "nor is anything left where MLflow would put it"
    assert (metrics["loss"], metrics["accuracy"] > 0.9, "training_accuracy_score" in metrics) == (1 / 3, True, True)
    left = {
        name: json.loads((bench.place / "output" / f"{name}.json").read_text()) for name in ("metrics", "parameters")
    }
    loss = [(point["value"], point["step"]) for point in left["metrics"]["history"] if point["key"] == "loss"]
    assert loss == [(1.0, 0), (0.5, 1), (1 / 3, 2)]
    assert "broken" not in metrics
    assert (left["parameters"]["who"], left["parameters"]["C"]) == ("author", "100")
    assert (bench.place / "output" / "plots" / "report-page.html").read_text() == "<p>seen</p>"
    said = bench.ask(
        """
        import mlflow, pandas
        from mlflow.models import Model
        served, own = mlflow.pyfunc.load_model(composed), mlflow.sklearn.load_model(composed)
        frame = pandas.DataFrame({"price": [0.0, 3.0]})
        described = Model.load(composed)
        sys.path.append(client)
        from headrace.consumer import load
        answers = [one.predict(frame).tolist() for one in (served, own, load(composed))]
        print(json.dumps([*answers, described.run_id, described.metadata]))
        """
    )
    assert said == [[0, 1], [0, 1], [0, 1], None, {"headrace.model": "shop", "headrace.run": "17"}]
