"""`headrace retrain --all`, `--dataset NAME`: ask for what a change has made stale, and follow it to its verdicts."""

from __future__ import annotations

import sys
from argparse import Namespace
from typing import Any, Dict, List, Mapping, Tuple

from headrace.cli import show
from headrace.cli.board import board, summary
from headrace.cli.following import BAD, Followed, Following
from headrace.connection import Connection, Problem, api_path, connect

_CONFLICT = 409


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
    following = Following(connection, {})
    if not arguments.no_wait:
        following.begin()
    asked, spared = _ask(connection, models, arguments)
    following.entries.update({model: Followed(run) for model, run in asked.items()})
    if not arguments.json:
        for model, why in spared.items():
            print(f"{model}: {why}")
    if asked and not arguments.no_wait:
        _follow(following, quiet=arguments.json)
    _tell(following, spared, arguments)
    return 1 if any(one.result in BAD for one in following.entries.values()) else 0


def _ask(
    connection: Connection, models: List[str], arguments: Namespace
) -> Tuple[Dict[str, Mapping[str, Any]], Dict[str, str]]:
    """The runs by model, and why a model is spared one: nothing has changed for it, or it has no release."""
    asked: Dict[str, Mapping[str, Any]] = {}
    spared: Dict[str, str] = {}
    wished = {"reason": arguments.reason, "again": arguments.again, "sample": arguments.sample}
    for model in models:
        try:
            body = {"model": model, **{key: value for key, value in wished.items() if value}}
            asked[model] = connection.post(api_path("runs"), body)
        except Problem as problem:
            if problem.status != _CONFLICT:
                raise
            spared[model] = problem.message
    return asked, spared


def _follow(following: Following, *, quiet: bool) -> None:
    """Show what changes until every run is through registration and verdict. Who stops looking stops no run."""
    try:
        with board(following, quiet=quiet) as draw:
            draw()
            following.persist()
            draw()
            while following.going():
                following.persist(following.wait)
                following.persist()
                draw()
    except KeyboardInterrupt:
        going = len(following.going())
        print(
            f"headrace: {going} of the runs go on; `headrace runs` shows them, `headrace logs -f N` follows one, "
            "`headrace why MODEL` says what each waits for",
            file=sys.stderr,
        )
        raise


def _tell(following: Following, spared: Mapping[str, str], arguments: Namespace) -> None:
    ended = list(following.entries.values())
    if arguments.json:
        runs = [{**one.run, "result": one.result} for one in ended]
        show.as_json({"runs": runs, "spared": spared})
    elif ended:
        rows = [(one.model, one.run["id"], one.stage, one.run["version"], one.what) for one in ended]
        show.table(("model", "run", "state", "version", "what"), rows, empty="")
        if not arguments.no_wait:
            print(summary(following))
