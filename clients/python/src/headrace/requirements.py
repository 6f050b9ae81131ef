"""What a repository declares of its environment, as plain requirements: names, versions, hashes, and nothing that names a place.

A requirement that carries its own address (a URL, git, a path) would let a repository choose where code comes from; it is refused, but for
an index that the operator has listed too.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from headrace.indexes import Indexes, refusal
from headrace.installer import EnvironmentRefused

_MAX_BYTES = 16 * 1024**2
_NAME = r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?"
_VERSION = r"\s*(?:===?|~=|!=|<=?|>=?)\s*[A-Za-z0-9.*+!_-]+\s*"
_VERSIONS = rf"(?:{_VERSION}(?:,{_VERSION})*)?"
_HASHES = r"(?:\s+--hash=sha256:[0-9a-f]{64})*"
_PLAIN = re.compile(
    rf"({_NAME})\s*(?:\[[A-Za-z0-9._,\s-]*\])?\s*(?:{_VERSIONS}|\({_VERSIONS}\))\s*(?:;(?:(?! --)[^#@\\])*)?{_HASHES}\s*"
)
_PLACE = "install it from the operator's index: publish the package there and name it with a version"


@dataclass(frozen=True)
class Declared:
    """The files of a repository that decide its environment: `lock` is uv's, with `project` beside it; else `requirements` are resolved,
    unless they have hashes: then `pinned` is what is installed, as uv writes it. `sources`: package → the index that it was locked from."""

    project: str | None
    lock: str | None
    requirements: tuple[str, ...]
    requires_python: str | None
    pinned: str | None = None
    sources: Mapping[str, str] = field(default_factory=dict)


def read(checkout: Path, indexes: Indexes = Indexes()) -> Declared:
    """Take uv.lock, else the dependencies of pyproject.toml, else requirements.txt. Raises `EnvironmentRefused`."""
    project, lock, listed = (_text(checkout / name) for name in ("pyproject.toml", "uv.lock", "requirements.txt"))
    table = _toml("pyproject.toml", project) if project is not None else {}
    metadata = table.get("project", {})
    requires_python = metadata.get("requires-python")
    if lock is not None:
        if project is None:
            raise EnvironmentRefused("there is a uv.lock but no pyproject.toml beside it; commit both")
        parsed = _toml("uv.lock", lock)
        _check_fresh(parsed, metadata)
        return Declared(project, lock, (), requires_python, sources=_sources(parsed))
    if "dependencies" in metadata:
        _check_sources(table.get("tool", {}).get("uv", {}), indexes)
        return Declared(project, None, check_plain("pyproject.toml", metadata["dependencies"]), requires_python)
    if listed is not None:
        lines = check_plain("requirements.txt", _without_indexes(_lines(listed), indexes))
        return Declared(project, None, lines, requires_python, _pinned(lines))
    raise EnvironmentRefused(
        "the repository says nothing of its environment; commit a uv.lock, [project] dependencies or a requirements.txt"
    )


def check_plain(file: str, requirements: list[str]) -> tuple[str, ...]:
    for requirement in requirements:
        if not isinstance(requirement, str) or not requirement.isprintable() or not _PLAIN.fullmatch(requirement):
            raise EnvironmentRefused(
                f"{file}: {requirement!r} is not a plain requirement (a name, versions, a marker); {_PLACE}"
            )
    return tuple(requirements)


def _without_indexes(lines: list[str], indexes: Indexes) -> list[str]:
    """What a list says of indexes is dropped where the operator says the same, and refused else."""
    kept = []
    for line in lines:
        found = re.fullmatch(r"(?:-i|--index-url|--extra-index-url)(?: |=)(\S+)", line)
        if found is None:
            kept.append(line)
        elif not indexes.has(found[1]):
            raise EnvironmentRefused(f"requirements.txt: {refusal(found[1])}")
    return kept


def _check_sources(uv: dict[str, Any], indexes: Indexes) -> None:
    """A source that is an index which the operator lists too says nothing new; which of theirs provides a package is up to their order."""
    named = {one.get("name"): one.get("url") for one in uv.get("index", ()) if isinstance(one, dict)}
    for source in (uv.get("sources") or {}).values():
        for place in source if isinstance(source, list) else [source]:
            if not isinstance(place, dict) or not isinstance(place.get("index"), str) or place["index"] not in named:
                raise EnvironmentRefused(f"pyproject.toml has [tool.uv.sources], which name places; {_PLACE}")
            if not indexes.has(named[place["index"]]):
                raise EnvironmentRefused(f"pyproject.toml: {refusal(named[place['index']])}")


def _sources(lock: dict[str, Any]) -> dict[str, str]:
    found = {one.get("name"): one.get("source", {}).get("registry") for one in lock.get("package", ())}
    return {name: url for name, url in found.items() if isinstance(name, str) and isinstance(url, str)}


def _pinned(lines: tuple[str, ...]) -> str | None:
    """The lines in uv's own form if they have hashes, so that the list in a bundle is the very list that the bundle was made with."""
    if not any("--hash=" in line for line in lines):
        return None
    for line in lines:
        if "--hash=" not in line or "==" not in line:
            raise EnvironmentRefused(
                f"requirements.txt: {line!r} has no version or no hash while others have; give each both, "
                "as `uv pip compile --generate-hashes` does, or none a hash"
            )
    return "".join(" \\\n    ".join(line.replace(" --hash=", "\0--hash=").split("\0")) + "\n" for line in lines)


