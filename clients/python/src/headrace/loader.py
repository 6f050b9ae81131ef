"""How a trained model becomes files and a model again. Standard library only; copied into every model, so that it needs no Headrace to load.

A saved model is a directory: `headrace.json` (format, Python, entry points) and what the format keeps beside it:

joblib       model.joblib     objects with get_params, as scikit-learn's, where joblib is installed
cloudpickle  model.pkl        anything else, where cloudpickle is installed
pickle       model.pkl        anything else, without it
own          whatever train() wrote into job.output; read by the `load` entry, else given as its path

Loading runs the author's code: do it only where that is meant.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import pickle
import platform
import sys
from pathlib import Path
from typing import Any

_DESCRIPTION = "headrace.json"


class CannotSave(Exception):
    """The model cannot be made into files that serve; the message says what to do."""


class Loaded:
    """A model that serves: `predict(frame)`. `model` is the author's own object."""

    def __init__(self, model: Any, predict: str | None) -> None:
        self.model = model
        self._function = find(predict) if predict else None

    def predict(self, frame: Any) -> Any:
        return self.model.predict(frame) if self._function is None else self._function(self.model, frame)


def save(model: Any, directory: str | Path, predict: str | None, load: str | None = None) -> None:
    """Write `model` into `directory`; None if it is there already. Entry points are `module:function`. Raises `CannotSave`."""
    place = Path(directory)
    if predict is None and not callable(getattr(model, "predict", None)):
        what = "what train() wrote" if model is None else f"a {type(model).__name__}"
        raise CannotSave(f'{what} has no predict(frame); add predict = "module:function" to [tool.headrace]')
    if model is None:
        if not place.is_dir() or not any(place.iterdir()):
            raise CannotSave(
                "train() returned None and wrote nothing into job.output; return the model, or save it there"
            )
        described = {"format": "own"}
    else:
        place.mkdir(parents=True, exist_ok=True)
        described = _dump(model, place)
    told = {**described, "python": platform.python_version(), "predict": predict, "load": load}
    (place / _DESCRIPTION).write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")


def load(directory: str | Path) -> Loaded:
    """The saved model of `directory`; its source must be importable already."""
    place = Path(directory)
    described = json.loads((place / _DESCRIPTION).read_text(encoding="utf-8"))
    return Loaded(_read(place, described), described["predict"])


def _load_pyfunc(path: str) -> Loaded:
    """What MLflow calls: `path` holds `model/`, a saved model, and `source/`, the files that it was trained with."""
    data = Path(path)
    put_on_path([data / "source" / "src", data / "source"])
    return load(data / "model")


def find(entry: str) -> Any:
    """The object behind `module:function`."""
    module, _, name = entry.partition(":")
    return getattr(importlib.import_module(module), name)


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


def _dump(model: Any, place: Path) -> dict[str, str]:
    try:
        if hasattr(model, "get_params") and _is_installed("joblib"):
            importlib.import_module("joblib").dump(model, place / "model.joblib")
            return {"format": "joblib", "file": "model.joblib"}
        name = "cloudpickle" if _is_installed("cloudpickle") else "pickle"
        with (place / "model.pkl").open("wb") as stream:
            importlib.import_module(name).dump(model, stream, protocol=4)
        return {"format": name, "file": "model.pkl"}
    except (pickle.PicklingError, TypeError, AttributeError) as error:
        advice = "return an object that can be pickled, or write it into job.output yourself and return None"
        raise CannotSave(f"a {type(model).__name__} cannot be saved ({error}); {advice}") from error


def _read(place: Path, described: dict[str, Any]) -> Any:
    if described["format"] == "own":
        return find(described["load"])(place) if described["load"] else place
    if described["format"] == "joblib":
        return importlib.import_module("joblib").load(place / described["file"])
    with (place / described["file"]).open("rb") as stream:
        return pickle.load(stream)


def _is_installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None
