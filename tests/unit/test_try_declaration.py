"""`headrace try` reads pyproject.toml without the platform: it takes what the platform takes, and refuses what the platform refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
from headrace import bundle, declaration_rules, declared, job, trial_child, trial_report
from headrace.outcome import RunFailed

from shared import declaration, gates, manifest
from shared.catalog import Limits
from shared.declaration import Gate, Tool
from shared.errors import Refused
from shared.gates import Decision, Evidence, Scores
from tests.unit.test_declaration import COMMAND, MISSING, SMALL, WHOLE, WRONG

OTHERS = [
    '[tool.headrace]\ntrain = "m:t"\nload = "m:l"\ntime_limit = "90s"\ndatasets.a = { rows = 5 }\ndatasets.b = {}\n',
    COMMAND + 'export = false\nevaluate_command = ["sh", "e.sh"]\ngates.auc = { max_drop = 1 }\n',
    COMMAND + "gates.auc = { min = 0.5 }\n",
    '[project]\nname = "x"\ndynamic = ["version"]\nrequires-python = ">=3.9,!=3.10.*"\n' + SMALL,
]


def read(place: Path, raw: bytes) -> declared.Declared:
    (place / "pyproject.toml").write_bytes(raw)
    return declared.read(place)


@pytest.mark.parametrize("raw", [WHOLE, SMALL.encode(), *map(str.encode, OTHERS)], ids=range(2 + len(OTHERS)))
def test_what_the_platform_takes_is_read_as_the_platform_reads_it(tmp_path: Path, raw: bytes) -> None:
    found, there = read(tmp_path, raw), declaration.parse(raw)
    assert (found.name, found.version, found.time_limit) == (there.name, there.version, there.time_limit)
    entries = {key: getattr(there, key) for key in job.ENTRIES}
    assert found.entries == {key: list(value) if isinstance(value, tuple) else value for key, value in entries.items()}
    assert found.can_score == there.can_score
    assert {name: (use.rows, use.history) for name, use in found.datasets.items()} == {
        name: (use.rows, use.history) for name, use in there.datasets.items()
    }
    assert found.parameters == there.parameters
    assert found.gates == {name: gate.model_dump(exclude_unset=True) for name, gate in there.gates.items()}


def test_every_key_of_the_platforms_is_known() -> None:
    assert set(Tool.model_fields) <= declaration_rules.KEYS


@pytest.mark.parametrize(
    "raw",
    [(SMALL + text).encode() for text, _, _ in WRONG]
    + [raw for raw, _ in MISSING]
    + [(COMMAND + "gates.auc = { max_drop = 1 }").encode()],
)
def test_what_the_platform_refuses_is_refused(tmp_path: Path, raw: bytes) -> None:
    with pytest.raises(RunFailed) as refused:
        read(tmp_path, raw)
    assert refused.value.kind == "refused"
    assert refused.value.message.startswith("pyproject.toml: ")


LIMITS = [
    {"min": 0.6},
    {"max": 0.7},
    {"min": 0.5, "max": 0.8, "max_drop": 0.1},
    {"max_drop": 0.1},
    {"lower_is_better": True, "max": 0.65, "max_rise_percent": 2},
]


@pytest.mark.parametrize("limits", LIMITS, ids=range(len(LIMITS)))
@pytest.mark.parametrize("metrics", [{"auc": 0.6}, {"auc": 0.7}, {"auc": 0.55}, {"other": 1.0}, None], ids=range(5))
def test_without_a_champion_the_gates_decide_as_on_the_platform(
    limits: dict[str, float], metrics: dict[str, float] | None
) -> None:
    found = trial_report.judge(metrics, {"auc": limits})
    verdict = gates.judge(Evidence(Scores(metrics)), {"auc": Gate(**limits)})  # type: ignore[arg-type]
    assert all(finding.holds is not False for finding in found) == (verdict.decision is Decision.PROMOTE)


def test_a_child_is_confined_as_where_the_operator_says_nothing() -> None:
    assert Limits().open_files == trial_child.OPEN_FILES
    assert Limits().disk == trial_child.DISK_BYTES


def test_a_bundle_is_as_large_and_its_names_as_plain_as_the_platform_has_it(tmp_path: Path) -> None:
    assert (bundle.MAX_FILES, bundle.MAX_BYTES) == (manifest.MAX_FILES, manifest.MAX_BYTES)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "a b-1.2.pkl").write_text("x")
    assert bundle.check(tmp_path) == {"model/a b-1.2.pkl": 1}
    assert [file.path for file in manifest.read_tree(tmp_path).files] == ["model/a b-1.2.pkl"]
    (tmp_path / "model" / "modèle.pkl").write_text("x")
    with pytest.raises(RunFailed, match="is not a plain relative one"):
        bundle.check(tmp_path)
    with pytest.raises(Refused, match="is not a plain relative one"):
        manifest.read_tree(tmp_path)
