"""`headrace retrain --all` and `--dataset NAME`: a campaign is asked for, followed to its verdicts, shown while it goes on, and told at its end."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from headrace.cli import main
from headrace.cli.board import in_order, line, summary
from headrace.cli.following import Followed, Following
from headrace.connection import Connection

from tests.contract.client_twin import TOKEN, Twin, serve

MODELS = ("delays", "churn", "prices")
RUN: dict[str, Any] = {
    "id": 0,
    "model": "",
    "state": "waiting",
    "reason": "alice asked for it",
    "sentence": "is due (was asked for, due at once) and is about to be claimed",
    "sample": None,
    "progress": None,
    "left_s": None,
    "error": None,
    "version": None,
}
ERROR = {"kind": "author_error", "message": "KeyError: 'x'\nand a traceback", "advice": "mend it"}


class House:
    """What the API says of the campaign's runs, which begin at 11; a test moves them on."""

    def __init__(self, twin: Twin) -> None:
        self.twin = twin
        models = [{"name": name, "datasets": ["flights"] if name != "prices" else ["sales"]} for name in MODELS]
        twin.answers["/v1/models"] = (200, {"items": models, "next": None})
        self.runs = {name: {**RUN, "id": 11 + n, "model": name} for n, name in enumerate(MODELS)}
        self.asked = iter(MODELS)
        for name in MODELS:
            self.move(name)

    def move(self, name: str, state: str = "waiting", version: str | None = None, **more: Any) -> None:
        """The run is so far; its version, with the run's number, in that state."""
        run = self.runs[name] = {**self.runs[name], "state": state, **more}
        if version is not None:
            run["version"] = run["id"]
            verdict = {"reasons": [f"{name} is better"], "decision": "promote"} if version != "candidate" else None
            told = {"version": run["id"], "state": version, "verdict": verdict}
            self.twin.answers[f"/v1/models/{name}/versions/{run['id']}"] = (200, told)
        self.twin.answers[f"/v1/runs/{run['id']}"] = (200, run)
        running = [one for one in self.runs.values() if one["state"] == "running"]
        self.twin.answers["GET /v1/runs"] = (200, {"items": running, "next": None})

    def tell(self, name: str, kind: str = "version.promoted") -> None:
        sequence = str(len(self.twin.notices) + 1)
        self.twin.notices.append({"type": kind, "subject": name, "sequence": sequence})


@pytest.fixture
def house(monkeypatch: pytest.MonkeyPatch) -> Iterator[House]:
    with serve() as twin:
        monkeypatch.setenv("HEADRACE_URL", twin.url)
        monkeypatch.setenv("HEADRACE_TOKEN", TOKEN)
        yield House(twin)


@pytest.fixture
def steps(house: House, monkeypatch: pytest.MonkeyPatch) -> list[Callable[[], object]]:
    """What happens while the campaign waits for news, one a turn; the twin's long poll answers at once."""
    planned: list[Callable[[], object]] = []
    wait = Following.wait

    def waiting(following: Following) -> None:
        assert planned, "it should have ended by now"
        planned.pop(0)()
        wait(following)

    monkeypatch.setattr(Following, "wait", waiting)
    return planned


def ask_for(house: House, *names: str) -> None:
    """The twin answers each wish with the next of these runs."""
    house.twin.turns["POST /v1/runs"] = iter([house.runs[name] for name in names])


def test_a_campaign_is_followed_through_registration_and_verdict(
    house: House, steps: list[Callable[[], object]], capsys: pytest.CaptureFixture[str]
) -> None:
    ask_for(house, "delays", "churn")
    half, most = ({"fraction": fraction, "note": "fitting"} for fraction in (0.52, 0.58))
    steps += [
        lambda: house.move("delays", "running", progress=half, left_s=12.0),
        lambda: house.move("delays", "running", progress=most, left_s=11.0),
        lambda: house.move("delays", "trained"),
        lambda: (house.move("delays", "trained", "candidate"), house.move("churn", "running")),
        lambda: (house.move("delays", "trained", "promoted"), house.tell("delays")),
        lambda: (house.move("churn", "trained", "rejected"), house.tell("churn", "version.rejected")),
    ]
    assert main(["retrain", "--dataset", "flights", "--reason", "new rows"]) == 0
    assert house.twin.bodies == [{"model": name, "reason": "new rows"} for name in ("delays", "churn")]
    lines = capsys.readouterr().out.splitlines()
    assert lines[:8] == [
        "delays: run 11 waiting",
        "churn: run 12 waiting",
        "delays: run 11 running 52% fitting, about 12 s left",  # not told again before it is a tenth further
        "delays: run 11 registering",
        "delays: run 11 judging",
        "churn: run 12 running",
        "delays: run 11 promoted (version 11)",
        "churn: run 12 rejected (version 12)",
    ]
    assert [one.split()[:4] for one in lines[9:11]] == [
        ["delays", "11", "promoted", "11"],
        ["churn", "12", "rejected", "12"],
    ]
    assert "delays is better" in lines[9]
    assert lines[11] == "2 of 2: 1 promoted, 1 rejected"


