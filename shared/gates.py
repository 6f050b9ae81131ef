"""The verdict on a candidate: a pure function of stored scores and gates."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from shared.declaration import Gate


class Decision(StrEnum):
    PROMOTE = "promote"
    REJECT = "reject"
    UNDECIDED = "undecided"


@dataclass(frozen=True)
class Scores:
    """Metrics of one model on the holdout; `error` says why there are none. `rows` of the holdout where they are known."""

    metrics: Mapping[str, float] | None
    error: str | None = None


@dataclass(frozen=True)
class Verdict:
    decision: Decision
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Evidence:
    """What there is to judge by: `champion` is None where no version serves yet; rows are those of the holdout that both were scored on."""

    candidate: Scores
    champion: Scores | None = None
    champion_number: int | None = None
    holdout_rows: int | None = None
    min_rows: int = 0


def judge(evidence: Evidence, gates: Mapping[str, Gate]) -> Verdict:
    """Promote if every gate passes, reject if one fails, undecided if evidence is missing; each gate gives one reason.

    Without a champion the thresholds alone decide. A metric that is missing or not finite never passes.
    """
    if evidence.candidate.metrics is None and gates:
        return Verdict(
            Decision.UNDECIDED, (f"the candidate has no scores: {evidence.candidate.error or 'it was not evaluated'}",)
        )
    if evidence.holdout_rows is not None and evidence.holdout_rows < evidence.min_rows and gates:
        missing = evidence.min_rows - evidence.holdout_rows
        return Verdict(
            Decision.UNDECIDED,
            (
                f"{evidence.holdout_rows:,} rows to compare on; {missing:,} more are needed (holdout.min_rows = {evidence.min_rows:,})",
            ),
        )
    findings = [finding for name, gate in sorted(gates.items()) for finding in _check(name, gate, evidence)]
    reasons = tuple(reason for _, reason in findings) or ("no gates are set: every version that trains is promoted",)
    decisions = {decision for decision, _ in findings}
    for decision in (Decision.REJECT, Decision.UNDECIDED):
        if decision in decisions:
            return Verdict(decision, reasons)
    return Verdict(Decision.PROMOTE, reasons)


def _check(name: str, gate: Gate, evidence: Evidence) -> list[tuple[Decision, str]]:
    value = (evidence.candidate.metrics or {}).get(name)
    if value is None or not math.isfinite(value):
        return [(Decision.REJECT, f"{name}: evaluate() returned no such finite metric (invalid_metric)")]
    findings = []
    if gate.min is not None:
        findings.append(_finding(value >= gate.min, f"{name} {value:.4g}", f"at least {gate.min:g}"))
    if gate.max is not None:
        findings.append(_finding(value <= gate.max, f"{name} {value:.4g}", f"at most {gate.max:g}"))
    if evidence.champion is not None and gate.compares:
        findings.append(_compare(name, gate, value, evidence))
    return findings


def _compare(name: str, gate: Gate, value: float, evidence: Evidence) -> tuple[Decision, str]:
    champion = evidence.champion
    assert champion is not None
    base = (champion.metrics or {}).get(name)
    who = f"champion {evidence.champion_number}"
    if base is None or not math.isfinite(base):
        return (
            Decision.UNDECIDED,
            f"{name}: {who} could not be scored on the same rows: {champion.error or 'it has no such metric'}",
        )
    bound = limit(gate, base)
    word = "at most" if gate.lower_is_better else "at least"
    passed = value <= bound if gate.lower_is_better else value >= bound
    return _finding(passed, f"{name} {value:.4g} against {base:.4g} of {who}", f"{word} {bound:.4g}")


def limit(gate: Gate, base: float) -> float:
    """The strictest value that a candidate may have beside a champion's `base`."""
    sign = 1.0 if gate.lower_is_better else -1.0
    absolute = gate.max_rise if gate.lower_is_better else gate.max_drop
    percent = gate.max_rise_percent if gate.lower_is_better else gate.max_drop_percent
    slacks = [
        slack for slack in (absolute, abs(base) * percent / 100 if percent is not None else None) if slack is not None
    ]
    return base + sign * min(slacks)


def _finding(passed: bool, what: str, rule: str) -> tuple[Decision, str]:
    return (Decision.PROMOTE, f"{what}: passes ({rule})") if passed else (Decision.REJECT, f"{what}: fails ({rule})")


def loosened(before: Mapping[str, Gate], now: Mapping[str, Gate]) -> tuple[str, ...]:
    """What a release allows that the one before it did not: a gate that is gone or a limit that is wider."""
    findings = [f"{name}: the gate is gone" for name in sorted(set(before) - set(now))]
    for name in sorted(set(before) & set(now)):
        for field in sorted(set(Gate.model_fields) - {"lower_is_better"}):
            old, new = getattr(before[name], field), getattr(now[name], field)
            if old is not None and (new is None or (new < old if field == "min" else new > old)):
                findings.append(f"{name}: {field} {old:g} became {'none' if new is None else format(new, 'g')}")
    return tuple(findings)


def with_floor(gates: Mapping[str, Gate], floor: Mapping[str, Gate]) -> dict[str, Gate]:
    """The release's gates under the operator's floor: of each limit the stricter one."""
    return {name: _stricter(gates.get(name), floor.get(name)) for name in sorted({*gates, *floor})}


def _stricter(own: Gate | None, floor: Gate | None) -> Gate:
    if own is None or floor is None:
        kept = own or floor
        assert kept is not None
        return kept
    if own.lower_is_better != floor.lower_is_better:
        return floor  # they contradict each other: the operator's word holds
    pairs = {
        field: (getattr(own, field), getattr(floor, field))
        for field in type(own).model_fields
        if field != "lower_is_better"
    }
    merged = {
        field: (max if field == "min" else min)(value for value in pair if value is not None)
        for field, pair in pairs.items()
        if any(value is not None for value in pair)
    }
    # not validated: limits that contradict each other let nothing pass, which is the right answer here
    return Gate.model_construct(**merged, lower_is_better=own.lower_is_better)
