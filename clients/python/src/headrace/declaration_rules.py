"""What may stand in `[project]` and `[tool.headrace]`: the platform's rules as far as the standard library goes.

A test holds what is taken and refused here against the platform's own reader.
"""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from headrace import requirements
from headrace.installer import EnvironmentRefused

LIMITS = ("min", "max", "max_drop", "max_drop_percent", "max_rise", "max_rise_percent")
DURATION = re.compile(r"([0-9]{1,9})(ms|s|m|h|d)")
UNIT_MS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_LONGEST_MS = 3650 * UNIT_MS["d"]
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_METRIC = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_./ -]{0,98}[A-Za-z0-9_])?")
_PARAMETER = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,99}")
_WORD = r"[A-Za-z_][A-Za-z0-9_]*"
_ENTRY = re.compile(rf"(?=.{{3,300}}$){_WORD}(\.{_WORD})*:{_WORD}", re.ASCII)
_HIGHEST = {"max_drop_percent": 100, "max_rise_percent": 10_000}


def tool(own: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with `[tool.headrace]`."""
    yield from _keys("tool.headrace", own, _TOOL)
    if "train" not in own and "command" not in own:
        yield 'tool.headrace.train: is missing (module:function); or add command = ["sh", "train.sh"]'
    for key, beside in (("command", "train"), ("evaluate_command", "evaluate")):
        if key in own and beside in own:
            yield f"tool.headrace.{key}: stands beside {beside}; keep one of them"
    if not own.get("datasets"):
        yield "tool.headrace.datasets: is missing; add a table [tool.headrace.datasets.NAME] for each dataset"
    yield from _tables("tool.headrace.datasets", own.get("datasets", {}), _NAME, lambda at, use: _keys(at, use, _USE))
    yield from _tables("tool.headrace.gates", own.get("gates", {}), _METRIC, _gate)
    if "evaluate" not in own and "evaluate_command" not in own and isinstance(own.get("gates", {}), dict):
        compared = [name for name, gate in own.get("gates", {}).items() if isinstance(gate, dict) and _compares(gate)]
        if compared or (own.get("gates") and "command" not in own):
            yield 'tool.headrace.gates: limits need metrics; add evaluate = "module:function", or an evaluate_command'
    yield from _parameters(own.get("parameters", {}))


def project(found: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with `[project]`, as far as it is read."""
    for key in ("name", "version"):
        value = found.get(key, "x")
        if not isinstance(value, str) or not 0 < len(value) <= 200 or "\0" in value:
            yield f"project.{key}: {value!r} is no text of at most 200 characters"
    python = found.get("requires-python", ">=3.9")
    try:
        versions = [(3, minor, patch) for minor in range(9, 30) for patch in (0, 99)]
        if not any(requirements.satisfies(version, python) for version in versions):
            yield f"project.requires-python: {python!r} allows no Python from 3.9 on"
    except (EnvironmentRefused, TypeError, AttributeError):
        yield f"project.requires-python: {python!r} is no version specifier, such as >=3.11"


def _gate(at: str, gate: Mapping[str, Any]) -> Iterator[str]:
    wrong = [*_keys(at, gate, _GATE)]
    yield from wrong
    if wrong:
        return
    drops, rises = ({key for key in gate if key.startswith(kind)} for kind in ("max_drop", "max_rise"))
    for key in drops | rises:
        if not 0 <= gate[key] <= _HIGHEST.get(key, math.inf):
            yield f"{at}.{key}: must be from 0 to {_HIGHEST.get(key, 'any number')}"
    if not set(gate) & set(LIMITS):
        yield f"{at}: the gate sets no limit; add min, max, max_drop or max_drop_percent (max_rise… where lower is better)"
    if "min" in gate and "max" in gate and gate["min"] > gate["max"]:
        yield f"{at}: min is above max, so nothing can pass"
    if drops and gate.get("lower_is_better"):
        yield f"{at}: a drop is an improvement where lower_is_better = true; use max_rise or max_rise_percent"
    if rises and not gate.get("lower_is_better"):
        yield f"{at}: a rise is an improvement; add lower_is_better = true, or use max_drop or max_drop_percent"


def _parameters(found: Any) -> Iterator[str]:
    if not isinstance(found, dict) or len(found) > 200:
        yield "tool.headrace.parameters: is no table of at most 200 keys"
        return
    for key, value in found.items():
        at = f"tool.headrace.parameters.{key}"
        if not _PARAMETER.fullmatch(key):
            yield f"{at}: {key!r} is not a parameter's name"
        elif isinstance(value, str):
            if len(value) > 5000 or "\0" in value:
                yield f"{at}: a text has at most 5000 characters"
        elif isinstance(value, int):
            if not -(2**63) <= value < 2**63:
                yield f"{at}: whole numbers fit in 64 bits"
        elif not isinstance(value, float) or not math.isfinite(value):
            yield f"{at}: a parameter is text, a finite number, true or false"


def _tables(
    at: str, found: Any, names: re.Pattern[str], each: Callable[[str, Mapping[str, Any]], Iterator[str]]
) -> Iterator[str]:
    if not isinstance(found, dict):
        yield f"{at}: is no table"
        return
    for name, table in found.items():
        if not names.fullmatch(name):
            yield f"{at}.{name}: {name!r} is not a name that is taken"
        elif isinstance(table, dict):
            yield from each(f"{at}.{name}", table)
        else:
            yield f"{at}.{name}: expected table, found {table!r}"


def _keys(at: str, found: Mapping[str, Any], known: Mapping[str, Callable[[Any], str | None]]) -> Iterator[str]:
    for key, value in found.items():
        if key not in known:
            yield f"{at}.{key}: unknown key; there are {', '.join(sorted(known))}"
        elif problem := known[key](value):
            yield f"{at}.{key}: {value!r} {problem}"


def _matching(pattern: re.Pattern[str], problem: str) -> Callable[[Any], str | None]:
    return lambda value: None if isinstance(value, str) and pattern.fullmatch(value) else problem


def _rows(value: Any) -> str | None:
    return None if type(value) is int and value > 0 else "is no whole number of rows"


def _number(value: Any) -> str | None:
    return None if type(value) in (int, float) and math.isfinite(value) else "is no finite number"


def _duration(value: Any) -> str | None:
    found = DURATION.fullmatch(value) if isinstance(value, str) else None
    if found and 1000 <= int(found[1]) * UNIT_MS[found[2]] <= _LONGEST_MS:
        return None
    return 'is no duration from 1 s to ten years; write it as "90s" or "2h"'


def _command(value: Any) -> str | None:
    try:
        words = shlex.split(value) if isinstance(value, str) else value
    except ValueError as error:
        return f"is no command ({str(error).lower()})"
    if isinstance(words, list) and words and words[0] and len(words) <= 200:
        return (
            None if all(isinstance(word, str) and len(word) <= 5000 for word in words) else "has words that are no text"
        )
    return "is no command; write a list of words, the program first"


def _paths(value: Any) -> str | None:
    plain = isinstance(value, list) and len(value) <= 100 and all(isinstance(path, str) and path for path in value)
    return None if plain else "is no list of paths"


def _flag(value: Any) -> str | None:
    return None if isinstance(value, bool) else "is neither true nor false"


def _table(value: Any) -> str | None:
    return None  # looked at key by key


def _compares(gate: Mapping[str, Any]) -> bool:
    return bool(set(gate) & set(LIMITS) - {"min", "max"})


_ENTRY_POINT = _matching(_ENTRY, 'is no entry point; write it as "module:function"')
_TOOL = {
    **dict.fromkeys(("train", "evaluate", "predict", "load"), _ENTRY_POINT),
    **dict.fromkeys(("command", "evaluate_command", "test"), _command),
    **dict.fromkeys(("datasets", "gates", "parameters"), _table),
    "compute_class": _matching(_NAME, "is no name of a compute class"),
    "export": _flag,
    "paths": _paths,
    "time_limit": _duration,
}
_USE = {"rows": _rows, "history": _duration}
_GATE = {**dict.fromkeys(LIMITS, _number), "lower_is_better": _flag}
KEYS = frozenset(_TOOL)
