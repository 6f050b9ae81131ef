"""How saved files become a model again. Standard library only; copied into every model, so that it needs no Headrace to load.

A saved model is a directory: `headrace.json` (format, Python, entry points) and what the format keeps beside it. `harness_save.py` writes it:

joblib       model.joblib          scikit-learn's estimators; of XGBoost's and LightGBM's the trees also as booster.ubj, booster.txt
xgboost      model.ubj             an xgboost.Booster
lightgbm     model.txt             a lightgbm.Booster
torch        state.pt              a module's state_dict; built again from `class` and `arguments`, else from module.pt, the whole of it
torchscript  model.pt
keras        model.keras
onnx         model.onnx            as an onnxruntime.InferenceSession, where that is installed
pretrained   pretrained/           what save_pretrained(path) wrote; read by its class's from_pretrained(path)
saved        saved                 what save(path) wrote; read by the `load` entry, or by its class's own load(path)
cloudpickle  model.pkl             anything else, where cloudpickle is installed
pickle       model.pkl             anything else, without it
own          whatever was written into job.output; read by the `load` entry, else given as its path
pickled      model.pkl             what a command pickled: read by joblib where that is installed, which reads plain pickles too
mlflow       mlflow/               a model that a command logged to MLflow, with its own MLmodel

Loading runs the author's code: do it only where that is meant.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import pickle
import sys
from functools import reduce
from pathlib import Path
from typing import Any

_DESCRIPTION = "headrace.json"


class Loaded:
    """A model that serves: `predict(frame)`. `model` is the author's own object."""

    def __init__(self, model: Any, described: dict[str, Any]) -> None:
        self.model = model
        self._described = described
        self._function = find(described["predict"]) if described.get("predict") else None

    def predict(self, frame: Any) -> Any:
        if self._described.get("takes") == "records" and hasattr(frame, "columns"):
            frame = frame.to_dict("records")  # MLflow makes a DataFrame of a list of dictionaries
        if self._function is not None:
            return self._function(self.model, frame)
        if self._described["format"] == "xgboost" and hasattr(frame, "shape"):
            frame = importlib.import_module("xgboost").DMatrix(frame)
        if not hasattr(self.model, "predict"):
            raise TypeError(
                f'this version is files only ({self.model}): nothing says how they predict; add predict = "module:function" to [tool.headrace]'
            )
        return self.model.predict(frame)


def load(directory: str | Path) -> Loaded:
    """The saved model of `directory`; its source must be importable already."""
    place = Path(directory)
    described = json.loads((place / _DESCRIPTION).read_text(encoding="utf-8"))
    return Loaded(read(place, described), described)


def _load_pyfunc(path: str) -> Loaded:
    """What MLflow calls: `path` holds `model/`, a saved model, and `source/`, the files that it was trained with."""
    data = Path(path)
    put_on_path([data / "source" / "src", data / "source"])
    return load(data / "model")


def find(entry: str) -> Any:
    """The object behind `module:name`, or `module:Outer.name`."""
    module, _, name = entry.partition(":")
    return reduce(getattr, name.split("."), importlib.import_module(module))


def put_on_path(roots: list[Path]) -> None:
    """Make packages under `roots` importable: before installed ones, whose stray `utils` or `tests` would hide the author's,
    but after the standard library, which a file named `random.py` must not hide.
    """
    installed = (
        index for index, entry in enumerate(sys.path) if Path(entry).name in ("site-packages", "dist-packages")
    )
    index = next(installed, len(sys.path))
    sys.path[index:index] = [str(root) for root in roots if root.is_dir() and str(root) not in sys.path]
    importlib.invalidate_caches()


def read(place: Path, described: dict[str, Any]) -> Any:
    """The object that `described`, the content of headrace.json, says how to read."""
    file = place / described["file"] if described.get("file") else place
    reader = _READERS.get(described["format"])
    if reader is None:
        raise LookupError(f"this loader knows no format {described['format']!r}; it comes from a newer Headrace")
    return reader(file, described)


def is_installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def _joblib(file: Path, _: dict[str, Any]) -> Any:
    return importlib.import_module("joblib").load(file)


def _pickle(file: Path, _: dict[str, Any]) -> Any:
    with file.open("rb") as stream:
        return pickle.load(stream)


def _pickled(file: Path, described: dict[str, Any]) -> Any:
    return (_joblib if is_installed("joblib") else _pickle)(file, described)


def _mlflow(place: Path, _: dict[str, Any]) -> Any:
    return importlib.import_module("mlflow.pyfunc").load_model(str(place))


def _booster(library: str) -> Any:
    return lambda file, _: importlib.import_module(library).Booster(model_file=str(file))


def _torch(file: Path, described: dict[str, Any]) -> Any:
    torch = importlib.import_module("torch")
    if described.get("class") is None:
        return torch.load(file.parent / "module.pt", map_location="cpu", weights_only=False).eval()
    module = find(described["class"])(**described["arguments"])
    module.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    return module.eval()


def _torchscript(file: Path, _: dict[str, Any]) -> Any:
    return importlib.import_module("torch").jit.load(str(file), map_location="cpu").eval()


def _keras(file: Path, described: dict[str, Any]) -> Any:
    for module in described["imports"]:  # where the author's own layers register themselves
        importlib.import_module(module)
    return importlib.import_module(described["library"]).models.load_model(str(file))


def _onnx(file: Path, _: dict[str, Any]) -> Any:
    if not is_installed("onnxruntime"):
        return importlib.import_module("onnx").load(str(file))
    runtime = importlib.import_module("onnxruntime")
    return runtime.InferenceSession(str(file), providers=runtime.get_available_providers())


def _pretrained(file: Path, described: dict[str, Any]) -> Any:
    return find(described["class"]).from_pretrained(str(file))


def _saved(file: Path, described: dict[str, Any]) -> Any:
    read_back = find(described["load"]) if described.get("load") else find(described["class"]).load
    return read_back(str(file))


def _own(place: Path, described: dict[str, Any]) -> Any:
    return find(described["load"])(place) if described.get("load") else place


_READERS = {
    "joblib": _joblib,
    "pickle": _pickle,
    "cloudpickle": _pickle,
    "xgboost": _booster("xgboost"),
    "lightgbm": _booster("lightgbm"),
    "torch": _torch,
    "torchscript": _torchscript,
    "keras": _keras,
    "onnx": _onnx,
    "pretrained": _pretrained,
    "saved": _saved,
    "own": _own,
    "pickled": _pickled,
    "mlflow": _mlflow,
}
