"""A release's pyproject.toml: what is taken, and what each wrong one is told."""

from __future__ import annotations

from datetime import timedelta

import pytest

from shared import declaration
from shared.declaration import Declaration, Gate, Use, parse
from shared.errors import Refused

WHOLE = b"""
[project]
name = "flight-delays"
version = "1.4.0"
requires-python = ">=3.11"
dependencies = ["scikit-learn", "pandas"]

[tool.other]
anything = true

[tool.headrace]
train = "flight_delays.model:train"
evaluate = "flight_delays.model:evaluate"
compute_class = "compute-optimized"
time_limit = "2h"

[tool.headrace.datasets.flights]
history = "365d"

[tool.headrace.gates]
auc = { min = 0.60, max_drop = 0.005 }
rmse = { lower_is_better = true, max_rise_percent = 2 }

[tool.headrace.parameters]
depth = 3
rate = 0.1
early = true
loss = "log"
"""
SMALL = '[tool.headrace]\ntrain = "m:train"\ndatasets.d = {}\n'


def refused(text: str | bytes) -> str:
    with pytest.raises(Refused) as caught:
        parse(text.encode() if isinstance(text, str) else text)
    return str(caught.value)


def test_a_whole_declaration_is_read() -> None:
    found = parse(WHOLE)
    assert (found.name, found.version, found.requires_python) == ("flight-delays", "1.4.0", ">=3.11")
    assert found.datasets == {"flights": Use(history=timedelta(days=365))}
    assert found.gates["auc"] == Gate(min=0.6, max_drop=0.005)
    assert found.parameters == {"depth": 3, "rate": 0.1, "early": True, "loss": "log"}
    assert [type(value) for value in found.parameters.values()] == [int, float, bool, str]


def test_the_smallest_declaration_is_read() -> None:
    found = parse(SMALL.encode())
    assert (found.name, found.evaluate, found.compute_class, found.gates) == (None, None, "standard", {})


def test_what_is_stored_reads_back_the_same() -> None:
    for found in (parse(WHOLE), parse(SMALL.encode()), declaration.example()):
        assert Declaration.from_json(found.to_json()) == found


# what is written after the smallest declaration; the line that is blamed; what the answer says
WRONG: list[tuple[str, int, str]] = [
    ('trian = "m:f"', 4, 'tool.headrace.trian: unknown key; did you mean "train"?'),
    ('command = "python train.py; touch x"', 4, "stands beside train; keep one of them"),
    ('evaluate = "m:e"\nevaluate_command = ["sh", "e.sh"]', 5, "stands beside evaluate; keep one of them"),
    ('evaluate_command = []', 4, 'a command names a program first; for example evaluate_command = ["Rscript", "evaluate.R"]'),
    ('evaluate_command = "sh \'e.sh"', 4, "no closing quotation"),
    ('evaluate_command = ["sh", 3]', 4, "expected text, found the number 3"),
    ("evaluate_command = 3", 4, "expected list of words, or text, found the number 3"),
    ('export = "no"', 4, "expected true or false, found text"),
    ('entry = "../../outside.py"', 4, 'write train = "module:function"'),
    ('env = { LD_PRELOAD = "x" }', 4, "pass_env in headrace.toml"),
    ('queue = "gpu-a10x"', 4, 'write compute_class = "standard"'),
    ("requires_python = '>=3.9'", 4, "unknown key"),
    ('evaluate = "../../outside.py"', 4, "is not a module and a function of this repository"),
    ('evaluate = "/abs:f"', 4, "is not a module and a function"),
    ('evaluate = "m"', 4, "is not a module and a function"),
    ('evaluate = "m:f()"', 4, "is not a module and a function"),
    ('evaluate = "m:f\\n"', 4, "is not a module and a function"),
    ('evaluate = ["m:f"]', 4, "expected module:function, found a list"),
    ('predict = "m.:f"', 4, "is not a module and a function"),
    ('compute_class = "GPU"', 4, "is not a name"),
    ('time_limit = "9999999d"', 4, 'longer than "3650d"'),
    ('time_limit = "0s"', 4, 'must be from "1s"'),
    ("time_limit = 3600", 4, 'a duration is text, a whole number with one unit of ms, s, m, h or d; for example time_limit = "2h"'),
    ('datasets."../x" = {}', 4, "is not a name"),
    ("datasets.e = { rows = 0 }", 4, "datasets.e.rows: must be at least 1; for example rows = 500000"),
    ('datasets.e = { rows = "5" }', 4, "expected whole number, found text"),
    ("datasets.e = { rows = 1.5 }", 4, "expected whole number, found the number 1.5"),
    ('datasets.e = { history = "1y" }', 4, 'for example history = "365d"'),
    ("datasets.e = 5", 4, "expected table, found the number 5"),
    ("gates.auc = { min = 0.6 }", 4, "limits on auc need metrics"),
    ('evaluate = "m:e"\ngates.auc = 0.6', 5, "expected table, found the number 0.6"),
    ('evaluate = "m:e"\ngates.auc = { mn = 0.6 }', 5, 'did you mean "min"?'),
    ('evaluate = "m:e"\ngates.auc = { min = "0.6" }', 5, "expected number, found text"),
    ('evaluate = "m:e"\ngates.auc = { min = inf }', 5, "must be a finite number"),
    ('evaluate = "m:e"\ngates.auc = { max_drop = -1 }', 5, "must be at least 0"),
    ('evaluate = "m:e"\ngates.auc = { max_drop_percent = 101 }', 5, "must be at most 100"),
    ('evaluate = "m:e"\ngates.auc = { max_rise = 1 }', 5, "add lower_is_better = true"),
    ('evaluate = "m:e"\ngates.auc = { lower_is_better = true }', 5, "the gate sets no limit"),
    ('evaluate = "m:e"\ngates."a@b" = { min = 1 }', 5, "is not a metric's name"),
    ("parameters.a = [1]", 4, "found a list"),
    ("parameters.a = nan", 4, "must be a finite number"),
    ("parameters.a = 2024-01-01", 4, "found a date"),
    ('parameters."a b" = 1', 4, "is not a parameter's name"),
    (f'parameters.a = "{"x" * 5001}"', 4, "at most 5000 characters"),
    ('[project]\nname = "x"\nrequires-python = "<3.9"', 6, "allows no Python from 3.9 on"),
    ('[project]\nrequires-python = "three"', 5, "is not a version specifier"),
    ("[project]\nversion = 1.4", 5, "project.version: expected text, found the number 1.4"),
    ('[project]\nname = "a\\u0000b"', 5, "NUL"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "line", "said"), WRONG, ids=range(len(WRONG)))
