"""Loading a pulled version in this process, beside one that is serving."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import threading
from pathlib import Path
from typing import Any, Set

from headrace.connection import Problem

_one_at_a_time = threading.Lock()
_loaded: Set[Path] = set()


def load(path: Path) -> Any:
    """The model of a pulled version: it has `predict(frame)`. Needs no MLflow, unless the author's script logged it there itself; an older
    one loaded here goes on serving.

    It runs the version's code: give it only what `pull` has checked. Raises `Problem` where a requirement is missing.
    """
    place = Path(path).resolve()
    loader = place / "code" / "headrace_loader.py"
    logged = not loader.is_file() and (place / "MLmodel").is_file()
    if not loader.is_file() and not logged:
        raise Problem(f"{place} holds no model (no code/headrace_loader.py)", "fetch one with `headrace pull`")
    with _one_at_a_time:
        _forget_code()
        _loaded.add(place)
        try:
            if logged:
                return importlib.import_module("mlflow.pyfunc").load_model(str(place))
            return _run(loader)._load_pyfunc(str(place / "data"))
        except ImportError as error:
            advice = f"install what it was trained with: pip install -r {place / 'requirements.txt'}"
            raise Problem(f"{place} can't be loaded here: {error}", advice) from error


def _forget_code() -> None:
    """Make the next import of the author's package find the next version's files, not those of one that serves.

    What serves keeps its functions and their globals; only an import inside its `predict` would meet the newer code.
    """
    for name, module in list(sys.modules.items()):
        if _is_loaded(getattr(module, "__file__", None)):
            del sys.modules[name]
    sys.path[:] = [entry for entry in sys.path if not _is_loaded(entry)]
    importlib.invalidate_caches()


def _is_loaded(file: object) -> bool:
    return isinstance(file, str) and not _loaded.isdisjoint(Path(file).parents)


def _run(loader: Path) -> Any:
    """The loader as a module of its own, under a name that no other version has."""
    spec = importlib.util.spec_from_file_location(f"headrace_loader_of_{abs(hash(str(loader)))}", loader)
    if spec is None or spec.loader is None:
        raise ImportError(f"{loader} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
