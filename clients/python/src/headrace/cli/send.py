"""`headrace send`: report by hand, or from a script, that a dataset has grown."""

from __future__ import annotations

from argparse import Namespace
from typing import Any, Mapping, Optional, Union

from headrace.cli import show
from headrace.connection import api_path, connect


def send(arguments: Namespace) -> None:
    told = {
        "dataset": arguments.dataset,
        "from": _point(arguments.start),
        "to": _point(arguments.end),
        "rows": arguments.rows,
        "id": arguments.id,
    }
    found = connect().post(api_path("events"), {name: value for name, value in told.items() if value is not None})
    if arguments.json:
        return show.as_json(found)
    print(_sentence(found))


def _sentence(found: Mapping[str, Any]) -> str:
    runs = ", ".join(f"run {run}" for run in found["runs"]) or "no run: no model's release uses it yet"
    if found["nudged"]:
        return f"{found['dataset']} has a source of its own: the watcher looks there now"
    if found["repeated"]:
        return f"known already as arrival {found['arrival']}: {runs}"
    return f"arrival {found['arrival']} of {found['dataset']}: {runs}"


def _point(text: Optional[str]) -> Union[int, str, None]:
    """Points of an integer cursor are sent as numbers, all others (times) as they are."""
    return int(text) if text and text.lstrip("-").isdigit() and text.isascii() else text
