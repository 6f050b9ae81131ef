"""The verdict: every gate gives its reason, missing evidence is not a failure, and nothing that is not a number passes."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.declaration import Gate
from shared.gates import Decision, Evidence, Scores, Verdict, judge, limit, loosened, with_floor

AUC = {"auc": Gate(min=0.6, max_drop=0.005)}
RMSE = {"rmse": Gate(lower_is_better=True, max_rise_percent=2)}
VALUES = st.floats(-1e6, 1e6)


def evidence(candidate: dict[str, float] | None, champion: dict[str, float] | None = None, **more: object) -> Evidence:
    served = Scores(champion) if champion is not None else None
    return Evidence(Scores(candidate), served, 2 if served else None, **more)  # type: ignore[arg-type]


def decision(candidate: dict[str, float] | None, champion: dict[str, float] | None, gates: dict[str, Gate]) -> Decision:
    return judge(evidence(candidate, champion), gates).decision


@pytest.mark.parametrize(("auc", "expected"), [(0.6, "promote"), (0.5999, "reject"), (0.9, "promote")])
def test_the_first_version_is_judged_by_the_thresholds_alone(auc: float, expected: str) -> None:
    assert decision({"auc": auc}, None, AUC) == expected


@pytest.mark.parametrize(("auc", "expected"), [(0.695, "promote"), (0.6949, "reject"), (0.8, "promote")])
def test_a_drop_against_the_champion_is_allowed_up_to_its_limit(auc: float, expected: str) -> None:
    assert decision({"auc": auc}, {"auc": 0.7}, AUC) == expected


@pytest.mark.parametrize(("rmse", "expected"), [(10.2, "promote"), (10.21, "reject"), (1.0, "promote")])
def test_where_lower_is_better_a_rise_is_allowed_up_to_its_share(rmse: float, expected: str) -> None:
    assert decision({"rmse": rmse}, {"rmse": 10.0}, RMSE) == expected


def test_a_share_of_a_negative_champion_is_a_share_of_its_size() -> None:
    gate = Gate(max_drop_percent=10)
    assert limit(gate, -10.0) == -11.0
    assert limit(Gate(lower_is_better=True, max_rise_percent=10), -10.0) == -9.0


def test_of_two_limits_the_stricter_one_holds() -> None:
    assert limit(Gate(max_drop=0.5, max_drop_percent=10), 10.0) == 9.5


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_metric_that_is_not_finite_is_rejected(value: float) -> None:
    verdict = judge(evidence({"auc": value}, {"auc": 0.7}), AUC)
    assert verdict == Verdict(Decision.REJECT, ("auc: evaluate() returned no such finite metric (invalid_metric)",))
    assert decision({}, {"auc": 0.7}, AUC) is Decision.REJECT


@pytest.mark.parametrize("base", [{}, {"auc": math.nan}])
def test_a_champion_without_the_metric_leaves_it_undecided(base: dict[str, float]) -> None:
    verdict = judge(evidence({"auc": 0.9}, base), AUC)
    assert verdict.decision is Decision.UNDECIDED
    assert verdict.reasons[-1] == ("auc: champion 2 could not be scored on the same rows: it has no such metric")


def test_a_champion_that_cannot_be_scored_says_why() -> None:
    verdict = judge(Evidence(Scores({"auc": 0.9}), Scores(None, "no table flights"), 2), AUC)
    assert verdict.decision is Decision.UNDECIDED
    assert "no table flights" in verdict.reasons[-1]


def test_a_failed_threshold_rejects_although_the_champion_cannot_be_scored() -> None:
    verdict = judge(Evidence(Scores({"auc": 0.1}), Scores(None, "no table flights"), 2), AUC)
    assert verdict.decision is Decision.REJECT
    assert len(verdict.reasons) == 2


def test_a_gate_that_compares_nothing_needs_no_champion_scores() -> None:
    verdict = judge(Evidence(Scores({"auc": 0.9}), Scores(None, "away"), 2), {"auc": Gate(min=0.6)})
    assert verdict.decision is Decision.PROMOTE


def test_a_candidate_without_scores_is_undecided_and_says_why() -> None:
    verdict = judge(Evidence(Scores(None, "evaluate() raised KeyError")), AUC)
    assert (verdict.decision, verdict.reasons) == (
        Decision.UNDECIDED,
        ("the candidate has no scores: evaluate() raised KeyError",),
    )


@pytest.mark.parametrize(("rows", "expected"), [(99, "undecided"), (100, "promote"), (None, "promote")])
def test_too_few_rows_to_compare_on_are_undecided(rows: int | None, expected: str) -> None:
    verdict = judge(evidence({"auc": 0.9}, {"auc": 0.7}, holdout_rows=rows, min_rows=100), AUC)
    assert verdict.decision == expected
    if rows == 99:
        assert "1 more are needed" in verdict.reasons[0]


def test_without_gates_every_version_is_promoted_and_the_verdict_says_so() -> None:
    verdict = judge(Evidence(Scores(None, "no evaluate"), holdout_rows=0, min_rows=10), {})
    assert verdict.decision is Decision.PROMOTE
    assert verdict.reasons == ("no gates are set: every version that trains is promoted",)


def test_one_gate_that_fails_among_many_rejects_with_every_reason() -> None:
    verdict = judge(evidence({"auc": 0.9, "rmse": 30.0}, {"auc": 0.7, "rmse": 10.0}), AUC | RMSE)
    assert verdict.decision is Decision.REJECT
    assert verdict.reasons == (
        "auc 0.9: passes (at least 0.6)",
        "auc 0.9 against 0.7 of champion 2: passes (at least 0.695)",
        "rmse 30 against 10 of champion 2: fails (at most 10.2)",
    )


@given(VALUES, st.floats(0, 100), st.floats(0, 100))
def test_a_candidate_that_equals_the_champion_is_never_worse(base: float, slack: float, percent: float) -> None:
    assert decision({"m": base}, {"m": base}, {"m": Gate(max_drop=slack, max_drop_percent=percent)}) == "promote"
    lower = {"m": Gate(lower_is_better=True, max_rise=slack, max_rise_percent=percent)}
    assert decision({"m": base}, {"m": base}, lower) == "promote"


@given(VALUES, VALUES, st.floats(0, 1e6), st.floats(0, 100))
def test_a_better_candidate_is_never_judged_worse(base: float, value: float, better: float, slack: float) -> None:
    gates = {"m": Gate(max_drop=slack)}
    if decision({"m": value}, {"m": base}, gates) is Decision.PROMOTE:
        assert decision({"m": value + better}, {"m": base}, gates) is Decision.PROMOTE


LIMITS = {"min": VALUES, "max": VALUES, "max_drop": st.floats(0, 1e3), "max_drop_percent": st.floats(0, 100)}
GATES = st.fixed_dictionaries({}, optional=LIMITS).map(lambda limits: Gate.model_construct(**limits))


@given(GATES, GATES, VALUES, VALUES)
def test_a_floor_only_ever_tightens(own: Gate, floor: Gate, value: float, base: float) -> None:
    both = with_floor({"m": own}, {"m": floor})
    seen = evidence({"m": value}, {"m": base})
    if judge(seen, both).decision is Decision.PROMOTE:
        assert judge(seen, {"m": own}).decision is Decision.PROMOTE
        assert judge(seen, {"m": floor}).decision is Decision.PROMOTE


def test_a_floor_adds_the_gates_that_a_release_lacks_and_keeps_its_own() -> None:
    both = with_floor({"auc": Gate(min=0.6)}, {"auc": Gate(min=0.5, max_drop=0.1), "rmse": Gate(max=9)})
    assert both == {"auc": Gate(min=0.6, max_drop=0.1), "rmse": Gate(max=9)}


def test_where_the_two_contradict_each_other_about_the_direction_the_operator_is_right() -> None:
    floor = Gate(lower_is_better=True, max_rise=1)
    assert with_floor({"m": Gate(max_drop=1)}, {"m": floor}) == {"m": floor}


def test_a_floor_above_the_releases_own_maximum_lets_nothing_pass() -> None:
    both = with_floor({"m": Gate(max=0.5)}, {"m": Gate(min=0.9)})
    assert [decision({"m": value}, None, both) for value in (0.4, 0.7, 0.95)] == ["reject"] * 3


def test_what_a_release_loosens_is_told() -> None:
    before = {"auc": Gate(min=0.6, max_drop=0.005), "rmse": Gate(max=20), "f1": Gate(min=0.5)}
    now = {"auc": Gate(min=0.55, max_drop=0.005), "rmse": Gate(max=21), "new": Gate(min=1)}
    assert loosened(before, now) == ("f1: the gate is gone", "auc: min 0.6 became 0.55", "rmse: max 20 became 21")
    assert loosened(before, before) == ()
    assert loosened(before, before | {"auc": Gate(min=0.7, max_drop=0.001)}) == ()
    assert loosened({"auc": Gate(min=0.6, max_drop=1)}, {"auc": Gate(min=0.6)}) == ("auc: max_drop 1 became none",)


def test_a_gate_that_turns_around_is_told() -> None:
    assert loosened({"m": Gate(min=0.6)}, {"m": Gate(min=0.6, lower_is_better=True)}) == ()
