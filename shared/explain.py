"""From a validation error to sentences that say where, what is wrong, and what would be right.

Nothing that was written is quoted where a secret may stand by mistake: only keys, numbers, and words out of a closed list.
"""

from __future__ import annotations

import difflib
import json
import types
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError

from shared.toml import Document, KeyPath
from shared.values import Bytes, Strict, format_duration, format_share, format_size

Known = TypeVar("Known", bound=Strict)


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong, where it stands, and what would be right."""

    path: KeyPath
    sentence: str
    line: int | None = None
    file: str | None = None

    @property
    def text(self) -> str:
        where = f"{self.file}:{self.line}: " if self.file and self.line else f"{self.file}: " if self.file else ""
        return where + self.unplaced

    @property
    def unplaced(self) -> str:
        """Without file and line."""
        return f"{dotted(self.path)}: {self.sentence}" if self.path else self.sentence


def refusal(*wrong: tuple[KeyPath, str]) -> ValidationError:
    """For a model's own validator: rules between keys, each blamed on the one at its path below the model."""
    details = [
        InitErrorDetails(type=PydanticCustomError("rule", "{sentence}", {"sentence": sentence}), loc=path, input=None)
        for path, sentence in wrong
    ]
    return ValidationError.from_exception_data("rule", details)


def check(
    model: type[Known], data: Mapping[str, object], document: Document, *, at: KeyPath, advice: Mapping[str, str]
) -> tuple[Known | None, tuple[Problem, ...]]:
    """Validate the table that stands at `at` in `document`; either the model or all problems, in the file's order.

    `advice` says for some unknown keys what to write instead.
    """
    try:
        # by way of JSON: a list is then a tuple, and a word a member of its enumeration, with everything else strict
        return model.model_validate_json(json.dumps(data, default=_date)), ()
    except ValidationError as error:
        found = [
            Problem((*at, *problem.path), problem.sentence, document.line((*at, *problem.path)), document.file)
            for problem in explain(error, model, data, advice)
        ]
        return None, tuple(sorted(found, key=lambda problem: problem.line or 0))


def explain(
    error: ValidationError,
    model: type[BaseModel],
    data: object,
    advice: Mapping[str, str],
    assignment: str = "{key} = {value}",
) -> list[Problem]:
    """One problem for each place, whatever number of alternatives was tried there; `assignment` spells the examples."""
    places: dict[KeyPath, list[ErrorDetails]] = {}
    for detail in error.errors():
        if detail["type"] == "too_short" and detail["input"]:
            continue  # pydantic counts what is left after the wrong ones, which have their own lines
        places.setdefault(_path(detail, data), []).append(detail)
    return [
        Problem(path, _sentence(path, details, model, data, advice, assignment)) for path, details in places.items()
    ]


def dotted(path: KeyPath) -> str:
    """`subscriptions[0].url`, as a person would point at it; keys that need quotes have them."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            plain = part.replace("_", "").replace("-", "").isalnum() and part.isascii()
            text += ("." if text else "") + (part if plain else json.dumps(part[:80]))
    return text


def closest(word: object, known: Iterable[str]) -> str:
    """`; did you mean "poll"?`, or else all that there is to choose from."""
    choices = list(known)
    near = difflib.get_close_matches(str(word).lower(), choices, n=1, cutoff=0.6)
    if near:
        return f'; did you mean "{near[0]}"?'
    return f"; known: {', '.join(choices)}" if choices else ""


def describe(annotation: Any) -> str:
    """What a value is called in the reference and in messages: "duration", "whole number", "list of names"."""
    if get_origin(annotation) is Annotated:
        inner, *metadata = get_args(annotation)
        titles = [entry.title for entry in metadata if isinstance(entry, FieldInfo) and entry.title]
        return titles[-1] if titles else describe(inner)
    arguments = [argument for argument in get_args(annotation) if argument not in (type(None), ...)]
    if get_origin(annotation) is Literal:
        return " or ".join(f'"{argument}"' for argument in arguments)
    if get_origin(annotation) in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(describe(argument) for argument in arguments))
    if get_origin(annotation) is tuple:
        return f"list of {describe(arguments[0])}s"
    plain = {bool: "true or false", int: "whole number", float: "number", str: "text", datetime: "time"}
    return plain.get(annotation, "table")


def describe_field(field: FieldInfo) -> str:
    return field.title or describe(field.annotation)


def toml_value(value: object) -> str:
    """A default or an example as one would write it."""
    if isinstance(value, timedelta):
        return f'"{format_duration(value)}"'
    if isinstance(value, Decimal):
        return f'"{format_share(value)}"'
    if isinstance(value, Bytes):
        return f'"{format_size(value)}"'
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(toml_value(item) for item in value)}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {toml_value(item)}" for key, item in value.items()) + "}"
    return json.dumps(value, ensure_ascii=False)


def model_of(annotation: Any, data: object = None) -> type[BaseModel] | None:
    """The model that a table is read into; where `kind` chooses one, the chosen."""
    models = [entry for entry in alternatives(annotation) if isinstance(entry, type) and issubclass(entry, BaseModel)]
    kind = data.get("kind") if isinstance(data, Mapping) else None
    if len(models) > 1:
        models = [model for model in models if kind in get_args(model.model_fields["kind"].annotation)]
    return models[0] if models else None


def alternatives(annotation: Any) -> list[Any]:
    """The types in a union; without `Annotated` around them."""
    if get_origin(annotation) is Annotated:
        return alternatives(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return [entry for argument in get_args(annotation) for entry in alternatives(argument)]
    return [annotation]


def _path(detail: ErrorDetails, data: object) -> KeyPath:
    """The error's place as a path into `data`: without the names of alternatives that pydantic puts between."""
    path: list[str | int] = []
    node = data
    for part in detail["loc"]:
        if _has(node, part):
            node = _child(node, part)
            path.append(part)
    last = detail["loc"][-1] if detail["loc"] else None
    if isinstance(last, str) and detail["type"] in ("missing", "rule") and path[-1:] != [last]:
        path.append(last)
    return tuple(path)


