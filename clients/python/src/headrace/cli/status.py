"""`headrace status` and `why`: what is there, what it does, and why."""

from __future__ import annotations

from argparse import Namespace
from typing import Any, Mapping, Optional

from headrace.cli import show
from headrace.cli.models import model_row
from headrace.connection import api_path, connect


def status(arguments: Namespace) -> None:
    found = connect().get(api_path("status"))
    if arguments.json:
        return show.as_json(found)
    rows = [model_row(model) for model in found["models"]]
    show.table(("model", "champion", "release", "now"), rows, empty="No models yet: name one in headrace.toml.")
    show.heading("Datasets")
    show.table(
        ("dataset", "kind", "cursor", "rows", "looked", "error"),
        [_dataset(each) for each in found["datasets"]],
        empty="none",
    )
    show.heading("Workers")
    show.table(
        ("worker", "class", "busy", "seen"),
        [_worker(each) for each in found["workers"]],
        empty="none: nothing will be trained",
    )
    for each in found.get("unserved") or ():
        print(_unserved(each))
    runs, deliveries = found["runs"], found["deliveries"]
    print(
        f"\nRuns: {runs['waiting']} waiting, {runs['running']} running."
        f" Deliveries: {deliveries['pending']} pending, {deliveries['failed']} failed."
    )
    _rejections(found.get("rejections") or {})
    print(_tidied(found.get("tidied")))


def _rejections(told: Mapping[str, Any]) -> None:
    """What the stream brought and nobody could read: said only where there is some."""
    if not told.get("count"):
        return
    print(
        f"Rejected from the stream: {told['count']}; the last {show.ago(told['last_at'])}: {show.text(told['last_reason'])}\n"
        "  GET /v1/rejections lists them; put right what they lack, and send them again from headrace:rejected"
        " (docs/how-to/producer.md)"
    )


def _tidied(told: Optional[Mapping[str, Any]]) -> str:
    if told is None:
        return "Nothing was tidied away yet."
    parts = [
        f"{one['count']} {kind}" + (f" ({show.size(one['size_bytes'])})" if one["size_bytes"] else "")
        for kind, one in told["taken"].items()
    ]
    problem = f" Not all could be done: {show.text(told['error'])}" if told["error"] else ""
    return f"Tidied {show.ago(told['at'])}: {', '.join(parts) or 'nothing to take'}.{problem}"


def why(arguments: Namespace) -> None:
    found = connect().get(api_path("models", arguments.model, "why"))
    if arguments.json:
        return show.as_json(found)
    for sentence in found["sentences"]:
        print(show.text(sentence))


def _dataset(told: Mapping[str, Any]) -> show.Row:
    return told["name"], told["kind"], told["cursor"], told["rows"], show.ago(told["looked_at"]), told["error"]


def _unserved(told: Mapping[str, Any]) -> str:
    waits = f" ({told['due']} due)" if told["due"] else ""
    return f"No worker serves {show.text(told['compute_class'])}{waits}; start one with: {show.text(told['start'])}"


def _worker(told: Mapping[str, Any]) -> show.Row:
    return told["name"], told["compute_class"], f"{told['busy']} of {told['slots']}", show.ago(told["seen_at"])
