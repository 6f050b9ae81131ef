"""`headrace models`, `resume`: the models, and beside a models.toml what you run of them; and letting a paused one go on."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional

from headrace.cli import show
from headrace.connection import api_path, connect
from headrace.lock import CHAMPION, Choice, read_versions


def models(arguments: Namespace) -> None:
    lock = Path(arguments.lock)
    yours = read_versions(lock) if lock.exists() else {}
    found = connect().items(api_path("models"))
    if arguments.json:
        return show.as_json([{**model, "yours": yours.get(model["name"])} for model in found])
    show.table(
        ("model", "champion", "release", "used", "now"),
        [_with_used(model) for model in found],
        empty="No models yet: the operator names them in headrace.toml.",
    )
    for sentence in _compared(yours, found):
        print(sentence)


def resume(arguments: Namespace) -> None:
    body = {"reason": arguments.reason} if arguments.reason else {}
    found = connect().post(api_path("models", arguments.model, "resume"), body)
    if arguments.json:
        return show.as_json(found)
    print(f"{found['name']} trains again: {found['sentence']}")


def model_row(model: Mapping[str, Any]) -> show.Row:
    """Name, champion, release, and the sentence that says what it does."""
    champion, release = model["champion"], model["release"]
    since = show.ago(champion["since"]) if champion else None
    named = f"{release['name']} ({release['commit'][:8]})" if release else None
    paused = f"PAUSED after {model['paused']['failed']} failed runs; " if model.get("paused") else ""
    refused = f" Release refused: {model['release_error']}" if model.get("release_error") else ""
    return (
        model["name"],
        f"{champion['version']} ({since})" if champion else None,
        named,
        f"{paused}{model['sentence'] or ''}{refused}",
    )


def _with_used(model: Mapping[str, Any]) -> show.Row:
    *known, now = model_row(model)
    return (*known, show.used(model.get("used")), now)


def champion_of(model: Mapping[str, Any]) -> Optional[int]:
    return model["champion"]["version"] if model["champion"] else None


def _compared(yours: Dict[str, Choice], found: List[Dict[str, Any]]) -> List[str]:
    champions = {model["name"]: champion_of(model) for model in found}
    return [_sentence(model, choice, champions) for model, choice in yours.items()]


def _sentence(model: str, choice: Choice, champions: Mapping[str, Optional[int]]) -> str:
    if model not in champions:
        return f"{model}: you name it, but Headrace has no such model"
    champion = champions[model]
    if champion is None:
        return f"{model}: you run {choice}, there is no champion yet"
    if choice in (CHAMPION, champion):
        return f"{model}: you run {champion}, the champion"
    return f"{model}: you run {choice}, champion is {champion} (take it: headrace bump {model})"