def _has(node: object, part: str | int) -> bool:
    return part in node if isinstance(node, Mapping) else isinstance(node, list) and part in range(len(node))


def _field(model: type[BaseModel], path: KeyPath, data: object) -> tuple[FieldInfo | None, Any, type[BaseModel] | None]:
    """For the value at `path`: the field that it belongs to, its own annotation, and the model around it."""
    field: FieldInfo | None = None
    annotation: Any = model
    around: type[BaseModel] | None = None
    node = data
    for part in path:
        owner = model_of(annotation, node)
        node = _child(node, part)
        if owner is not None:
            field = next((known for name, known in owner.model_fields.items() if part in (name, known.alias)), None)
            around, annotation = owner, field.annotation if field else None
            continue
        containers = [entry for entry in alternatives(annotation) if get_origin(entry) in (dict, tuple)]
        arguments = get_args(containers[0]) if containers else (None,)
        field, annotation = None, arguments[1] if containers and get_origin(containers[0]) is dict else arguments[0]
    return field, annotation, around


def _child(node: object, part: str | int) -> object:
    if isinstance(node, Mapping):
        return node.get(part)
    return node[part] if isinstance(node, list) and isinstance(part, int) and 0 <= part < len(node) else None


def _sentence(
    path: KeyPath,
    details: list[ErrorDetails],
    model: type[BaseModel],
    data: object,
    advice: Mapping[str, str],
    assignment: str,
) -> str:
    field, annotation, around = _field(model, path, data)
    # several alternatives: the one that took the type and missed another rule knows more
    detail = next((one for one in details if not one["type"].endswith("_type")), details[0])
    key = str(path[-1]) if path else ""
    if detail["type"] == "extra_forbidden":
        near = f"; {advice[key]}" if key in advice else closest(key, _keys(around))
        return f"unknown key{near}"
    wanted = describe_field(field) if field else describe(annotation)
    said = _SAYINGS.get(detail["type"], _by_rule)(detail, wanted)
    example = field.examples[0] if field and field.examples else None
    return said if example is None else f"{said}; for example {assignment.format(key=key, value=toml_value(example))}"


def _keys(model: type[BaseModel] | None) -> list[str]:
    return [field.alias or name for name, field in model.model_fields.items()] if model else []


def _by_rule(detail: ErrorDetails, wanted: str) -> str:
    message = detail["msg"].removeprefix("Value error, ")
    if detail["type"].endswith("_type"):
        return f"expected {wanted}, found {_found(detail['input'])}"
    return (
        message[0].lower() + message[1:]
        if message.startswith(("Input ", "String ", "Dictionary ", "Tuple "))
        else message
    )


def _found(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return f"the number {value}"
    kinds: dict[type, str] = {str: "text", list: "a list", dict: "a table"}
    if isinstance(value, dict) and list(value) == [_DATE]:
        return "a date"
    return next((name for kind, name in kinds.items() if isinstance(value, kind)), "nothing")


def _limit(word: str, key: str) -> Callable[[ErrorDetails, str], str]:
    def say(detail: ErrorDetails, _: str) -> str:
        limit = detail.get("ctx", {})[key]
        return f"must be {word} {toml_value(limit)}"

    return say


def _unknown_kind(detail: ErrorDetails, _: str) -> str:
    known = [tag.strip("' ") for tag in str(detail["ctx"]["expected_tags"]).split(",")]
    tag = str(detail["ctx"]["tag"])[:60]
    *others, last = (f'"{kind}"' for kind in known)
    return f'there is no kind "{tag}" by now, only {", ".join(others)} and {last}'


def _closed_list(detail: ErrorDetails, wanted: str) -> str:
    word = detail["input"]
    known = [choice.strip("'") for choice in str(detail["ctx"]["expected"]).replace(" or ", ", ").split(", ")]
    if not isinstance(word, str):
        return f"expected {wanted}, found {_found(word)}"
    return f'"{word[:60]}" is not known here{closest(word, known)}'


_SAYINGS: dict[str, Callable[[ErrorDetails, str], str]] = {
    "missing": lambda _, wanted: f"is missing ({wanted})",
    "union_tag_not_found": lambda *_: "kind is missing",
    "union_tag_invalid": _unknown_kind,
    "literal_error": _closed_list,
    "enum": _closed_list,
    "greater_than_equal": _limit("at least", "ge"),
    "greater_than": _limit("more than", "gt"),
    "less_than_equal": _limit("at most", "le"),
    "less_than": _limit("less than", "lt"),
    "finite_number": lambda *_: "must be a finite number",
    "too_short": lambda *_: "must not be empty",
    "string_too_short": lambda *_: "must not be empty",
}
_DATE = "a TOML date or time"


def _date(value: object) -> object:
    """JSON has no dates and nothing here takes one: a table in its place is refused wherever it stands."""
    if isinstance(value, date) or hasattr(value, "isoformat"):
        return {_DATE: str(value)}
    raise TypeError(type(value).__name__)
