"""`headrace send`: report by hand, or from a script, that a dataset has grown; over REST, or onto the stream."""

from __future__ import annotations

import uuid
from argparse import Namespace
from datetime import datetime, timezone
from typing import Any, Dict, Mapping, Optional, Union

from headrace import stream
from headrace.cli import show
from headrace.connection import Unreachable, api_path, connect

_SOURCE = "rest"
"""As the API has it for its shorthand: the same --id is then the same report, whichever way it goes."""


def send(arguments: Namespace) -> None:
    if arguments.stream is not None:
        return _add(arguments)
    told = _known({"dataset": arguments.dataset, **_growth(arguments), "id": arguments.id})
    found = _post(told)
    if arguments.json:
        return show.as_json(found)
    print(_sentence(found))


def _post(told: Mapping[str, object]) -> Dict[str, Any]:
    """Once more when the answer is lost: under the same key the report counts once."""
    headers = {"Idempotency-Key": str(uuid.uuid4())}
    try:
        return connect().post(api_path("events"), told, headers)
    except Unreachable:
        return connect().post(api_path("events"), told, headers)


def _add(arguments: Namespace) -> None:
    broker = stream.find_broker(arguments.stream)
    event = {
        "specversion": "1.0",
        "id": arguments.id or str(uuid.uuid4()),
        "source": _SOURCE,
        "type": "dataset.arrived",
        "subject": arguments.dataset,
        "time": datetime.now(timezone.utc).isoformat().replace("+00:00", "Z"),
        "datacontenttype": "application/json",
        "data": _known(_growth(arguments)),
    }
    entry = stream.add(broker, event)
    if arguments.json:
        return show.as_json({"stream": stream.STREAM, "entry": entry, "id": event["id"]})
    print(f"entry {entry} of {stream.STREAM} at {broker.address}, event {event['id']}: the watcher takes it from there")
    print(f"`headrace status` shows {arguments.dataset} and, if the event could not be read, why")


def _growth(arguments: Namespace) -> Dict[str, object]:
    return {"from": _point(arguments.start), "to": _point(arguments.end), "rows": arguments.rows}


def _known(values: Mapping[str, object]) -> Dict[str, object]:
    return {name: value for name, value in values.items() if value is not None}


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
