"""The operator's package indexes: what uv is told of them, and which of those that a repository names are among them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

PYPI = "https://pypi.org/simple"
"""What the main index stands for, wherever a lock was made."""
_URL = re.compile(r"(?:https?|file)://[^\s,]+")
_USER = re.compile(r"(?<=://)[^/@\s]*@")
_ADVICE = "ask the operator to list it in HEADRACE_EXTRA_INDEX_URLS, or take the packages from an index of theirs"


@dataclass(frozen=True)
class Indexes:
    """`url` is the main one, PyPI without it. The `extra` ones are asked before it, in their order: the first that knows a name provides it."""

    url: str | None = field(default=None, repr=False)
    extra: tuple[str, ...] = field(default=(), repr=False)

    def variables(self) -> dict[str, str]:
        """For uv, and no arguments: they may hold passwords, and a command line can be read by all."""
        told = {} if self.url is None else {"UV_DEFAULT_INDEX": self.url}
        return {**told, "UV_INDEX": " ".join(self.extra)} if self.extra else told

    def by_hash(self) -> list[str]:
        """The options of a command whose packages have hashes: those decide what is taken, whichever index has it."""
        return ["--index-strategy", "unsafe-best-match"] if self.extra else []

    def conditions(self) -> list[object]:
        """What they add to the name of an environment."""
        return [self.url, list(self.extra)] if self.extra else [self.url]

    def has(self, url: object) -> bool:
        """Whether a repository may name this one."""
        return isinstance(url, str) and _plain(url) in {_plain(own) for own in (self.url or PYPI, *self.extra)}

    def foreign(self, sources: Mapping[str, str]) -> str:
        """A sentence about packages, with the indexes that they were locked from, whose index is none of these; else nothing. It may
        be no harm: the operator's may have them too, and hashes say so."""
        elsewhere = {url for url in sources.values() if not self.has(url) and _plain(url) != PYPI}
        return "; ".join(
            f"uv.lock takes {_listed(name for name, found in sources.items() if found == url)} from {_USER.sub('', url)}, "
            f"which is not among the operator's indexes: {_ADVICE}"
            for url in sorted(elsewhere)
        )


def split(text: str) -> tuple[str, ...]:
    """URLs between which there is a comma or a space. Raises `ValueError`, which shows none of them."""
    found = tuple(re.split(r"[\s,]+", text.strip())) if text.strip() else ()
    for number, url in enumerate(found, 1):
        if not _URL.fullmatch(url):
            raise ValueError(
                f"number {number} is no URL such as https://host/simple; separate them by a comma or a space"
            )
    return found


def refusal(url: object) -> str:
    """Of an index that a repository names for itself."""
    return f"the index {_USER.sub('', str(url))[:200]} is not among the operator's indexes: {_ADVICE}"


def _plain(url: str) -> str:
    return _USER.sub("", url).rstrip("/")


def _listed(names: Iterable[str]) -> str:
    found = sorted(names)
    return ", ".join(found[:5]) + (f" and {len(found) - 5} more" if len(found) > 5 else "")
