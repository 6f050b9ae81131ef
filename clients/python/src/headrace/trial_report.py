"""What there is to say of a training without a platform that went well."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from headrace.declaration_rules import LIMITS


@dataclass(frozen=True)
class Finding:
    """A gate's limit without a champion: it holds, fails, or (None) needs a champion to compare with."""

    metric: str
    holds: bool | None
    sentence: str


@dataclass(frozen=True)
class Report:
    """All that there is to say of a training that went well. `saved` is headrace.json of the model, `signature` what predict takes and gives, `files` the bundle with sizes in bytes."""

    metrics: dict[str, float] | None
    seconds: dict[str, float]
    saved: dict[str, Any]
    signature: dict[str, Any]
    files: dict[str, int]
    gates: tuple[Finding, ...]
    remarks: tuple[str, ...]

    @property
    def passes(self) -> bool:
        return all(finding.holds is not False for finding in self.gates)


def judge(metrics: Mapping[str, float] | None, gates: Mapping[str, Mapping[str, Any]]) -> list[Finding]:
    """What the gates say without a champion: `min` and `max` decide alone."""
    found = []
    for name, gate in sorted(gates.items()):
        value = (metrics or {}).get(name)
        if value is None:
            found.append(
                Finding(name, False, "evaluate() returned no such metric" if metrics else "there are no metrics")
            )
            continue
        if "min" in gate:
            found.append(Finding(name, value >= gate["min"], f"at least {gate['min']:g}"))
        if "max" in gate:
            found.append(Finding(name, value <= gate["max"], f"at most {gate['max']:g}"))
        compared = [f"{key} {gate[key]:g}" for key in LIMITS if key in gate and key not in ("min", "max")]
        found += [Finding(name, None, f"{rule}: compared with the champion") for rule in compared]
    return found
