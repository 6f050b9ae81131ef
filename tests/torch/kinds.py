"""Models of PyTorch, Keras, XGBoost and ONNX as the harness keeps them, in a real environment: `make test-torch`. Not collected by `make test`:
the wheels are large.

TORCH_FIND_LINKS may name a directory or page with smaller wheels than the index has, for the CPU only.
"""

from __future__ import annotations

import json
import os
import subprocess
import textwrap
from pathlib import Path
from typing import Any

import headrace
import pytest
from headrace.environment import find_uv

HOME = Path(headrace.__file__).parent
NET = """
    import torch
    class Net(torch.nn.Module):
        def __init__(self, width: int = 4, loud: bool = False) -> None:
            super().__init__()
            self.layers = torch.nn.Sequential(torch.nn.Linear(2, width), torch.nn.Dropout(), torch.nn.Linear(width, 1))
            self.loud = loud
        def forward(self, rows): return self.layers(rows) * (10 if self.loud else 1)
    class Told(Net):
        def __init__(self, width, loud):
            super().__init__(width, loud)
            self.init_arguments = {"width": width, "loud": loud}
    class Tuned(Net):
        hparams = {"learning_rate": 0.1}
    class Plain(Net):
        def __init__(self): super().__init__(3)
    def predict(model, rows):
        with torch.no_grad():
            return model(torch.tensor(rows)).numpy()[:, 0]
"""


@pytest.fixture(scope="session")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("torch") / "environment"
    links = ["--find-links", found] if (found := os.environ.get("TORCH_FIND_LINKS")) else []
    subprocess.run([find_uv(), "venv", "--quiet", place], check=True)
    packages = ["torch", "numpy", "keras", "xgboost-cpu", "onnx", "onnxruntime"]
    subprocess.run([find_uv(), "pip", "install", "--quiet", *links, "--python", place, *packages], check=True)
    return place / "bin" / "python"


def run(place: Path, python: Path, code: str, source: str = NET) -> Any:
    (place / "shop.py").write_text(textwrap.dedent(source))
    head = (
        f"import json, sys\nsys.path[:0] = [{str(HOME)!r}, {str(place)!r}]\nplace = {str(place / 'model')!r}\n"
        "import harness_save as saving, loader\nrows = [[1.0, 2.0], [3.0, 4.0]]\n"
    )
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(place), "KERAS_BACKEND": "torch"}
    done = subprocess.run(
        [python, "-c", head + textwrap.dedent(code)], capture_output=True, text=True, timeout=120, env=environment
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    ("made", "built_by"),
    [
        ("shop.Told(5, True)", "shop:Told"),
        ("shop.Plain()", "shop:Plain"),
        ("shop.Net(6, loud=True)", None),
        ("shop.Tuned()", None),
        ("torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Dropout(), torch.nn.Linear(3, 1))", None),
    ],
)
def test_a_module_answers_as_before_and_its_state_is_torchs_own(
    tmp_path: Path, python: Path, made: str, built_by: str | None
) -> None:
    said = run(
        tmp_path,
        python,
        f"""
        import shop, torch
        model = {made}
        saving.save(model, place, "shop:predict")
        loaded = loader.load(place)
        state = torch.load(place + "/state.pt", weights_only=True)
        print(json.dumps({{
            "before": shop.predict(model.eval(), rows).tolist(), "after": loaded.predict(rows).tolist(),
            "described": json.load(open(place + "/headrace.json")), "same": all(torch.equal(state[key], value) for key, value in model.state_dict().items()),
        }}))
        """,
    )
    assert said["before"] == said["after"]
    assert said["same"]
    assert (said["described"]["format"], said["described"]["class"]) == ("torch", built_by)
    assert (tmp_path / "model" / "module.pt").exists() == (built_by is None)


def test_torchscript_needs_no_source(tmp_path: Path, python: Path) -> None:
    said = run(
        tmp_path,
        python,
        """
        import shop, torch
        model = torch.jit.trace(shop.Plain().eval(), torch.tensor(rows))
        saving.save(model, place, "shop:predict")
        print(json.dumps([shop.predict(model, rows).tolist(), loader.load(place).predict(rows).tolist(), json.load(open(place + "/headrace.json"))["format"]]))
        """,
    )
    assert said[0] == said[1]
    assert said[2] == "torchscript"


def test_keras_finds_the_authors_own_layers_again(tmp_path: Path, python: Path) -> None:
    source = """
        import keras
        @keras.saving.register_keras_serializable()
        class Twice(keras.layers.Layer):
            def call(self, rows): return 2 * rows
    """
    save = """
        import keras, numpy, shop
        model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1), shop.Twice()])
        saving.save(model, place, None)
        print(json.dumps(model.predict(numpy.array(rows), verbose=0).tolist()))
    """
    load = """
        import numpy
        print(json.dumps(loader.load(place).model.predict(numpy.array(rows), verbose=0).tolist()))
    """
    assert run(tmp_path, python, save, source) == run(tmp_path, python, load, source)
    assert (tmp_path / "model" / "model.keras").is_file()


def test_an_xgboost_booster_is_its_own_file_and_serves_frames_and_arrays(tmp_path: Path, python: Path) -> None:
    code = """
        import numpy, xgboost
        model = xgboost.train({"objective": "binary:logistic"}, xgboost.DMatrix(numpy.array(rows * 5), [0, 1] * 5), 3)
        saving.save(model, place, None)
        given, loaded = numpy.array(rows), loader.load(place)
        own = xgboost.Booster(model_file=place + "/model.ubj")
        print(json.dumps([one.tolist() for one in (model.predict(xgboost.DMatrix(given)), loaded.predict(given), own.predict(xgboost.DMatrix(given)))]))
    """
    said = run(tmp_path, python, code, "")
    assert said[0] == said[1] == said[2]
    assert said[0][0] < said[0][1]


def test_an_onnx_model_comes_back_as_a_session(tmp_path: Path, python: Path) -> None:
    source = """
        import numpy
        def predict(session, rows): return session.run(None, {"x": numpy.array(rows, dtype="float32")})[0]
    """
    code = """
        from onnx import TensorProto, helper
        place_of = lambda name: helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, 2])
        graph = helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "g", [place_of("x")], [place_of("y")])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        saving.save(model, place, "shop:predict")
        print(json.dumps(loader.load(place).predict(rows).tolist()))
    """
    assert run(tmp_path, python, code, source) == [[-1.0, -2.0], [-3.0, -4.0]]
