"""The command line as a person and a script meet it, against a twin of the API."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from headrace import consumer
from headrace.cli import main
from headrace.cli.parser import parser

from tests.contract.client_twin import TOKEN, Twin, describe, files_of, serve
from tests.faulty_proxy import Fault, FaultyProxy

MODEL = "flight-delays"
COMMANDS = [
    "status",
    "why",
    "history",
    "send",
    "runs",
    "run",
    "logs",
    "retrain",
    "cancel",
    "retry",
    "models",
    "versions",
    "version",
    "promote",
    "rollback",
    "pin",
    "unpin",
    "pull",
    "bump",
    "init",
    "try",
]

DEED: dict[str, Any] = {
    "id": 4,
    "at": "2026-11-23T18:00:00Z",
    "actor": "alice",
    "action": "rollback",
    "subject": f"version 3 of {MODEL}",
    "model": MODEL,
    "reason": "late\x1b[2J flights",
    "before": {"champion": 4},
    "after": {"champion": 3},
}
RUN: dict[str, Any] = {
    "id": 17,
    "model": MODEL,
    "state": "failed",
    "reason": "arrival",
    "sentence": "27,004 new rows of flights",
    "release": {"name": "v1.4.0", "commit": "c0ffee1234"},
    "compute_class": "compute-optimized",
    "planned_at": "2026-11-23T18:00:00Z",
    "due_at": "2026-11-23T18:00:01Z",
    "started_at": "2026-11-23T18:00:02.250000Z",
    "finished_at": "2026-11-23T18:00:09Z",
    "cut": {"flights": {"upto": 27004}},
    "cut_digest": "sha256:aa",
    "progress": None,
    "error": {
        "kind": "author_error",
        "message": "KeyError: 'carrier'\x1b[2J",
        "advice": "fix train() and tag a release",
    },
    "version": None,
    "bundle": None,
    "attempts": [
        {
            "number": 1,
            "worker": "trainer-a",
            "started_at": "2026-11-23T18:00:02Z",
            "ended_at": "2026-11-23T18:00:09Z",
            "outcome": "failed",
            "error": "author_error",
            "seconds": {"environment": 0.02, "train": 6.5},
        }
    ],
}


def told(name: str, champion: int | None) -> dict[str, Any]:
    return {
        "name": name,
        "repository": "https://git.example.com/x.git",
        "datasets": ["flights"],
        "compute_class": "standard",
        "release": {"name": "v1.4.0", "commit": "c0ffee1234", "seen_at": "2026-11-23T18:00:00Z"},
        "release_error": None,
        "champion": {"version": champion, "digest": "sha256:aa", "since": "2026-11-23T18:00:00Z"} if champion else None,
        "waiting_run": None,
        "running_run": None,
        "sentence": "Nothing is new since run 16.",
    }


@pytest.fixture
def twin(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Twin]:
    with serve() as twin:
        monkeypatch.setenv("HEADRACE_URL", twin.url)
        monkeypatch.setenv("HEADRACE_TOKEN", TOKEN)
        monkeypatch.chdir(tmp_path)
        twin.answers["/v1/runs"] = (200, {"items": [RUN], "next": None})
        twin.answers["/v1/runs/17"] = (200, RUN)
        twin.answers["/v1/history"] = (200, {"items": [DEED], "next": None})
        twin.answers["/v1/models"] = (200, {"items": [told(MODEL, 14), told("churn", None)], "next": None})
        yield twin


def test_help_is_there_within_80_ms() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    command = [sys.executable, "-c", "import sys; from headrace.cli import main; sys.exit(main(['--help']))"]
    took_ms = []
    for _ in range(5):
        began = _children_s()
        subprocess.run(command, check=True, capture_output=True, env=environment)
        took_ms.append((_children_s() - began) * 1000)
    assert min(took_ms) < 80


def _children_s() -> float:
    """Processor time of the children that have ended: unlike the clock's, a busy machine hardly changes it."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_neither_help_nor_a_plain_table_loads_what_it_does_not_need() -> None:
    code = (
        "import sys; from headrace.cli.parser import parser; parser().format_help();"
        "print([name for name in ('rich', 'urllib.request', 'ssl', 'json', 'headrace.connection') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "[]\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example_and_json(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    assert caught.value.code == 0
    said = capsys.readouterr().out
    assert f"examples:\n  headrace {command}" in said
    assert "--json" in said


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["nonsense"],
        ["run"],
        ["retrain"],
        ["retrain", MODEL, "--all"],
        ["run", "x"],
        ["run", "0"],
        ["promote", MODEL, "3"],
        ["runs", "--limit", "-1"],
        ["retrain", MODEL, "--sample", "all"],
        ["retrain", MODEL, "--sample", "60%"],
        ["retrain", MODEL, "--sample", "0"],
    ],
)
def test_wrong_usage_is_exit_code_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parser().parse_args(words)
    assert caught.value.code == 2
    assert "usage: headrace" in capsys.readouterr().err


