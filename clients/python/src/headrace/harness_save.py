"""How a trained model becomes files, by what it is. Loaded by the harness.

A class is recognised by its name and its module's; no library is imported that the author has not imported. The formats, and how each
is read, stand in `loader.py`.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import pickle
import platform
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

_DESCRIPTION = "headrace.json"
_ADVICE = "return an object that can be pickled, or write it into job.output yourself and return None"

Described = dict[str, Any]


class CannotSave(Exception):
    """The model cannot be made into files that serve, or not be read back from them; the message says what to do."""


def save(model: Any, directory: str | Path, predict: str | None, load: str | None = None) -> None:
    """Write `model` into `directory`; None if it is there already. Entry points are `module:function`. Raises `CannotSave`."""
    place = Path(directory)
    if predict is None and not callable(getattr(model, "predict", None)):
        what = "what train() wrote" if model is None else f"a {type(model).__name__}"
        raise CannotSave(f'{what} has no predict(frame); add predict = "module:function" to [tool.headrace]')
    if model is None and (not place.is_dir() or not any(place.iterdir())):
        raise CannotSave("train() returned None and wrote nothing into job.output; return the model, or save it there")
    place.mkdir(parents=True, exist_ok=True)
    describe(place, {"format": "own"} if model is None else _write(model, place, load), predict, load)


def describe(place: Path, described: Described, predict: str | None, load: str | None) -> None:
    """Write headrace.json."""
    told = {**described, "python": platform.python_version(), "predict": predict, "load": load}
    (place / _DESCRIPTION).write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")


def amend(place: Path, **more: Any) -> None:
    """Add to headrace.json."""
    described = json.loads((place / _DESCRIPTION).read_text(encoding="utf-8"))
    (place / _DESCRIPTION).write_text(json.dumps({**described, **more}, indent=2) + "\n", encoding="utf-8")


def cannot_load(place: Path, error: BaseException) -> CannotSave:
    """For what was saved and cannot be read back."""
    described = json.loads((place / _DESCRIPTION).read_text(encoding="utf-8"))
    what = " ".join(str(described[key]) for key in ("format", "file") if described.get(key))
    said = f"{type(error).__name__}: {error}"[:1500]
    advice = (
        "mend what fails there, or write it into job.output yourself, return None, and name load and predict entries"
    )
    if isinstance(error, AttributeError) and "__main__" in str(error):
        advice = "its class stands in the script itself; move it into a module of its own and import it from there"
    if isinstance(error, ImportError) and described["format"] == "mlflow":
        advice = "it ships without your repository: log it with code_paths=[…] for the modules of yours that it needs"
    return CannotSave(f"the model was saved ({what}) but cannot be loaded back: {said}; {advice}")


def _write(model: Any, place: Path, load: str | None) -> Described:
    try:
        writer = _writer(model)
        if writer is not None:
            return writer(model, place)
        if _says_how(model, load):
            model.save(str(place / "saved"))
            return {"format": "saved", "file": "saved", "class": None if load else _path(type(model))}
        if hasattr(model, "get_params") and "joblib" in sys.modules:
            return _joblib(model, place)
        name = "cloudpickle" if importlib.util.find_spec("cloudpickle") is not None else "pickle"
        with (place / "model.pkl").open("wb") as stream:
            importlib.import_module(name).dump(model, stream, protocol=4)
        return {"format": name, "file": "model.pkl"}
    except (pickle.PicklingError, TypeError, AttributeError, ValueError, NotImplementedError) as error:
        raise CannotSave(f"a {type(model).__name__} cannot be saved ({error}); {_ADVICE}") from error


def _writer(model: Any) -> Callable[[Any, Path], Described] | None:
    """The library's own way, if the model is of a library that has one."""
    if _is_importable(type(model)) and hasattr(model, "save_pretrained") and hasattr(type(model), "from_pretrained"):
        return _pretrained
    for kind in type(model).__mro__:
        root = kind.__module__.partition(".")[0]
        if (root, kind.__name__) in _EXACT and kind is type(model):
            return _EXACT[root, kind.__name__]
        if (root, kind.__name__) in _KINDS:
            return _KINDS[root, kind.__name__]
    return None


def _says_how(model: Any, load: str | None) -> bool:
    """Whether it has `save(path)`, and something reads that back: the `load` entry, or a `load(path)` of its class."""
    if not callable(getattr(model, "save", None)):
        return False
    own = next((vars(kind)["load"] for kind in type(model).__mro__ if "load" in vars(kind)), None)
    return load is not None or (isinstance(own, (classmethod, staticmethod)) and _is_importable(type(model)))