def names(text: str) -> set[str]:
    """The distributions that a list of requirements speaks of, each in its one spelling."""
    return {re.sub(r"[-_.]+", "-", found[0]).lower() for line in _lines(text) if (found := re.match(_NAME, line))}


def check_exported(text: str) -> str:
    """The exported lock itself, if every line of it is `name==version` with hashes."""
    for line in _lines(text):
        found = _PLAIN.fullmatch(line)
        if found is None or "==" not in line or "--hash=" not in line:
            raise EnvironmentRefused(
                f"uv.lock: {line.split(' --hash')[0]!r} does not come from an index with a hash; {_PLACE}"
            )
    return text


def satisfies(version: tuple[int, ...], specifier: str) -> bool:
    """Whether a Python `version` (major, minor, micro) is allowed by a requires-python such as `>=3.11,<3.14`."""
    return all(_allows(version, clause.strip()) for clause in specifier.split(",") if clause.strip())


def _allows(version: tuple[int, ...], clause: str) -> bool:
    found = re.fullmatch(r"(~=|===?|!=|<=?|>=?)\s*(\d+(?:\.\d+)*)(\.\*)?\S*", clause)
    if found is None:
        raise EnvironmentRefused(
            f"pyproject.toml: requires-python has {clause!r}, which is no version clause such as >=3.11"
        )
    operator, digits, wildcard = found.groups()
    asked = tuple(int(part) for part in digits.split("."))
    if operator == "~=":
        return version >= asked and version[: len(asked) - 1] == asked[:-1]
    if not wildcard:
        asked = (*asked, 0, 0)[:3]
    same, cut = version[: len(asked)] == asked, version[: len(asked)]
    return {"<": cut < asked, "<=": cut <= asked, ">": cut > asked, ">=": cut >= asked, "!=": not same}.get(
        operator, same
    )


def _check_fresh(lock: dict[str, Any], metadata: dict[str, Any]) -> None:
    """A dependency added without `uv lock` would be missed only at import, minutes later and in other words."""
    own = next((p for p in lock.get("package", ()) if p.get("source", {}).keys() & {"virtual", "editable"}), None)
    if own is None:
        return
    locked = {entry["name"] for entry in own.get("metadata", {}).get("requires-dist", ())}
    for requirement in check_plain("pyproject.toml", metadata.get("dependencies", [])):
        name = re.sub(r"[-_.]+", "-", re.match(_NAME, requirement)[0]).lower()  # type: ignore[index]
        if name not in locked:
            raise EnvironmentRefused(
                f"uv.lock does not know {name!r}, which pyproject.toml depends on; run `uv lock` and commit it"
            )


def _lines(text: str) -> list[str]:
    """Logical lines, without comments: a backslash continues one."""
    joined = re.sub(r"\\\r?\n", " ", text)
    stripped = (re.sub(r"(^|\s)#.*", "", line).strip() for line in joined.splitlines())
    return [re.sub(r"\s+", " ", line) for line in stripped if line]


def _text(path: Path) -> str | None:
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise EnvironmentRefused(f"{path.name} is not a plain file; commit the file itself")
    if not path.exists():
        return None
    if path.stat().st_size > _MAX_BYTES:
        raise EnvironmentRefused(f"{path.name} has more than {_MAX_BYTES} bytes")
    try:
        return path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise EnvironmentRefused(f"{path.name} is not UTF-8 text") from error


def _toml(name: str, text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise EnvironmentRefused(f"{name} is not valid TOML: {error}") from error
