"""What `predict` is given, seen while the author's `evaluate` calls it: the input example and the signature. Loaded by the harness.

Known are pandas DataFrames, numpy arrays and lists of dictionaries; of anything else there is no example, and nothing fails for it.
"""

from __future__ import annotations

import copy
import json
import math
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any, Callable

_ROWS = 5
_MOST_COLUMNS = 1_000
_MOST_BYTES = 1_000_000
_PATIENCE_S = 2.0
_METHODS = ("predict", "predict_proba")

Columns = list[dict[str, Any]]


class Example:
    """The first rows of an input, and its columns as MLflow describes them. `takes` is "frame", "array" or "records"."""

    def __init__(self, rows: Any, takes: str, columns: Columns) -> None:
        self.rows = rows
        self.takes = takes
        self.columns = columns

    @classmethod
    def of(cls, given: Any) -> Example | None:
        """None for what is no table that can be described."""
        if _is(given, "pandas", "DataFrame"):
            names = [str(name) for name in given.columns]
            if len(set(names)) < len(names) or len(names) > _MOST_COLUMNS:
                return None
            return cls(given.head(_ROWS).copy(), "frame", [_column(str(name), given[name]) for name in given.columns])
        if _is(given, "numpy", "ndarray") and given.ndim > 0 and given.dtype.kind in "iufb":
            return cls(given[:_ROWS].copy(), "array", [_tensor(given)])
        if isinstance(given, list) and given and all(isinstance(row, dict) for row in given):
            return _of_records(given)
        return None

    def needed(self, predict: Callable[[Any], Any]) -> Example:
        """Without the columns that `predict` does without: who hands it whole rows of a table hands it the label too."""
        until = time.monotonic() + _PATIENCE_S
        found, answer = self, _repeated(predict, self.rows)
        for column in self.columns if self.takes != "array" else ():
            if answer is not None and len(found.columns) > 1 and time.monotonic() < until:
                less = found._without(column["name"])
                if _repeated(predict, less.rows) == answer:
                    found = less
        return found

    def _without(self, name: str) -> Example:
        columns = [column for column in self.columns if column["name"] != name]
        if self.takes == "records":
            rows: Any = [{key: value for key, value in row.items() if key != name} for row in self.rows]
        else:
            rows = self.rows[[one for one in self.rows.columns if str(one) != name]]
        return Example(rows, self.takes, columns)

    def write(self, bundle: Path, answer: Any) -> None:
        """signature.json and input_example.json; `answer` is what `predict` gives for the rows."""
        signature = {"inputs": self.columns, "outputs": _outputs(answer)}
        (bundle / "signature.json").write_text(json.dumps(signature, indent=1) + "\n", encoding="utf-8")
        content = json.dumps(self._content(), indent=1, allow_nan=False)
        if len(content) <= _MOST_BYTES:
            (bundle / "input_example.json").write_text(content + "\n", encoding="utf-8")

    def _content(self) -> dict[str, Any]:
        if self.takes == "array":
            return {"inputs": _nested(self.rows.tolist())}
        names = [column["name"] for column in self.columns]
        if self.takes == "records":
            return {"columns": names, "data": [[_plain(row.get(name)) for name in names] for row in self.rows]}
        rows = self.rows.itertuples(index=False, name=None)
        return {"columns": names, "data": [[_plain(value) for value in row] for row in rows]}


@contextmanager
def watched(model: Any, entry: str | None, take: Callable[[Any], None]) -> Iterator[None]:
    """While the block lasts `take` is told what is given to the entry `module:function`, or else to the model's own `predict`."""
    undo = _watch_function(entry, take) if entry else _watch_methods(model, take)
    try:
        yield
    finally:
        for owner, name, before in undo:
            if before is None:
                delattr(owner, name)
            else:
                setattr(owner, name, before)


def _watch_function(entry: str, take: Callable[[Any], None]) -> list[tuple[Any, str, Any]]:
    """In each module that has it under its name: one may import it from another."""
    home, _, name = entry.partition(":")
    original = getattr(sys.modules[home], name)

    @wraps(original)
    def predict(model: Any, *given: Any, **named: Any) -> Any:
        take(next(iter((*given, *named.values())), None))
        return original(model, *given, **named)

    modules = [one for one in list(sys.modules.values()) if getattr(one, "__dict__", {}).get(name) is original]
    for module in modules:
        setattr(module, name, predict)
    return [(module, name, original) for module in modules]


