"""PyTorch's models as the harness keeps them, in an environment with torch: `make test-torch`. Not collected by `make test`: the wheels are large.

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
    subprocess.run([find_uv(), "pip", "install", "--quiet", *links, "--python", place, "torch", "numpy"], check=True)
    return place / "bin" / "python"


def run(place: Path, python: Path, code: str) -> Any:
    (place / "shop.py").write_text(textwrap.dedent(NET))
    head = (
        f"import json, sys\nsys.path[:0] = [{str(HOME)!r}, {str(place)!r}]\nplace = {str(place / 'model')!r}\n"
        "import harness_save as saving, loader, shop, torch\nrows = [[1.0, 2.0], [3.0, 4.0]]\n"
    )
    done = subprocess.run([python, "-c", head + textwrap.dedent(code)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    ("made", "built_by"),
    [
        ("shop.Told(5, True)", "shop:Told"),
        ("shop.Plain()", "shop:Plain"),
        ("shop.Net(6, loud=True)", None),
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
        model = torch.jit.trace(shop.Plain().eval(), torch.tensor(rows))
        saving.save(model, place, "shop:predict")
        print(json.dumps([shop.predict(model, rows).tolist(), loader.load(place).predict(rows).tolist(), json.load(open(place + "/headrace.json"))["format"]]))
        """,
    )
    assert said[0] == said[1]
    assert said[2] == "torchscript"