def _joblib(model: Any, place: Path) -> Described:
    importlib.import_module("joblib").dump(model, place / "model.joblib")
    names = {f"{kind.__module__.partition('.')[0]}.{kind.__name__}" for kind in type(model).__mro__}
    if "xgboost.XGBModel" in names:
        model.get_booster().save_model(str(place / "booster.ubj"))
    if "lightgbm.LGBMModel" in names:
        model.booster_.save_model(str(place / "booster.txt"))
    return {"format": "joblib", "file": "model.joblib"}


def _booster(library: str, file: str) -> Callable[[Any, Path], Described]:
    def write(model: Any, place: Path) -> Described:
        model.save_model(str(place / file))
        return {"format": library, "file": file}

    return write


def _torch(model: Any, place: Path) -> Described:
    """The state, and how to build what it belongs to: by the class, if it is known with which arguments; else the whole module."""
    torch = sys.modules["torch"]
    torch.save(model.state_dict(), place / "state.pt")
    described: Described = {"format": "torch", "file": "state.pt", "class": None, "arguments": _arguments(model)}
    if described["arguments"] is not None and _is_importable(type(model)) and _builds(model, described["arguments"]):
        return {**described, "class": _path(type(model))}
    torch.save(model, place / "module.pt")
    return described


def _builds(module: Any, arguments: Described) -> bool:
    """Whether its class takes them, and what comes of it takes the state: `hparams` may be about something else."""
    try:
        type(module)(**arguments).load_state_dict(module.state_dict())
        return True
    except Exception:  # noqa: BLE001 - of the author's constructor
        return False


def _arguments(module: Any) -> Described | None:
    """What the module's class was called with: as `init_arguments` says, or Lightning's `hparams`; nothing, if it takes nothing."""
    told = getattr(module, "init_arguments", None)
    if told is None:
        told = getattr(module, "hparams", None)
    if told is None:
        import inspect  # torch has imported it long ago

        return None if inspect.signature(type(module)).parameters else {}
    try:
        arguments: Described = json.loads(json.dumps(dict(told), allow_nan=False))
        return arguments
    except (TypeError, ValueError):
        return None


def _torchscript(model: Any, place: Path) -> Described:
    sys.modules["torch"].jit.save(model, str(place / "model.pt"))
    return {"format": "torchscript", "file": "model.pt"}


def _keras(library: str) -> Callable[[Any, Path], Described]:
    def write(model: Any, place: Path) -> Described:
        model.save(str(place / "model.keras"))
        import zipfile  # only here: every import is waited for

        with zipfile.ZipFile(place / "model.keras") as archive:
            named = set(_modules(json.loads(archive.read("config.json"))))
        own = sorted(
            name for name in named if name.partition(".")[0] not in (library, "keras", "tensorflow", "builtins")
        )
        return {"format": "keras", "file": "model.keras", "library": library, "imports": own}

    return write


def _modules(config: Any) -> Iterator[str]:
    """Those whose classes a Keras model is made of."""
    if isinstance(config, dict) and isinstance(config.get("module"), str):
        yield config["module"]
    if isinstance(config, (dict, list)):
        for inner in config.values() if isinstance(config, dict) else config:
            yield from _modules(inner)


def _onnx(model: Any, place: Path) -> Described:
    (place / "model.onnx").write_bytes(model.SerializeToString())
    return {"format": "onnx", "file": "model.onnx"}


def _pretrained(model: Any, place: Path) -> Described:
    model.save_pretrained(str(place / "pretrained"))
    return {"format": "pretrained", "file": "pretrained", "class": _path(type(model))}


def _is_importable(kind: type) -> bool:
    """Whether another process finds the class by its name."""
    return kind.__module__ != "__main__" and "<locals>" not in kind.__qualname__


def _path(kind: type) -> str:
    return f"{kind.__module__}:{kind.__qualname__}"


# Of the library itself, not an author's class that extends it: the native file would forget what that adds.
_EXACT = {
    ("xgboost", "Booster"): _booster("xgboost", "model.ubj"),
    ("lightgbm", "Booster"): _booster("lightgbm", "model.txt"),
    ("onnx", "ModelProto"): _onnx,
}
_KINDS = {
    ("torch", "ScriptModule"): _torchscript,
    ("torch", "Module"): _torch,
    ("keras", "Model"): _keras("keras"),
    ("tf_keras", "Model"): _keras("tf_keras"),
}
