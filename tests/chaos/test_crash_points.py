"""A process is killed just before and just after each commit and each call to another system; nothing is lost, and nothing is done twice."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from stack.audit.look import audit
from tests.chaos.arena import Arena
from tests.chaos.stories import Cast
from tests.chaos.strikes import Board
from tests.faulty_proxy import FaultyProxy
from tests.servers import Server

ROUNDS, TIDYINGS = 5, 4
EVERYWHERE = bool(os.environ.get("EVERYWHERE"))
"""The long form, `make crash`: each kind of process dies at each side that it comes to, and not only the first of all that gets there."""


@pytest.fixture(scope="module")
def cast(mlflow_server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cast]:
    with FaultyProxy(mlflow_server.url) as proxy:
        arena = Arena(tmp_path_factory.mktemp("arena"), proxy.url, everywhere=EVERYWHERE)
        made = Cast(arena, proxy)
        try:
            arena.start()
            yield made
        finally:
            arena.stop()


@pytest.mark.timeout(600)
def test_no_kill_at_any_point_loses_or_doubles_anything(cast: Cast, capsys: pytest.CaptureFixture[str]) -> None:
    arena = cast.arena
    for _ in range(ROUNDS):
        before = len(arena.board.strikes())
        cast.round()
        if (len(arena.board.strikes()) == before or not EVERYWHERE) and not open_sides(arena):
            break
    check(cast)
    assert notices(arena) == list(range(1, len(notices(arena)) + 1)), "the numbers of notices have no gap"
    for _ in range(TIDYINGS):
        cast.tidy()
        if not arena.board.left(arena.points):
            break
    cast.settle()
    check(cast)
    with capsys.disabled():
        print(table(arena.board, arena.points))
    assert not arena.board.left(arena.points), "no story comes to these points: tell one that does"


def open_sides(arena: Arena) -> list[str]:
    """What nobody has reached, without what only the janitors come to, at the end."""
    tidying = ("retention.", "remove", "prune", "mlflow delete")
    return [side for side in arena.board.left(arena.points) if not any(word in side for word in tidying)]


def check(cast: Cast) -> None:
    """What was promised, seen from the ledger, from MLflow, from the consumer and from the process list."""
    arena = cast.arena
    report = audit(arena.settings, deep=True)
    assert report.exit_code == 0, json.dumps(report.to_json(), indent=1)
    for model in cast.models:
        assert not model.processes(), f"a process of {model.name} has outlived its attempt"
        runs = [run["id"] for run in model.runs("trained")]
        versions = [one["run"] for one in model.versions()]
        assert Counter(versions) == Counter(runs), f"each trained run of {model.name} is one version"
    told = set(zip((int(one["sequence"]) for one in arena.hook.received), arena.hook.ids, strict=True))
    assert len(told) == len({sequence for sequence, _ in told}), "a notice has one id, however often it is sent"
    assert deliveries(arena) <= told, "each notice has reached the consumer"


def notices(arena: Arena) -> list[int]:
    found: list[int] = []
    while page := arena.get(f"/v1/notices?limit=200&after={found[-1] if found else 0}")["items"]:
        found += [int(one["sequence"]) for one in page]
    return found


def deliveries(arena: Arena) -> set[tuple[int, str]]:
    found: set[tuple[int, str]] = set()
    path = "/v1/deliveries?limit=200"
    while True:
        page: dict[str, Any] = arena.get(path)
        found |= {(one["sequence"], one["id"]) for one in page["items"]}
        if page["next"] is None:
            return found
        path = f"/v1/deliveries?limit=200&after={page['next']}"


def table(board: Board, points: dict[str, str]) -> str:
    """Each point, where it is declared, and who was killed on either side of it."""
    killed: dict[tuple[str, str], str] = {}
    for one in board.strikes():
        for name in one.points:
            key = (name.rpartition(": ")[2], str(one.side))
            killed[key] = ", ".join(filter(None, (killed.get(key), one.process.partition("-")[0])))
    lines = [f"{'point':42} {'declared in':44} {'before':10} after"]
    for name, where in sorted(points.items()):
        before, after = (killed.get((name, side), "-") for side in ("before", "after"))
        lines.append(f"{name:42} {where:44} {before:10} {after}")
    return "\n".join(["", *lines, f"{len(points)} points, {len(board.strikes())} processes killed"])
