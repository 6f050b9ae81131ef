"""The small values that headrace.toml and a release's declaration are written in: names, durations, shares, addresses.

Each type knows its own rule, its JSON form and (in `title` and `examples`) how the reference and an error message call it.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from typing import Annotated
from urllib.parse import SplitResult, parse_qsl, urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, PlainValidator

from shared import repository
from shared.errors import Refused


class Strict(BaseModel):
    """Frozen; refuses unknown keys; takes no string for a number."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, hide_input_in_errors=True)


_UNITS = {"d": timedelta(days=1), "h": timedelta(hours=1), "m": timedelta(minutes=1), "s": timedelta(seconds=1)}
_UNITS["ms"] = timedelta(milliseconds=1)
_LONGEST = timedelta(days=3650)
_HUNDRED = Decimal(100)


def parse_duration(value: object) -> timedelta:
    """`"90s"` to a timedelta; whole numbers of ms, s, m, h or d, at most ten years. Raises `ValueError`."""
    if isinstance(value, timedelta):
        return value
    found = re.fullmatch(r"([0-9]{1,9})(ms|s|m|h|d)", value) if isinstance(value, str) else None
    if not found:
        raise ValueError("a duration is text, a whole number with one unit of ms, s, m, h or d")
    count, unit = int(found[1]), _UNITS[found[2]]
    if count > _LONGEST // unit:
        raise ValueError(f'longer than "{format_duration(_LONGEST)}"')
    return count * unit


def format_duration(value: timedelta) -> str:
    """The shortest spelling that `parse_duration` reads back; parts below a millisecond are dropped."""
    if not value:
        return "0s"
    unit = next((name for name, size in _UNITS.items() if not value % size), "ms")
    return f"{value // _UNITS[unit]}{unit}"


@dataclass(frozen=True)
class Within:
    """The limits of a duration, both included."""

    least: timedelta
    most: timedelta = _LONGEST

    def __call__(self, value: timedelta) -> timedelta:
        if not self.least <= value <= self.most:
            raise ValueError(f"must be {self}")
        return value

    def __str__(self) -> str:
        return f'from "{format_duration(self.least)}" to "{format_duration(self.most)}"'


class Bytes(int):
    """A number of bytes that is written as a size."""


_SIZES = {"B": 1, "kB": 1000, "MB": 1000**2, "GB": 1000**3, "TB": 1000**4}
_LARGEST = Bytes(1000 * _SIZES["TB"])


def parse_size(value: object) -> Bytes:
    """`"20GB"` to bytes; whole numbers of B, kB, MB, GB or TB (powers of 1000), at most 1000 TB. Raises `ValueError`."""
    if isinstance(value, Bytes):
        return value
    found = re.fullmatch(r"([0-9]{1,15})(B|kB|MB|GB|TB)", value) if isinstance(value, str) else None
    if not found:
        raise ValueError("a size is text, a whole number with one unit of B, kB, MB, GB or TB")
    size = Bytes(int(found[1]) * _SIZES[found[2]])
    if size > _LARGEST:
        raise ValueError(f'more than "{format_size(_LARGEST)}"')
    return size


def format_size(value: int) -> str:
    """The shortest spelling that `parse_size` reads back."""
    unit = next(name for name, size in reversed(_SIZES.items()) if value and not value % size) if value else "B"
    return f"{value // _SIZES[unit]}{unit}"


@dataclass(frozen=True)
class Between:
    """The limits of a size in bytes, both included."""

    least: int
    most: int

    def __call__(self, value: Bytes) -> Bytes:
        if not self.least <= value <= self.most:
            raise ValueError(f"must be {self}")
        return value

    def __str__(self) -> str:
        return f'from "{format_size(self.least)}" to "{format_size(self.most)}"'


