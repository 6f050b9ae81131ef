"""What an audit says: what was looked at, and each violation with its ids and with what to do (pure)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

MOST = 200
"""So many violations of a kind are named; of the rest only the number is told, so that an audit of ruins stays small."""

Ids = dict[str, "int | str | None"]
Key = tuple[str, str, tuple[tuple[str, "int | str | None"], ...]]


@dataclass(frozen=True)
class Violation:
    """One thing that is not as the invariant says. `kind` is a stable word for it, `ids` say which row or object it is about."""

    invariant: str
    kind: str
    what: str
    do: str
    ids: Ids

    @property
    def key(self) -> Key:
        """The same in a second look, if it is still so."""
        return self.invariant, self.kind, tuple(sorted(self.ids.items()))

    def to_json(self) -> dict[str, Any]:
        return {"invariant": self.invariant, "kind": self.kind, "ids": self.ids, "what": self.what, "do": self.do}


@dataclass
class Sheet:
    """What the checks write on. `tell` hears what is looked at and how far that is."""

    tell: Callable[[str, int], None] = lambda what, done: None
    counts: dict[str, Counter[str]] = field(default_factory=dict)
    found: dict[Key, Violation] = field(default_factory=dict)
    unnamed: Counter[str] = field(default_factory=Counter)
    _kinds: Counter[tuple[str, str]] = field(default_factory=Counter)

    def looked(self, invariant: str, what: str, number: int = 1) -> None:
        """Count what was looked at; a number of 0 shows that there was nothing."""
        counts = self.counts.setdefault(invariant, Counter())
        counts[what] += number
        self.tell(what, counts[what])

    def violated(self, invariant: str, kind: str, what: str, do: str, **ids: int | str | None) -> None:
        violation = Violation(invariant, kind, what, do, ids)
        if violation.key in self.found:
            return
        if self._kinds[invariant, kind] >= MOST:
            self.unnamed[invariant] += 1
            return
        self._kinds[invariant, kind] += 1
        self.found[violation.key] = violation

    def confirmed(self, again: Sheet) -> Sheet:
        """The second look, with those violations only that the first one found too: what had only just begun is settled by then."""
        both = {key: violation for key, violation in again.found.items() if key in self.found}
        unnamed = Counter({name: min(number, again.unnamed[name]) for name, number in self.unnamed.items()})
        return Sheet(again.tell, again.counts, both, unnamed, again._kinds)
