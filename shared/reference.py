"""docs/reference/configuration.md, rendered from the models that read the files: every key has one definition."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Annotated, Any, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import AfterValidator, BaseModel
from pydantic.fields import FieldInfo

from shared.catalog import Catalog
from shared.declaration import Tool
from shared.explain import alternatives, describe, describe_field, toml_value
from shared.values import Between, Within

_INTRODUCTION = """\
# Configuration

Rendered from the definitions in `shared/catalog.py`, `shared/datasets.py`, `shared/subscriptions.py` and `shared/declaration.py`; a test keeps it equal.

A *name* has at most 63 small letters, digits and `.` `_` `-`, a letter or digit first. A *duration* is text: a whole number with one
unit of `ms`, `s`, `m`, `h` or `d`. A *share* is text: `"10%"`. A *size* is text: a whole number with one unit of `B`, `kB`, `MB`, `GB`
or `TB`, in steps of 1000. A key that is not listed here is refused, with its line.
"""
_OPERATOR = """\
## The operator's file, `headrace.toml`

Secrets do not stand in it: `"env:NAME"` names the variable that holds one.
"""
_AUTHOR = """\
## A model's declaration, `[tool.headrace]` in its `pyproject.toml`

Read at each release's commit, together with `name`, `version` and `requires-python` of `[project]`.
"""
_LIMITS = {Ge: ("at least", "ge"), Gt: ("more than", "gt"), Le: ("at most", "le"), Lt: ("less than", "lt")}


def reference() -> str:
    """The whole page, in Markdown."""
    operator = "\n".join(_tables(Catalog, ""))
    author = "\n".join(_tables(Tool, "tool.headrace"))
    return f"{_INTRODUCTION}\n{_OPERATOR}\n{operator}\n{_AUTHOR}\n{author}"


def _tables(model: type[BaseModel], path: str, header: str = "", meaning: str = "") -> Iterator[str]:
    """A section for the model's own keys, then those of the tables within."""
    keys = [(name, field) for name, field in model.model_fields.items() if not _models(field.annotation)]
    if header or path:
        said = inspect.cleandoc(model.__doc__ or "")
        yield f"### `{header or f'[{path}]'}`\n\n{said if meaning in said else f'{meaning} {said}'}\n"
    if keys:
        yield "| key | value | default | meaning |\n|---|---|---|---|"
        yield "\n".join(_row(name, field) for name, field in keys) + "\n"
    for name, field in model.model_fields.items():
        for inner in _models(field.annotation):
            yield from _tables(inner, *_place(path, name, field, inner), field.description or "")


def _row(name: str, field: FieldInfo) -> str:
    limits = ", ".join(dict.fromkeys(_limits(field)))
    value = (f"{describe_field(field)}, {limits}" if limits else describe_field(field)).replace("|", "\\|")
    said = field.json_schema_extra["default"] if isinstance(field.json_schema_extra, dict) else None
    default = said or (
        "required" if field.is_required() else "" if field.default is None else f"`{toml_value(field.default)}`"
    )
    example = f" Example: `{toml_value(field.examples[0])}`" if field.examples else ""
    return f"| `{name}` | {value} | {default} | {field.description}{example} |"


def _place(path: str, name: str, field: FieldInfo, model: type[BaseModel]) -> tuple[str, str]:
    """The path of the tables under this field, and its header where that is more than the path in brackets."""
    inner = f"{path}.{name}" if path else name
    container = get_origin(field.annotation)
    if container is dict:
        inner += "." + describe(get_args(field.annotation)[0]).upper().replace(" ", "_")
    if container is tuple:
        return inner, f"[[{inner}]]"
    if len(_models(field.annotation)) > 1:
        return inner, f"[{inner}] kind = {describe(model.model_fields['kind'].annotation)}"
    return inner, ""


def _models(annotation: Any) -> list[type[BaseModel]]:
    arguments = get_args(annotation)
    held = (
        arguments[1]
        if get_origin(annotation) is dict
        else arguments[0]
        if get_origin(annotation) is tuple
        else annotation
    )
    return [entry for entry in alternatives(held) if isinstance(entry, type) and issubclass(entry, BaseModel)]


def _limits(field: FieldInfo) -> Iterator[str]:
    for rule in (*field.metadata, *_metadata(field.annotation)):
        if type(rule) in _LIMITS:
            words, attribute = _LIMITS[type(rule)]
            yield f"{words} {toml_value(getattr(rule, attribute))}"
        elif isinstance(rule, AfterValidator) and isinstance(rule.func, Within | Between):
            yield str(rule.func)
        elif isinstance(rule, FieldInfo):
            yield from _limits(rule)


def _metadata(annotation: Any) -> Iterator[object]:
    """What stands beside the type in `Annotated`, also within `… | None`."""
    for argument in get_args(annotation):
        if get_origin(argument) is Annotated:
            yield from argument.__metadata__
