"""docs/lifecycle.md's table of transitions and its diagrams, read from the docstrings of the functions themselves.

A transition's docstring ends with lines in one form: for each noun that it changes, from which states to which (`run: waiting | retrying → running`;
`none`: there is no row, `same`: the state stays, `any`: every state), then who calls it (`By: …`), what it fences on (`Fence: …`), and what a second
call does (`Again: …`).
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from shared.ledger import (
    arrivals,
    attempts,
    datasets,
    deliveries,
    planning,
    rejections,
    releases,
    restored,
    retention,
    runs,
    scores,
    tokens,
    versions,
    workers,
)
from shared.ledger.transitions import TRANSITIONS
from shared.lifecycle import TRANSITIONS as LEGAL

FLOW = (
    releases, datasets, arrivals, rejections, planning, runs, attempts, workers, scores, versions, deliveries, retention, tokens, restored
)  # fmt: skip
BEGIN, END = "<!-- from the docstrings: begin -->", "<!-- from the docstrings: end -->"
NONE, SAME, ANY = "none", "same", "any"
NOUNS = {states.__name__.removesuffix("State").lower(): states for states in LEGAL}
"""Those whose states have a table of legal steps."""
_LINE = re.compile(r"^([A-Za-z]+): (.+)$")


@dataclass(frozen=True)
class Step:
    """One noun from one state to another."""

    noun: str
    before: str
    after: str


@dataclass(frozen=True)
class Described:
    """What a transition's docstring says of it."""

    name: str
    changes: tuple[str, ...]
    by: str
    fence: str
    again: str

    @property
    def steps(self) -> tuple[Step, ...]:
        return tuple(step for change in self.changes for step in _steps(change))


def described() -> tuple[Described, ...]:
    """Every transition, by file along the flow, and then in the file's order."""
    files = [module.__name__.rpartition(".")[2] for module in FLOW]
    names = sorted(TRANSITIONS, key=lambda name: files.index(name.partition(".")[0]))
    return tuple(describe(name, TRANSITIONS[name]) for name in names)


def describe(name: str, step: Callable[..., Any]) -> Described:
    """Raises `ValueError` for a docstring that is not in the form."""
    lines = [found.groups() for line in (inspect.getdoc(step) or "").splitlines() if (found := _LINE.match(line))]
    said = {key: value for key, value in lines if key[0].isupper()}
    changes = tuple(f"{key}: {value}" for key, value in lines if key[0].islower() and "→" in value)
    if missing := [key for key in ("By", "Fence", "Again") if key not in said] or not changes:
        raise ValueError(
            f"the docstring of {name} lacks {missing if changes else 'a line like `run: waiting → running`'}"
        )
    return Described(name, changes, said["By"], said["Fence"], said["Again"])


def _steps(change: str) -> Iterator[Step]:
    noun, _, said = change.partition(": ")
    for part in said.split("; "):
        before, after = (side.split(" | ") for side in part.split(" → "))
        for one in [str(state) for state in NOUNS[noun]] if before == [ANY] else before:
            yield from (Step(noun, one, other) for other in after)


def page(text: str) -> str:
    """The page with what stands between the marks made anew."""
    before, after = text.partition(BEGIN)[0], text.partition(END)[2]
    return f"{before}{BEGIN}\n{_diagrams()}\n{_table()}{END}{after}"


def _table() -> str:
    lines = ["| transition | from → to | by | fence | a second call |", "|---|---|---|---|---|"]
    for one in described():
        cells = (f"`{one.name}`", "<br>".join(one.changes), one.by, one.fence, one.again)
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join((*lines, ""))


def _diagrams() -> str:
    return "\n".join(f"```mermaid\nstateDiagram-v2\n{_diagram(noun)}```\n" for noun in NOUNS)


def _diagram(noun: str) -> str:
    """Its steps with the names of those that take them; what leaves the state as it is is not drawn."""
    takers: dict[Step, list[str]] = {}
    for one in described():
        for step in dict.fromkeys(one.steps):
            if step.noun == noun and step.after != SAME:
                takers.setdefault(step, []).append(one.name)
    return "".join(
        f"    {_drawn(step.before)} --> {_drawn(step.after)}: {', '.join(names)}\n" for step, names in takers.items()
    )


def _drawn(state: str) -> str:
    return "[*]" if state == NONE else state
