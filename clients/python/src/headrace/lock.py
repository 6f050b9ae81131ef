"""models.toml: which version of which model a consumer runs, and the one line that changes it."""

from __future__ import annotations

import importlib
import os
import re
import tempfile
from pathlib import Path
from typing import Any, Dict, Tuple, Union

from headrace.connection import Problem

CHAMPION = "champion"
Choice = Union[int, str]
"""A version's number, or "champion"."""

_PROBE = 4_611_686_018_427_387_903  # fits TOML's 64 bits, and is nobody's version
_ASSIGNED = re.compile(r"""(?P<key>\bversion["']?\s*=\s*)(?P<value>[0-9_]+|"[^"\n]*"|'[^'\n]*')""")


def read_versions(path: Path) -> Dict[str, Choice]:
    """The choice for each model in the file, in its order. Raises `Problem` with the line that would be right."""
    models = _parse(_read(path), path).get("models")
    if not isinstance(models, dict):
        raise Problem(f"{path} names no model", "write for each:\n[models.NAME]\nversion = 1")
    return {model: _choice(path, model, entry) for model, entry in models.items()}


def set_version(path: Path, model: str, version: int) -> Tuple[str, str]:
    """Change that model's version and nothing else; the old and the new line (alike if nothing had to change).

    Comments, order and format stay. The file is replaced at once: a reader sees the old or the new, never half.
    """
    text = _read(path)
    choices = read_versions(path)
    if model not in choices:
        raise Problem(f"{path} does not name {model}", f"add to it:\n[models.{model}]\nversion = {version}")
    for start, end in (match.span("value") for match in _ASSIGNED.finditer(text)):
        if _decides(text, start, end, path, model):
            changed = text[:start] + str(version) + text[end:]
            if choices[model] == version:
                return _line(text, start), _line(text, start)
            _replace(path, changed)
            return _line(text, start), _line(changed, start)
    raise Problem(
        f"can't find the version of {model} in {path}", f"write it as:\n[models.{model}]\nversion = {version}"
    )


def _decides(text: str, start: int, end: int, path: Path, model: str) -> bool:
    """Whether this value is the model's version: only a parser can tell it from comments, strings and other tables."""
    wanted = _parse(text, path)
    wanted["models"][model]["version"] = _PROBE
    try:
        return _parse(f"{text[:start]}{_PROBE}{text[end:]}", path) == wanted
    except Problem:
        return False


def _line(text: str, position: int) -> str:
    return text[text.rfind("\n", 0, position) + 1 :].splitlines()[0]


def _choice(path: Path, model: str, entry: object) -> Choice:
    version = entry.get("version") if isinstance(entry, dict) else None
    if version == CHAMPION or (isinstance(version, int) and not isinstance(version, bool) and version > 0):
        return version
    raise Problem(f"{path}: models.{model} has no usable version: {version!r}", 'write `version = 12`, or "champion"')


def _read(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8")  # not read_text: it would change line ends
    except FileNotFoundError:
        raise Problem(f"there is no {path}", "write one:\n[models.NAME]\nversion = 1") from None
    except (OSError, UnicodeDecodeError) as error:
        raise Problem(f"can't read {path}: {error}") from error


def _parse(text: str, path: Path) -> Dict[str, Any]:
    for name in ("tomllib", "tomli"):
        try:
            toml = importlib.import_module(name)
        except ImportError:
            continue
        try:
            parsed: Dict[str, Any] = toml.loads(text)
            return parsed
        except ValueError as error:
            raise Problem(f"{path} is not valid TOML: {error}") from error
    raise Problem(f"reading {path} needs Python 3.11 or newer", "on an older one: pip install tomli")


def _replace(path: Path, text: str) -> None:
    """Write beside, then rename; a link stays a link, and the file keeps its permissions."""
    target = path.resolve()
    handle, temporary = tempfile.mkstemp(dir=str(target.parent), prefix="." + target.name)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(text.encode("utf-8"))
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(temporary, target.stat().st_mode & 0o7777)
        os.replace(temporary, target)
    except BaseException:
        os.unlink(temporary)
        raise
