"""What an audit found, as JSON and as exit code (pure)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from shared.audit import Sheet, Violation

INVARIANTS = {
    "ledger": "the ledger itself is whole",
    "I1": "what came in is kept, and no cursor has passed over anything",
    "I2": "the same report twice is one arrival",
    "I3": "every arrival has a fate for each model; no older cut displaced a newer champion",
    "I4": "a model has at most one waiting and one running run",
    "I5": "only the newest claim of a run has changed it",
    "I6": "a trained run has one version, in the ledger and in MLflow",
    "I7": "a champion has a verdict or a person's name, and the alias names it",
    "I8": "what happened was told once, in order, to whoever asked for it",
    "I9": "Redis holds no storm, and no process of a dead attempt lives on",
    "I10": "nothing stands still without saying what it waits for",
    "blobs": "every file that a run or a version needs is in the blob store",
}


@dataclass(frozen=True)
class Unread:
    """Something that could not be looked at, and which invariants are therefore not proven."""

    what: str
    why: str
    invariants: tuple[str, ...]


@dataclass(frozen=True)
class Report:
    ledger: str
    at: datetime
    seconds: float
    sheets: tuple[Sheet, ...]
    unread: tuple[Unread, ...]

    @property
    def violations(self) -> list[Violation]:
        return [one for sheet in self.sheets for one in sheet.found.values()]

    @property
    def unnamed(self) -> int:
        return sum(number for sheet in self.sheets for number in sheet.unnamed.values())

    @property
    def exit_code(self) -> int:
        return 1 if self.violations else 2 if self.unread else 0

    def looked(self, invariant: str) -> dict[str, int]:
        counts: dict[str, int] = {}
        for sheet in self.sheets:
            for what, number in sheet.counts.get(invariant, {}).items():
                counts[what] = counts.get(what, 0) + number
        return counts

    def of(self, invariant: str) -> list[Violation]:
        return [one for one in self.violations if one.invariant == invariant]

    def more(self, invariant: str) -> int:
        return sum(sheet.unnamed[invariant] for sheet in self.sheets)

    def unread_of(self, invariant: str) -> list[Unread]:
        return [one for one in self.unread if invariant in one.invariants]

    def to_json(self) -> dict[str, Any]:
        return {
            "ledger": self.ledger,
            "at": self.at.isoformat().replace("+00:00", "Z"),
            "seconds": round(self.seconds, 2),
            "exit_code": self.exit_code,
            "invariants": [self._invariant(name, title) for name, title in INVARIANTS.items()],
            "unread": [{"what": one.what, "why": one.why, "invariants": list(one.invariants)} for one in self.unread],
        }

    def _invariant(self, name: str, title: str) -> dict[str, Any]:
        found = self.of(name)
        state = "violated" if found else "not looked at" if self.unread_of(name) else "ok"
        violations = [one.to_json() for one in found]
        return {
            "name": name,
            "title": title,
            "state": state,
            "looked_at": self.looked(name),
            "violations": violations,
            "not_named": self.more(name),
        }


def by_advice(violations: Iterable[Violation]) -> dict[str, list[Violation]]:
    """Those that one advice is for, together."""
    groups: dict[str, list[Violation]] = {}
    for one in violations:
        groups.setdefault(one.do, []).append(one)
    return groups
