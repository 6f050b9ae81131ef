"""`headrace init`: a new model repository, and what to do with it next."""

from __future__ import annotations

import sys
from argparse import Namespace
from pathlib import Path

from headrace.cli import show
from headrace.connection import Problem


def run(arguments: Namespace) -> None:
    if sys.version_info < (3, 11):
        raise Problem("headrace init needs Python 3.11 or newer")
    from headrace import starter

    place = Path(arguments.path).resolve()
    model = starter.write(place, "command" if arguments.command_line else "function", arguments.name)
    unlocked = starter.lock(place)
    uncommitted = starter.commit(place)
    lines = config(model, place)
    if arguments.json:
        told = {"model": model, "path": str(place), "config": lines, "unlocked": unlocked, "uncommitted": uncommitted}
        return show.as_json(told)
    print(f"{place} is the repository of a new model, {model}.")
    if unlocked:
        print(
            f"There is no uv.lock ({unlocked}); run `uv lock` and commit it, so that each release names its versions."
        )
    if uncommitted:
        print(f"Nothing is committed: {uncommitted}")
    else:
        print(f"Its first commit is tagged {starter.VERSION}.")
    print(
        f"\nTry it:\n\n  headrace try {arguments.path}\n\nThe operator's lines in headrace.toml, once it is pushed:\n\n{lines}"
    )


def config(model: str, place: Path) -> str:
    return (
        "[datasets.readings]\n"
        'source = { kind = "sql", url = "sqlite:////srv/readings.db", table = "readings", cursor = "id" }\n\n'
        f"[models.{model}]\n"
        f'repository = "{place}"\n'
    )