def _watch_methods(model: Any, take: Callable[[Any], None]) -> list[tuple[Any, str, Any]]:
    """On the class, so that nothing is different about the object itself, which `evaluate` may pickle."""
    import inspect  # 8 ms, which a model without an evaluation need not wait for

    undo: list[tuple[Any, str, Any]] = []
    for name in _METHODS:
        original = inspect.getattr_static(type(model), name, None)
        before = vars(type(model)).get(name)
        try:
            if hasattr(original, "__get__"):
                setattr(type(model), name, _Watched(original, name, model, take))
                undo.append((type(model), name, before))
        except (TypeError, AttributeError):  # a class that takes no attributes
            continue
    return undo


class _Watched:
    """A method in the place of the original, which it asks for everything."""

    def __init__(self, original: Any, name: str, model: Any, take: Callable[[Any], None]) -> None:
        self._original = original
        self._name = name
        self._model = model
        self._take = take

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        bound = self._original.__get__(instance, owner)
        return _Bound(bound, self._name, instance, self._take) if instance is self._model else bound


class _Bound:
    def __init__(self, bound: Any, name: str, instance: Any, take: Callable[[Any], None]) -> None:
        self._bound = bound
        self._name = name
        self._instance = instance
        self._take = take

    def __call__(self, *given: Any, **named: Any) -> Any:
        self._take(next(iter((*given, *named.values())), None))
        return self._bound(*given, **named)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bound, name)

    def __reduce__(self) -> Any:
        return getattr, (self._instance, self._name)


def _repeated(predict: Callable[[Any], Any], rows: Any) -> str | None:
    """What it answers, as text that can be compared; None if it fails, whatever the reason."""
    try:
        answer = predict(copy.deepcopy(rows))
    except Exception:  # noqa: BLE001 - of the author's code
        return None
    if hasattr(answer, "columns"):
        answer = answer.to_dict("list")
    return repr(answer.tolist() if hasattr(answer, "tolist") else answer)


def _of_records(given: list[dict[Any, Any]]) -> Example | None:
    names = list(dict.fromkeys(name for row in given for name in row))
    values = [value for row in given[:_ROWS] for value in row.values()]
    if not all(isinstance(name, str) for name in names) or len(names) > _MOST_COLUMNS:
        return None
    if any(isinstance(value, (dict, list, tuple, set)) or hasattr(value, "shape") for value in values):
        return None
    columns = [_column(name, [row.get(name) for row in given]) for name in names]
    return Example([dict(row) for row in given[:_ROWS]], "records", columns)


def _column(name: str, column: Any) -> dict[str, Any]:
    lacks = column.isna().any() if hasattr(column, "isna") else any(_plain(value) is None for value in column)
    kind = _type(column)
    if not lacks:
        return {"name": name, "type": kind}
    return {"name": name, "type": "double" if kind == "long" else kind, "required": False}  # NaN is no whole number


def _tensor(array: Any) -> dict[str, Any]:
    return {"type": "tensor", "dtype": array.dtype.name, "shape": [-1, *array.shape[1:]]}


def _outputs(answer: Any) -> Columns:
    """MLflow's columns for what predict answers; none where it is no table, array or list of plain values."""
    if hasattr(answer, "columns"):
        return [{"name": str(name), "type": _type(answer[name])} for name in answer.columns]
    shape = getattr(answer, "shape", None)
    if shape is not None and len(shape) > 1:
        return [_tensor(answer)] if _is(answer, "numpy", "ndarray") and answer.dtype.kind in "iufb" else []
    if shape is None and (not isinstance(answer, list) or any(isinstance(one, (list, dict)) for one in answer)):
        return []
    return [{"type": _type(answer)}] if shape is None or len(shape) == 1 else []


def _type(column: Any) -> str:
    """MLflow's name for the type of a pandas or numpy column, or a list."""
    kind = getattr(getattr(column, "dtype", None), "kind", "O")
    known = {"i": "long", "u": "long", "f": "double", "b": "boolean", "M": "datetime"}
    if kind in known:
        return known[kind]
    kinds = {type(value) for value in column if _plain(value) is not None}
    if kinds and kinds <= {int, float}:
        return "double" if float in kinds else "long"
    return "boolean" if kinds == {bool} else "string"


def _plain(value: Any) -> Any:
    if hasattr(value, "isoformat"):
        return value.isoformat() if value == value else None
    value = value.item() if hasattr(value, "item") else value
    if value is None or value != value or (isinstance(value, float) and math.isinf(value)):
        return None
    return value if isinstance(value, (bool, int, float, str)) else str(value)


def _nested(value: Any) -> Any:
    return [_nested(one) for one in value] if isinstance(value, list) else _plain(value)


def _is(value: Any, library: str, name: str) -> bool:
    """Without importing the library."""
    kinds = type(value).__mro__
    return any(kind.__name__ == name and kind.__module__.partition(".")[0] == library for kind in kinds)