def parse_share(value: object) -> Decimal:
    """`"10%"` to `Decimal("0.1")`: above 0 and at most one half. Raises `ValueError`."""
    if isinstance(value, Decimal):
        return value
    found = re.fullmatch(r"([0-9]{1,3}(?:\.[0-9]{1,3})?)%", value) if isinstance(value, str) else None
    if not found:
        raise ValueError("a share is text, a number with a percent sign")
    share = Decimal(found[1]) / _HUNDRED
    if not 0 < share <= Decimal("0.5"):
        raise ValueError("a share is more than 0% and at most 50%")
    return share


def format_share(value: Decimal) -> str:
    return f"{(value * _HUNDRED).normalize():f}%"


def check_variable(name: str) -> str:
    """Refuse the variables with which a loader, an interpreter or the platform itself would be steered."""
    if name.startswith(("LD_", "DYLD_", "PYTHON", "HEADRACE_")) or name in {"PATH", "HOME", "IFS", "BASH_ENV", "ENV"}:
        raise ValueError(f"{name} steers the interpreter, the loader or the platform and is never passed on")
    return name


def check_release(value: str) -> str:
    kind, _, ref = value.partition(":")
    if value == "latest" or re.fullmatch(r"[0-9a-f]{40}", value):
        return value
    if kind not in {"branch", "tag"} or not ref:
        raise ValueError('a release is "latest", "branch:NAME", "tag:NAME" or a commit of 40 hex digits')
    return _unless_refused(repository.check_ref, ref, value)


def check_tags(pattern: str) -> str:
    return _unless_refused(repository.check_pattern, pattern, pattern)


def check_path(path: str) -> str:
    return _unless_refused(repository.check_path, path, path)


def check_repository(url: str) -> str:
    """What git may be given; a repository on this machine too, for only the operator's file comes here."""
    return _unless_refused(lambda text: repository.check_url(text, allow_local=True), url, url)


def _unless_refused(check: Callable[[str], None], text: str, value: str) -> str:
    try:
        check(text)
    except Refused as error:
        raise ValueError(error.message) from error
    return value


def check_database_url(url: str) -> str:
    """`env:NAME`, or an SQLAlchemy URL that holds no secret and means the same in every directory."""
    if url.startswith("env:"):
        return check_secret_reference(url)
    parts = check_url(url)
    if not re.fullmatch(r"[a-z][a-z0-9_]*(\+[a-z0-9_]+)?", parts.scheme) or "://" not in url:
        raise ValueError('a database is named by "env:NAME" or by a URL such as sqlite:////srv/flights.db')
    if parts.password is not None or any("pass" in key.lower() for key, _ in parse_qsl(parts.query)):
        raise ValueError(
            'a password does not belong in this file; put the whole URL in a variable and write "env:FLIGHTS_URL"'
        )
    if parts.scheme.startswith("sqlite") and (not parts.path.startswith("//") or parts.netloc):
        raise ValueError("an SQLite file is named by its whole path, with four slashes: sqlite:////srv/flights.db")
    return url


def check_secret_reference(text: str) -> str:
    if not re.fullmatch(r"env:[A-Za-z_][A-Za-z0-9_]{0,127}", text):
        raise ValueError('a secret never stands in this file; name the variable that holds it: "env:NAME"')
    return text


def check_credentials(text: str) -> str:
    if not re.fullmatch(r"env:[A-Za-z_][A-Za-z0-9_]{0,127}|file:/[^\x00-\x1f\x7f]{1,1000}", text):
        raise ValueError('credentials never stand in this file; name where they are: "env:NAME" or "file:/PATH"')
    return text


def check_url(url: str) -> SplitResult:
    """Plain ASCII that reads the same to every parser; raises `ValueError`."""
    if len(url) > 2000 or not url.isascii() or re.search(r"[\x00-\x20\x7f\\]", url) or url.startswith("-"):
        raise ValueError(
            "a URL has no spaces, control characters or backslashes and does not start with a dash; at most 2000 characters"
        )
    parts = urlsplit(url)
    _ = parts.port  # raises ValueError on a bad one
    return parts