def test_runs_are_aligned_plain_text_when_piped(twin: Twin, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", MODEL, "--state", "failed", "--limit", "5"]) == 0
    head, row = capsys.readouterr().out.splitlines()
    assert head.split() == ["RUN", "MODEL", "STATE", "RELEASE", "VERSION", "WHEN", "WHAT"]
    assert row.index(MODEL) == head.index("MODEL")
    assert row.endswith("author_error: KeyError: 'carrier' [2J"), "no escape sequence of a model reaches the terminal"
    assert twin.requests == [f"/v1/runs?model={MODEL}&state=failed&limit=5"]


def test_history_says_who_did_what_and_what_it_changed(twin: Twin, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["history", MODEL]) == 0
    head, row = capsys.readouterr().out.splitlines()
    assert head.split() == ["WHEN", "WHO", "WHAT", "OF", "BEFORE", "AFTER", "WHY"]
    assert row.endswith(f"alice  rollback  version 3 of {MODEL}  champion 4  champion 3  late [2J flights")
    assert twin.requests == [f"/v1/history?model={MODEL}&limit=20"]


def test_one_run_tells_its_error_advice_and_attempts(twin: Twin, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "17"]) == 0
    said = capsys.readouterr().out
    assert "flights up to 27004" in said
    assert "fix train() and tag a release" in said
    assert "environment 0.02, train 6.5" in said


