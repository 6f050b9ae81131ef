"""`headrace versions`, `version`, `promote`, `rollback`, `pin`, `unpin`: what came out, why it serves or not, and who says so."""

from __future__ import annotations

from argparse import Namespace
from typing import Any, Mapping, Optional

from headrace.cli import show
from headrace.connection import api_path, connect


def versions(arguments: Namespace) -> None:
    found = connect().items(api_path("models", arguments.model, "versions"), limit=arguments.limit)
    if arguments.json:
        return show.as_json(found)
    columns = ("version", "state", "serves", "release", "run", "registered", "metrics")
    show.table(
        columns,
        [_row(each) for each in found],
        empty=f"{arguments.model} has no version yet: headrace why {arguments.model}",
    )


def version(arguments: Namespace) -> None:
    told = connect().get(api_path("models", arguments.model, "versions", arguments.version))
    if arguments.json:
        return show.as_json(told)
    verdict, release = told["verdict"] or {}, told["release"]
    show.facts(
        [
            ("version", f"{told['version']} of {told['model']}" + (", the champion" if told["champion"] else "")),
            ("state", told["state"]),
            ("trained on", told.get("sample") and f"{show.sample(told['sample'])}: to build against, it never serves"),
            ("release", f"{release['name']} {release['commit']}"),
            ("run", told["run"]),
            ("registered", show.ago(told["registered_at"])),
            ("metrics", show.pairs(told["metrics"])),
            ("verdict", verdict.get("decision")),
            ("compared with", verdict.get("champion")),
            ("data cut", told["lineage"]["cut_digest"]),
            ("arrivals", ", ".join(map(str, told["lineage"]["arrivals"]))),
            ("digest", told["digest"]),
            ("files", _files(told)),
            ("pinned", _pin(told.get("pin"))),
        ]
    )
    for reason in verdict.get("reasons", ()):
        print(f"  {show.text(reason)}")


def _files(told: Mapping[str, Any]) -> str:
    if told.get("tidied_at"):
        return f"tidied away {show.ago(told['tidied_at'])}"
    return f"{len(told['files'])}, {show.size(sum(file['size_bytes'] for file in told['files']))}"


def _pin(told: Optional[Mapping[str, Any]]) -> Optional[str]:
    return f"by {told['by']}, {show.ago(told['at'])}: {told['reason']}" if told else None


def promote(arguments: Namespace) -> None:
    body = {"version": arguments.version, "reason": arguments.reason}
    found = connect().post(api_path("models", arguments.model, "promote"), body)
    _changed(arguments, found)


def rollback(arguments: Namespace) -> None:
    chosen = {"version": arguments.to} if arguments.to else {}
    found = connect().post(api_path("models", arguments.model, "rollback"), {**chosen, "reason": arguments.reason})
    _changed(arguments, found)


def pin(arguments: Namespace) -> None:
    path = api_path("models", arguments.model, "versions", arguments.version, "pin")
    told = connect().post(path, {"reason": arguments.reason})
    _said(arguments, told, f"version {arguments.version} of {arguments.model} is pinned: its files stay")


def unpin(arguments: Namespace) -> None:
    told = connect().post(api_path("models", arguments.model, "versions", arguments.version, "unpin"), {})
    _said(arguments, told, f"version {arguments.version} of {arguments.model} is pinned no more")


def _said(arguments: Namespace, told: Mapping[str, Any], sentence: str) -> None:
    if arguments.json:
        return show.as_json(told)
    print(sentence)


def _row(told: Mapping[str, Any]) -> show.Row:
    marks = ("champion", told["champion"]), ("pinned", told.get("pin")), ("tidied away", told.get("tidied_at"))
    serves = ", ".join(word for word, is_so in marks if is_so)
    registered = show.ago(told["registered_at"])
    return (
        told["version"],
        told["state"],
        serves,
        told["release"]["name"],
        told["run"],
        registered,
        show.pairs(told["metrics"]),
    )


def _changed(arguments: Namespace, told: Mapping[str, Any]) -> None:
    if arguments.json:
        return show.as_json(told)
    champion = told["champion"]
    number = champion["version"] if isinstance(champion, dict) else champion
    print(f"version {number} becomes the champion of {arguments.model}")
