"""Which repositories, refs and releases are taken (pure)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import NamedTuple

from packaging.version import Version

from shared.errors import NotFound, Refused

_HOST = r"(?:[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:]+\])(?::[0-9]{1,5})?"
_USER = r"[A-Za-z0-9_][A-Za-z0-9._-]*"
_PATH = r"(?!.*%[01])[A-Za-z0-9._~/+@=,:%-]+"
_REMOTE_URL = re.compile(
    rf"https://{_HOST}/{_PATH}|ssh://(?:{_USER}@)?{_HOST}/{_PATH}|{_USER}@[A-Za-z0-9][A-Za-z0-9.-]*:(?![-:]){_PATH}"
)
_LOCAL_URL = re.compile(r"(?:file://)?/[^\x00-\x1f\x7f]+")
_REF = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/+-]{0,199}")  # check-ref-format takes `-x` and `$(id)`
_COMMIT = re.compile(r"[0-9a-f]{40}")
_PART = re.compile(r"[A-Za-z0-9._-]{1,255}")
_SEMVER = re.compile(
    r"v?(?P<release>[0-9]+\.[0-9]+\.[0-9]+)(?:-(?P<words>[0-9A-Za-z-]+(?:\.[0-9A-Za-z-]+)*))?(?:\+[0-9A-Za-z.-]+)?"
)
_FIRST = Version("0.dev0")  # before every other


def check_url(url: str, *, allow_local: bool = False) -> None:
    """Raise `Refused` unless `url` is one that git may be given; `allow_local` is for what the operator's own file names."""
    if len(url) <= 1000 and (_REMOTE_URL.fullmatch(url) or (allow_local and _LOCAL_URL.fullmatch(url))):
        return
    # A refusal is stored and shown, so what stands before an @ may be a secret and stays out of it.
    shown = re.sub(r"^(\w+://)?.*@", r"\1…@", url, flags=re.DOTALL)[:100]
    if is_local(url):
        advice = "a repository on this machine is taken only when the operator's own file names it"
    elif re.match(r"\w+://[^/]*@|[^/@]+:[^/@]*@", url):
        advice = (
            "leave the user and the password out of it; name them in the operator's file, "
            'with credentials = "env:NAME" or "file:/PATH" beside the repository'
        )
    else:
        advice = "write https://host/path, ssh://user@host/path or user@host:path"
    raise Refused(f"the repository URL {shown!r} is not taken: {advice}")


def is_local(url: str) -> bool:
    """Whether the URL names a repository on this machine."""
    return _LOCAL_URL.fullmatch(url) is not None


def check_ref(name: str) -> None:
    """Raise `Refused` unless `name` is a plain name of a branch or tag: a stricter rule than git's own."""
    parts = name.split("/")
    odd = any(not part or part.startswith(".") or part.endswith((".", ".lock")) for part in parts)
    if odd or ".." in name or not _REF.fullmatch(name):
        raise Refused(
            f"the name {name[:100]!r} of a branch or tag is not taken: at most 200 letters, digits and . _ / + -, "
            "a letter or digit first, no .. in it, no .lock at the end"
        )


def highest_version(tags: Iterable[str], *, pattern: str = "*", prereleases: bool = False) -> str | None:
    """The tag of the highest version (`1.4.0` or `v1.4.0`); tags that are no versions do not count.

    `pattern` has one `*` for the version: `churn-*` takes `churn-v1.4.0` and nothing else.
    """
    before, _, after = pattern.partition("*")
    versions = []
    for tag in tags:
        if tag.startswith(before) and tag.endswith(after) and len(tag) > len(before) + len(after):
            version = _version(tag[len(before) : len(tag) - len(after)])
            if version is not None and (prereleases or version.final):
                versions.append((version, tag))
    return max(versions)[1] if versions else None


class _Order(NamedTuple):
    """Where a version stands among others: before a final one its pre-releases, those first that only Semantic Versioning knows."""

    release: Version
    final: bool
    known: Version
    words: tuple[tuple[bool, int, str], ...] = ()


def _version(text: str) -> _Order | None:
    """A version as PEP 440 reads it, else as Semantic Versioning 2.0.0 does (`1.0.0-alpha.beta`)."""
    with suppress(ValueError):
        version = Version(text)
        release = Version(version.base_version)
        return _Order(release, not version.is_prerelease, version)
    found = _SEMVER.fullmatch(text)
    if found is None:
        return None
    with suppress(ValueError):  # more digits than Python makes a number of
        release, words = Version(found["release"]), (found["words"] or "").split(".")
        order = tuple((not word.isdigit(), int(word) if word.isdigit() else 0, word) for word in words if word)
        return _Order(release, not order, release if not order else _FIRST, order)
    return None


def resolve(release: str, refs: Mapping[str, str], *, pattern: str = "*", prereleases: bool = False) -> tuple[str, str]:
    """Name and commit of `latest` (the highest version tag), `branch:NAME`, `tag:NAME` or a commit, by `Mirror.remote_refs()`."""
    kind, _, name = release.partition(":")
    if _COMMIT.fullmatch(release):
        return release, release
    if release == "latest":
        tags = [ref.removeprefix("refs/tags/") for ref in refs if ref.startswith("refs/tags/")]
        name = highest_version(tags, pattern=pattern, prereleases=prereleases) or ""
        if not name:
            raise NotFound(_no_tag(tags, pattern))
        return name, refs[f"refs/tags/{name}"]
    if kind not in ("branch", "tag"):
        raise Refused(
            f"the release {release[:100]!r} is not understood; write latest, branch:NAME, tag:NAME or a commit of 40 hex digits"
        )
    check_ref(name)
    commit = refs.get(f"refs/{'heads' if kind == 'branch' else 'tags'}/{name}")
    if commit is None:
        raise NotFound(f"the repository has no {kind} {name!r}; push it, or name another one")
    return name, commit


def _no_tag(tags: Iterable[str], pattern: str) -> str:
    lacks = "the repository has no version tag" + ("" if pattern == "*" else f" of the form {pattern}")
    advice = f"tag a release (git tag {pattern.replace('*', 'v1.0.0')}) and push it, or follow branch:NAME"
    if highest_version(tags, pattern=pattern, prereleases=True):
        return f"{lacks} but of pre-releases; write prereleases = true to take those, or {advice}"
    return f"{lacks}; {advice}"


def check_pattern(pattern: str) -> None:
    """Raise `Refused` unless `pattern` is a tag's name with one `*` in the place of the version."""
    if pattern.count("*") != 1:
        raise Refused(f"the pattern {pattern[:100]!r} of tags needs one * where the version stands, as in churn-*")
    check_ref(pattern.replace("*", "1"))


def check_path(path: str) -> None:
    """Raise `Refused` unless `path` leads down into a tree, in one spelling."""
    parts = path.split("/")
    if len(path) > 500 or any(not _PART.fullmatch(part) or not part.strip(".") or part == ".git" for part in parts):
        raise Refused(
            f"the path {path[:100]!r} is not taken: write it from the top down, as in models/churn, of letters, digits and . _ -, "
            "with no / at either end"
        )


def check_commit(commit: str) -> None:
    """Raise `Refused` unless `commit` is the whole id of one."""
    if not _COMMIT.fullmatch(commit):
        raise Refused(f"{commit[:100]!r} is no commit; give all 40 hex digits of it")