def test_a_wrong_declaration_is_refused_with_its_line_and_what_would_be_right(text: str, line: int, said: str) -> None:
    answer = refused(SMALL + text)
    assert answer.startswith(f"pyproject.toml:{line}: "), answer
    assert said in answer
    assert len(answer.splitlines()) == 1, "one mistake, one line"


COMMAND = '[tool.headrace]\ncommand = "python train.py; touch x"\ndatasets.d = {}\n'


def test_a_command_is_words_and_no_shell_sees_it() -> None:
    assert parse(COMMAND.encode()).command == ("python", "train.py;", "touch", "x")
    listed = parse(COMMAND.replace('"python train.py; touch x"', '["sh", "a b.sh"]').encode())
    assert listed.command == ("sh", "a b.sh")
    assert (listed.train, listed.can_score) == (None, False)
    assert Declaration.from_json(listed.to_json()) == listed


def test_a_command_that_writes_metrics_needs_an_evaluation_only_to_be_compared() -> None:
    assert parse((COMMAND + "gates.auc = { min = 0.6 }").encode()).gates
    answer = refused(COMMAND + "gates.auc = { min = 0.6 }\ngates.loss = { max_drop = 1 }")
    assert "loss compares with the champion, which must be scored on the same rows; add evaluate_command" in answer
    assert parse((COMMAND + 'evaluate_command = ["sh", "e.sh"]\ngates.auc = { max_drop = 1 }').encode()).can_score


MISSING: list[tuple[bytes, str]] = [
    (b"", "[tool.headrace] is missing; add it"),
    (b'[project]\nname = "x"\n', "[tool.headrace] is missing; add it"),
    (b"tool = 3", "[tool.headrace] is missing; add it"),
    (b"[tool]\nheadrace = 3", "[tool.headrace] is missing; add it"),
    (b"[tool.headrace]\ndatasets.d = {}", "pyproject.toml:1: tool.headrace.train: is missing (module:function)"),
    (b'[tool.headrace]\ntrain = "m:t"', "tool.headrace.datasets: is missing"),
    (b'[tool.headrace]\ntrain = "m:t"\ndatasets = {}', "tool.headrace.datasets: must not be empty"),
    (b"[tool.headrace", "pyproject.toml:1: not TOML"),
    (b"\xff", "not UTF-8"),
    (b"x = " + b"[" * 20_000, "nested deeper than 32"),
    (b"#" * 10_000_000, "larger than 1024 KiB"),
]


@pytest.mark.parametrize(("raw", "said"), MISSING, ids=range(len(MISSING)))
def test_a_declaration_that_is_not_there_is_asked_for(raw: bytes, said: str) -> None:
    assert said in refused(raw)


def test_all_that_is_wrong_is_said_at_once() -> None:
    answer = refused("[project]\nname = 1\n[tool.headrace]\ntrain = 2\npredict = 3\n")
    assert [line.split(": ")[1] for line in answer.splitlines()] == [
        "project.name",
        "tool.headrace.datasets",
        "tool.headrace.train",
        "tool.headrace.predict",
    ]


def test_the_rest_of_project_is_the_authors_own() -> None:
    assert parse((SMALL + '[project]\nname = "x"\ndynamic = ["version"]\nwhatever = 1\n').encode()).name == "x"