def test_a_run_that_waits_is_not_asked_for_before_there_is_news_of_it(
    house: House, steps: list[Callable[[], object]]
) -> None:
    ask_for(house, "delays", "churn")
    steps += [lambda: None] * 5
    steps += [lambda: (house.move("churn", "failed", error=ERROR), house.tell("churn", "run.failed"))]
    steps += [lambda: (house.move("delays", "trained", "promoted"), house.tell("delays"))]
    assert main(["retrain", "--dataset", "flights"]) == 1
    single = [path for path in house.twin.requests if re.fullmatch(r"/v1/runs/\d+", path)]
    assert single == ["/v1/runs/11", "/v1/runs/12", "/v1/runs/12", "/v1/runs/11"], (
        "all at first, then each as it is told"
    )


def test_what_was_told_before_it_began_is_no_news(house: House, steps: list[Callable[[], object]]) -> None:
    for _ in range(3):
        house.tell("delays")
    ask_for(house, "prices")
    steps += [lambda: (house.move("prices", "trained", "awaiting"), house.tell("prices", "version.awaiting"))]
    assert main(["retrain", "--dataset", "sales"]) == 0
    polls = [path for path in house.twin.requests if "wait=" in path]
    assert "after=3&" in polls[0]


def test_those_that_are_spared_are_named_and_a_failure_is_the_exit_code(
    house: House, capsys: pytest.CaptureFixture[str]
) -> None:
    house.twin.answers["POST /v1/runs"] = (409, {"detail": "nothing has changed since run 7"})
    assert main(["retrain", "--all"]) == 0
    assert capsys.readouterr().out.splitlines() == [f"{name}: nothing has changed since run 7" for name in MODELS]
    del house.twin.answers["POST /v1/runs"]
    house.move("delays", "failed", error=ERROR)
    house.move("churn", "trained", "promoted")
    house.move("prices", "cancelled", error={"kind": "unchanged", "message": "nothing has changed"})
    ask_for(house, *MODELS)
    assert main(["retrain", "--all", "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert [run["result"] for run in told["runs"]] == ["failed", "promoted", "unchanged"]
    ask_for(house, "prices")
    assert main(["retrain", "--dataset", "sales"]) == 0, "what has nothing to train has not failed"
    capsys.readouterr()
    house.twin.answers["POST /v1/runs"] = (503, {"detail": "the database is away"})
    assert main(["retrain", "--all"]) == 1
    assert "the database is away" in capsys.readouterr().err
    assert main(["retrain", "--dataset", "nothing"]) == 1
    assert "there is no such model" in capsys.readouterr().err


def test_without_waiting_it_only_asks(house: House, capsys: pytest.CaptureFixture[str]) -> None:
    ask_for(house, "prices")
    assert main(["retrain", "--dataset", "sales", "--no-wait", "--again", "--sample", "1%"]) == 0
    assert house.twin.bodies == [{"model": "prices", "again": True, "sample": "1%"}]
    assert house.twin.requests == ["/v1/models?limit=100", "/v1/runs"]
    assert capsys.readouterr().out.splitlines()[1].split()[:3] == ["prices", "13", "waiting"]


def test_a_platform_that_is_away_for_a_while_is_waited_for(
    house: House, steps: list[Callable[[], object]], monkeypatch: pytest.MonkeyPatch
) -> None:
    rested: list[float] = []
    monkeypatch.setattr("headrace.cli.following.time.sleep", rested.append)
    ask_for(house, "prices")
    real = Connection.get
    failures = [2]

    def get(connection: Connection, path: str, *args: Any, **more: Any) -> dict[str, Any]:
        if path == "/v1/runs/13" and failures[0]:
            failures[0] -= 1
            Connection("http://127.0.0.1:9").get("/")  # nobody listens there
        return real(connection, path, *args, **more)

    monkeypatch.setattr(Connection, "get", get)
    steps += [lambda: (house.move("prices", "trained", "promoted"), house.tell("prices"))]
    assert main(["retrain", "--dataset", "sales"]) == 0
    assert rested == [1, 1]


COMMAND = (
    "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "  # who runs in the background has none
    "from headrace.cli import main; sys.exit(main(['retrain', '--dataset', 'flights']))"
)


def test_ctrl_c_leaves_the_runs_going_and_says_how_to_look_again(house: House) -> None:
    ask_for(house, "delays", "churn")
    house.move("delays", "running")
    with subprocess.Popen(
        [sys.executable, "-c", COMMAND], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as one:
        await_(lambda: any("wait=" in path for path in house.twin.requests))
        one.send_signal(signal.SIGINT)
        _, said = one.communicate(timeout=20)
    assert one.returncode == 130
    assert said.startswith("headrace: 2 of the runs go on; `headrace runs` shows them")
    assert len(house.twin.bodies) == 2, "nothing was asked but the two runs"


def test_on_a_terminal_it_is_drawn_anew_while_it_goes_on(house: House) -> None:
    ask_for(house, "delays", "churn")
    house.move("delays", "running", progress={"fraction": 0.5, "note": "epoch 2"}, left_s=30.0)
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "120", "LINES": "30"}
    with subprocess.Popen([sys.executable, "-c", COMMAND], stdout=theirs, env=environment) as process:
        os.close(theirs)
        drawn = read_until(ours, "epoch 2")
        house.move("delays", "trained", "promoted")
        house.move("churn", "failed", error=ERROR)
        house.tell("delays")
        house.tell("churn", "run.failed")
        drawn += read_until(ours, None)
        assert process.wait(timeout=20) == 1
    os.close(ours)
    assert "0 of 2: 1 running, 1 waiting; about" in drawn
    assert "━" in drawn, "a bar"
    assert re.search(r"delays +11 +running .* 30 s +epoch 2", drawn)
    assert drawn.endswith("2 of 2: 1 promoted, 1 failed\r\n")
    assert "author_error: KeyError: 'x'" in drawn
    assert "and a traceback" not in drawn


def await_(look: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not look():
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.01)


def read_until(terminal: int, words: str | None) -> str:
    """What is drawn until there are those words, or until whoever draws has gone."""
    said = b""
    while words is None or words not in plain(said):
        try:
            said += os.read(terminal, 65_536)
        except OSError:  # as Linux says it of a terminal that nobody has open any more
            break
    return plain(said)


def plain(drawn: bytes) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", drawn.decode(errors="replace"))


def followed(model: str, state: str, **more: Any) -> Followed:
    return Followed({**RUN, "id": 1, "model": model, "state": state, **more})


def test_where_there_is_little_room_what_moves_is_shown_first() -> None:
    entries = [followed(f"waits-{n}", "waiting") for n in range(50)] + [followed("moves", "running")]
    entries.append(followed("over", "failed", error=ERROR))
    shown, left_out = in_order(entries, 10)
    assert [one.model for one in shown][:3] == ["moves", "over", "waits-0"]
    assert (len(shown), left_out) == (9, 43)
    assert in_order(entries[:5], 10) == (entries[:5], 0)


def test_what_is_left_goes_by_what_was_done_in_the_time_that_has_passed() -> None:
    half = {"fraction": 0.5, "note": ""}
    entries = {"a": followed("a", "trained"), "b": followed("b", "running", progress=half, left_s=5.0)}
    following = Following(Connection("http://127.0.0.1:9"), entries, began=time.monotonic() - 60)
    assert following.left_s() == pytest.approx(20, abs=1)
    entries["b"].run = {**entries["b"].run, "left_s": 500.0}
    assert following.left_s() == 500, "no sooner than the longest"
    assert summary(following) == "0 of 2: 1 registering, 1 running; about 8 min left"
    assert line(entries["b"]) == "running 50%, about 8 min left"