def parse_command(value: object) -> object:
    """A list of words stays as it is; text is split into words as a shell would, and no shell ever sees it. Raises `ValueError`."""
    try:
        words = shlex.split(value) if isinstance(value, str) else value
    except ValueError as error:
        raise ValueError(f"a command is a list of words or one text ({str(error).lower()})") from error
    if isinstance(words, (list, tuple)) and (not words or words[0] == ""):
        raise ValueError("a command names a program first")
    return tuple(words) if isinstance(words, list) else words


def rule(pattern: str, sentence: str) -> AfterValidator:
    """`sentence` completes "… is not "; what was written is quoted, so this is not for secrets."""
    matcher = re.compile(pattern, re.ASCII)

    def check(value: str) -> str:
        if not matcher.fullmatch(value):
            raise ValueError(f"{value[:60]!r} is not {sentence}")
        return value

    return AfterValidator(check)


NAME = r"[a-z0-9][a-z0-9._-]{0,62}"
"""The one rule for what may become a path, a queue, a ref, a tag or an alias."""
Name = Annotated[
    str,
    rule(
        NAME,
        "a name (at most 63 small letters, digits and . _ -, with a letter or digit first)",
    ),
    Field(title="name"),
]
"""Of a dataset, model, compute class or subscription: one path segment, one URL segment, one queue name."""

MetricName = Annotated[
    str,
    rule(
        r"[A-Za-z0-9_]([A-Za-z0-9_./ -]{0,98}[A-Za-z0-9_])?",
        "a metric's name (at most 100 letters, digits and _ . / -)",
    ),
    Field(title="metric name"),
]
"""What MLflow takes too."""

Identifier = Annotated[
    str,
    rule(
        r"""[^\x00-\x1f\x7f"'`.\[\]]{1,128}""",
        "the bare name of a table or column (no quotes, no dot: a schema comes from the search path in the URL)",
    ),
    Field(title="table or column name"),
]
EnvName = Annotated[
    str,
    rule(r"[A-Za-z_][A-Za-z0-9_]{0,127}", "the name of an environment variable"),
    AfterValidator(check_variable),
    Field(title="variable name"),
]
EntryPoint = Annotated[
    str,
    rule(
        r"(?=.{3,300}$)[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*:[A-Za-z_][A-Za-z0-9_]*",
        "a module and a function of this repository, as in package.module:function",
    ),
    Field(title="module:function"),
]
CommandLine = Annotated[
    tuple[Annotated[str, Field(max_length=5000)], ...],
    BeforeValidator(parse_command),
    Field(max_length=200, title="list of words, or text"),
]
"""A program and its arguments."""
Duration = Annotated[
    timedelta,
    BeforeValidator(parse_duration),
    PlainSerializer(format_duration, return_type=str),
    Field(title="duration"),
]
Size = Annotated[
    Bytes,
    PlainValidator(parse_size),
    PlainSerializer(format_size, return_type=str),
    Field(title="size"),
]
Share = Annotated[
    Decimal, BeforeValidator(parse_share), PlainSerializer(format_share, return_type=str), Field(title="share")
]
SecretReference = Annotated[str, AfterValidator(check_secret_reference), Field(title="env:NAME")]
Credentials = Annotated[str, AfterValidator(check_credentials), Field(title="env:NAME or file:/PATH")]
DatabaseUrl = Annotated[str, AfterValidator(check_database_url), Field(title="URL or env:NAME")]
RepositoryUrl = Annotated[str, AfterValidator(check_repository), Field(title="repository URL")]
TagPattern = Annotated[str, AfterValidator(check_tags), Field(title="pattern of tags")]
RepositoryPath = Annotated[str, AfterValidator(check_path), Field(title="path")]
AbsolutePath = Annotated[
    str,
    rule(
        r"(?!.*/\.{1,2}(/|$))(/[^/\x00-\x1f\x7f]+){1,100}",
        "a whole path of this machine, such as /srv/images (no . or .. in it, no / at its end)",
    ),
    Field(title="whole path"),
]
ReleaseChoice = Annotated[str, AfterValidator(check_release), Field(title="release")]
Finite = Annotated[float, Field(allow_inf_nan=False)]
