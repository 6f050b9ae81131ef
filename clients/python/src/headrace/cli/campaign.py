"""`headrace retrain --all`, `--dataset NAME`: ask for what a change has made stale, and follow it to its end."""

from __future__ import annotations

import sys
import time
from argparse import Namespace
from typing import Any, Dict, List, Mapping, Optional

from headrace.cli import show
from headrace.connection import Connection, Problem, api_path, connect

_LOOK_S = 1.0
_CONFLICT = 409
_ENDS = ("trained", "failed", "cancelled")


def retrain(arguments: Namespace) -> int:
    """The exit code: 1 if a run has failed or was cancelled."""
    connection = connect()
    models = [
        model["name"]
        for model in connection.items(api_path("models"))
        if arguments.dataset is None or arguments.dataset in model["datasets"]
    ]
    if not models:
        raise Problem("there is no such model", "`headrace models` lists the models, `headrace status` the datasets")
    asked, spared = _ask(connection, models, arguments)
    say = (lambda line: None) if arguments.json else print
    for model, why in spared.items():
        say(f"{model}: {why}")
    ended = list(asked.values()) if arguments.no_wait else _follow(connection, asked, say)
    if arguments.json:
        show.as_json({"runs": ended, "spared": spared})
    elif ended:
        rows = [(run["model"], run["id"], run["state"], run["version"], _what(run)) for run in ended]
        show.table(("model", "run", "state", "version", "what"), rows, empty="")
    return 1 if any(run["state"] in _ENDS[1:] for run in ended) else 0


def _ask(connection: Connection, models: List[str], arguments: Namespace) -> Any:
    """The runs by model, and why a model is spared one: nothing has changed for it, or it has no release."""
    asked: Dict[str, Mapping[str, Any]] = {}
    spared: Dict[str, str] = {}
    for model in models:
        body: Dict[str, Any] = {"model": model}
        if arguments.reason:
            body["reason"] = arguments.reason
        if arguments.again:
            body["again"] = True
        try:
            asked[model] = connection.post(api_path("runs"), body)
        except Problem as problem:
            if problem.status != _CONFLICT:
                raise
            spared[model] = problem.message
    return asked, spared


def _follow(connection: Connection, asked: Mapping[str, Mapping[str, Any]], say: Any) -> List[Mapping[str, Any]]:
    """Look until every run has ended, and say what changes. Who stops looking stops no run."""
    runs, told = dict(asked), dict.fromkeys(asked, "")
    try:
        while True:
            for model, run in runs.items():
                if (line := _line(run)) != told[model]:
                    told[model] = line
                    say(f"{model}: run {run['id']} {line}")
            going = [model for model, run in runs.items() if run["state"] not in _ENDS]
            if not going:
                return list(runs.values())
            time.sleep(_LOOK_S)
            for model in going:
                runs[model] = connection.get(api_path("runs", runs[model]["id"]))
    except KeyboardInterrupt:
        print("headrace: the runs go on; `headrace runs` shows them", file=sys.stderr)
        raise


def _line(run: Mapping[str, Any]) -> str:
    progress: Optional[Mapping[str, Any]] = run["progress"]
    if run["state"] == "running" and progress:
        return f"running {progress['fraction']:.0%} {progress['note']}".strip()
    return str(run["state"])


def _what(run: Mapping[str, Any]) -> str:
    error = run["error"]
    return f"{error['kind']}: {str(error['message']).partition(chr(10))[0]}" if error else str(run["reason"])
