"""`headrace history [MODEL]`: who did what, when and why, and what it changed."""

from __future__ import annotations

from argparse import Namespace
from typing import Any, Mapping

from headrace.cli import show
from headrace.connection import api_path, connect


def history(arguments: Namespace) -> None:
    query = {"model": arguments.model} if arguments.model else {}
    found = connect().items(api_path("history"), query, limit=arguments.limit)
    if arguments.json:
        return show.as_json(found)
    columns = ("when", "who", "what", "of", "before", "after", "why")
    show.table(columns, [_row(each) for each in found], empty="nobody has done anything yet")


def _row(told: Mapping[str, Any]) -> show.Row:
    changed = [show.pairs(told[side]) if told[side] else None for side in ("before", "after")]
    return (show.ago(told["at"]), told["actor"], told["action"], told["subject"], *changed, told["reason"])