@pytest.mark.parametrize("words", [["runs"], ["run", "17"], ["models"], ["history"]])
def test_json_is_what_the_api_said(twin: Twin, capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    assert main([*words, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said == RUN if words == ["run", "17"] else isinstance(said, list)


def test_lists_are_followed_page_by_page(twin: Twin, capsys: pytest.CaptureFixture[str]) -> None:
    pages = iter([{"items": [RUN] * 100, "next": "100"}, {"items": [RUN] * 20, "next": None}])
    twin.turns["/v1/runs"] = pages
    assert main(["runs", "--limit", "150", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 120
    assert twin.requests == ["/v1/runs?limit=100", "/v1/runs?limit=50&after=100"]


def test_models_beside_a_models_toml_say_what_you_run(
    twin: Twin, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "models.toml").write_text(
        f"[models.{MODEL}]\nversion = 12\n[models.churn]\nversion = 1\n[models.gone]\nversion = 2\n"
    )
    assert main(["models"]) == 0
    said = capsys.readouterr().out
    assert f"{MODEL}: you run 12, champion is 14 (take it: headrace bump {MODEL})" in said
    assert "churn: you run 1, there is no champion yet" in said
    assert "gone: you name it, but Headrace has no such model" in said


def test_pull_fetches_all_that_models_toml_names(
    twin: Twin, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    twin.publish(MODEL, 12, files_of(0.1))
    twin.publish("churn", 3, files_of(0.2))
    (tmp_path / "models.toml").write_text(f'[models.{MODEL}]\nversion = 12\n[models.churn]\nversion = "champion"\n')
    assert main(["pull"]) == 0
    assert (
        capsys.readouterr().out
        == f"{MODEL} 12 is in models/{MODEL}/12, checked\nchurn 3 is in models/churn/3, checked\n"
    )
    assert (tmp_path / "models" / "churn" / "3" / "MLmodel").is_file()


def test_a_sample_says_that_it_is_one_wherever_it_is_met(
    twin: Twin, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    twin.publish(MODEL, 3, files_of(0.1), champion=False)
    home = f"/v1/models/{MODEL}/versions"
    twin.versions[f"{home}/3"] |= {"state": "sample", "sample": "20000", "verdict": None}
    twin.answers[home] = (200, {"items": [twin.versions[f"{home}/3"]], "next": None})
    sampled = {**RUN, "state": "trained", "error": None, "sample": "1%", "version": 3}
    twin.answers["/v1/runs/17"] = (200, sampled)
    twin.answers["/v1/runs"] = (200, {"items": [sampled], "next": None})
    caution = "\n  it was trained on a sample of 20,000 rows: build against it, do not serve it\n"

    assert main(["pull", MODEL, "--version", "3"]) == 0
    assert capsys.readouterr().out == f"{MODEL} 3 is in models/{MODEL}/3, checked{caution}"
    assert consumer.receipt(tmp_path / "models" / MODEL / "3")["sample"] == "20000"
    (tmp_path / "models.toml").write_text(f"[models.{MODEL}]\nversion = 1\n")
    assert main(["bump", MODEL, "3"]) == 0
    assert capsys.readouterr().out.endswith(f"+ version = 3{caution}")
    assert main(["versions", MODEL]) == 0
    assert capsys.readouterr().out.splitlines()[1].split()[:2] == ["3", "sample"]
    for words, said in (
        (["version", MODEL, "3"], "a sample of 20,000 rows: to build against, it never serves"),
        (["run", "17"], "a sample of 1% of the rows; its version never serves"),
        (["runs"], "on a sample of 1% of the rows; "),
    ):
        assert main(words) == 0
        assert said in capsys.readouterr().out
    twin.answers["/v1/runs"] = (202, {**sampled, "state": "waiting"})
    assert main(["retrain", MODEL, "--sample", "1%"]) == 0
    assert "never promoted: headrace run 17 names its version" in capsys.readouterr().out


def test_bump_changes_one_line_and_shows_it(twin: Twin, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    twin.publish(MODEL, 14, files_of(0.1))
    file = tmp_path / "models.toml"
    file.write_text(f"[models.{MODEL}]\nversion = 12  # summer\n")
    assert main(["bump"]) == 0
    assert capsys.readouterr().out == f"{MODEL}\n- version = 12  # summer\n+ version = 14  # summer\n"
    assert main(["bump"]) == 0
    assert capsys.readouterr().out == f"{MODEL} is on 14 already\n"
    assert main(["bump", MODEL, "99"]) == 1, "a version that does not exist must not get into the file"
    assert file.read_text() == f"[models.{MODEL}]\nversion = 14  # summer\n"


def test_following_a_log_goes_over_to_the_next_attempt(twin: Twin, capsys: pytest.CaptureFixture[str]) -> None:
    twin.turns["/v1/runs/17/log"] = iter(
        [
            {"text": "epoch 1\n", "offset": 8, "attempt": 1, "done": False},
            {"text": "", "offset": 8, "attempt": 1, "done": False},
            {"text": "", "offset": 8, "attempt": 2, "done": False},
            {"text": "epoch 1 again\n", "offset": 14, "attempt": 2, "done": False},
            {"text": "", "offset": 14, "attempt": 2, "done": True},
        ]
    )
    assert main(["logs", "-f", "17"]) == 0
    said = capsys.readouterr()
    assert said.out == "epoch 1\nepoch 1 again\n"
    assert said.err == "headrace: attempt 2 begins\n"
    assert [request.split("offset=")[1].split("&")[0] for request in twin.requests] == ["0", "8", "8", "0", "14"]


@pytest.mark.parametrize(
    ("words", "path", "body"),
    [
        (["retrain", MODEL, "--reason", "new gate"], "/v1/runs", {"model": MODEL, "reason": "new gate"}),
        (["retrain", MODEL, "--again"], "/v1/runs", {"model": MODEL, "again": True}),
        (["retrain", MODEL, "--sample", "1%"], "/v1/runs", {"model": MODEL, "sample": "1%"}),
        (["cancel", "17"], "/v1/runs/17/cancel", {}),
        (["retry", "17"], "/v1/runs/17/retry", {}),
        (["resume", MODEL, "--reason", "mended"], f"/v1/models/{MODEL}/resume", {"reason": "mended"}),
        (
            ["promote", MODEL, "14", "--reason", "seen"],
            f"/v1/models/{MODEL}/promote",
            {"version": 14, "reason": "seen"},
        ),
        (
            ["pin", MODEL, "14", "--reason", "ours"],
            f"/v1/models/{MODEL}/versions/14/pin",
            {"reason": "ours"},
        ),
        (["unpin", MODEL, "14"], f"/v1/models/{MODEL}/versions/14/unpin", {}),
        (["rollback", MODEL, "--reason", "slow"], f"/v1/models/{MODEL}/rollback", {"reason": "slow"}),
        (
            ["rollback", MODEL, "--to", "12", "--reason", "x"],
            f"/v1/models/{MODEL}/rollback",
            {"version": 12, "reason": "x"},
        ),
        (
            ["send", "clicks", "--from", "0", "--to", "9", "--rows", "9", "--id", "b1"],
            "/v1/events",
            {"from": 0, "to": 9, "rows": 9, "id": "b1"},
        ),
        (["send", "clicks", "--to", "2026-11-23T18:00:00Z"], "/v1/events", {"to": "2026-11-23T18:00:00Z"}),
    ],
)
def test_what_changes_something_says_it_in_the_contract_s_words(
    twin: Twin, capsys: pytest.CaptureFixture[str], words: list[str], path: str, body: dict[str, Any]
) -> None:
    answer = {
        **RUN,
        "name": MODEL,
        "champion": 12,
        "arrival": 5,
        "dataset": "clicks",
        "repeated": False,
        "nudged": False,
        "runs": [17],
    }
    twin.answers[path] = (202, answer)
    assert main(words) == 0
    assert twin.requests == [path]
    assert twin.bodies == [{"dataset": "clicks", **body} if words[0] == "send" else body]
    assert capsys.readouterr().out


ACCEPTED = {"arrival": 5, "dataset": "clicks", "repeated": False, "nudged": False, "runs": [17]}


def test_a_report_whose_answer_is_lost_is_sent_again_under_the_same_key(
    twin: Twin, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    twin.answers["/v1/events"] = (202, ACCEPTED)
    with FaultyProxy(twin.url) as proxy:
        monkeypatch.setenv("HEADRACE_URL", proxy.url)
        proxy.fail(1, Fault.DROP_REPLY)
        assert main(["send", "clicks"]) == 0
        assert main(["send", "clicks"]) == 0
    first, again, other = twin.keys
    assert first == again != other
    assert "arrival 5 of clicks: run 17" in capsys.readouterr().out


def test_status_says_which_class_nobody_serves_and_what_starts_a_worker(
    twin: Twin, capsys: pytest.CaptureFixture[str]
) -> None:
    counts = {"runs": {"waiting": 3, "running": 0}, "deliveries": {"pending": 0, "failed": 0}}
    unserved = [{"compute_class": "gpu", "due": 3, "start": "HEADRACE_COMPUTE_CLASS=gpu python -m services.trainer"}]
    twin.answers["/v1/status"] = (200, {"models": [], "datasets": [], "workers": [], **counts, "unserved": unserved})
    assert main(["status"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "No worker serves gpu (3 due); start one with: HEADRACE_COMPUTE_CLASS=gpu python -m services.trainer" in said


def test_status_says_what_was_rejected_and_what_to_do_about_it(twin: Twin, capsys: pytest.CaptureFixture[str]) -> None:
    counts = {"runs": {"waiting": 0, "running": 0}, "deliveries": {"pending": 0, "failed": 0}}
    rejected = {"count": 3, "last_reason": "there is no\x1b[2J dataset 'clicks'", "last_at": "2026-01-01T00:00:00Z"}
    status = {"models": [], "datasets": [], "workers": [], **counts, "rejections": rejected}
    twin.answers["/v1/status"] = (200, status)
    assert main(["status"]) == 0
    said = capsys.readouterr().out
    assert "Rejected from the stream: 3; the last" in said
    assert "there is no [2J dataset 'clicks'" in said
    assert "send them again from headrace:rejected" in said
    twin.answers["/v1/status"] = (200, status | {"rejections": rejected | {"count": 0}})
    assert main(["status"]) == 0
    assert "Rejected" not in capsys.readouterr().out


def test_one_version_tells_its_verdict_and_size(twin: Twin, capsys: pytest.CaptureFixture[str]) -> None:
    twin.publish(MODEL, 14, files_of(0.1))
    assert main(["version", MODEL, "champion"]) == 0
    said = capsys.readouterr().out
    assert "auc 0.71 is at least 0.6" in said
    assert describe(MODEL, 14, files_of(0.1))["digest"] in said


def test_a_version_shows_its_pin_and_that_its_files_are_gone(twin: Twin, capsys: pytest.CaptureFixture[str]) -> None:
    shown = describe(MODEL, 14, files_of(0.1))
    pin = {"by": "alice", "reason": "the storefront runs it", "at": "2026-11-23T18:00:00Z"}
    twin.answers[f"/v1/models/{MODEL}/versions/14"] = (200, {**shown, "pin": pin})
    assert main(["version", MODEL, "14"]) == 0
    assert "by alice" in capsys.readouterr().out
    gone = {**shown, "pin": None, "tidied_at": "2026-11-23T18:00:00Z", "files": []}
    twin.answers[f"/v1/models/{MODEL}/versions/14"] = (200, gone)
    assert main(["version", MODEL, "14"]) == 0
    assert "tidied away" in capsys.readouterr().out
    assert main(["pull", MODEL, "--version", "14"]) == 1
    assert "were tidied away" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("tidied", "line"),
    [
        (None, "Nothing was tidied away yet."),
        (
            {
                "at": "2026-11-23T18:00:00Z",
                "taken": {"logs": {"count": 3, "size_bytes": 1200}, "notices": {"count": 2, "size_bytes": 0}},
                "error": "MLflow is away",
            },
            "3 logs (1.2 kB), 2 notices. Not all could be done: MLflow is away",
        ),
        ({"at": "2026-11-23T18:00:00Z", "taken": {}, "error": None}, "nothing to take."),
    ],
)
def test_status_says_in_one_line_what_was_tidied_away(
    twin: Twin, capsys: pytest.CaptureFixture[str], tidied: object, line: str
) -> None:
    counts = {"runs": {"waiting": 0, "running": 0}, "deliveries": {"pending": 0, "failed": 0}}
    twin.answers["/v1/status"] = (200, {"models": [], "datasets": [], "workers": [], **counts, "tidied": tidied})
    assert main(["status"]) == 0
    assert line in capsys.readouterr().out


def test_a_problem_is_one_line_advice_and_exit_code_1(twin: Twin, capsys: pytest.CaptureFixture[str]) -> None:
    twin.answers["/v1/runs/17/cancel"] = (
        409,
        {
            "title": "Conflict",
            "status": 409,
            "detail": "run 17 has failed",
            "advice": "there is nothing to cancel",
            "errors": [],
        },
    )
    assert main(["cancel", "17"]) == 1
    assert capsys.readouterr().err == "headrace: run 17 has failed\nthere is nothing to cancel\n"
    assert main(["cancel", "17", "--json"]) == 1
    assert json.loads(capsys.readouterr().err)["status"] == 409


def test_no_stack_is_one_line_advice_and_exit_code_1(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HEADRACE_URL", "http://127.0.0.1:1")
    assert main(["status"]) == 1
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("headrace: nothing answers at http://127.0.0.1:1")
    assert "make up" in second


def test_a_table_on_a_terminal_is_drawn_with_rich(twin: Twin) -> None:
    import pty

    ours, theirs = pty.openpty()
    code = "import sys; from headrace.cli import main; sys.exit(main(['runs']))"
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "160"}
    with subprocess.Popen([sys.executable, "-c", code], stdout=theirs, env=environment) as process:
        assert process.wait(timeout=30) == 0
    os.close(theirs)
    said = os.read(ours, 65_536).decode()
    os.close(ours)
    assert "\x1b[31mfailed" in said
    assert "─" in said
