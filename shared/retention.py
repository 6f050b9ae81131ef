"""What may be taken away, and why the rest stays (pure): a dry run and a real one ask the same rules.

What was ever promoted (a rollback may want it), is pinned, waits for a word or is in use stays, whatever the operator says. Of the rest,
a rejected version loses its files when so many newer ones have been rejected, a sample when there are so many newer samples, and a run its bundle when
it is old; the ledger's rows stay.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum

from shared.catalog import Keep
from shared.lifecycle import VersionState

REPORTS_AT_LEAST = timedelta(days=30)
"""A producer that repeats a report within so long is heard once (I2), whatever `keep.runs` says."""


TAKEN = (VersionState.REJECTED, VersionState.SAMPLE)
"""The states in which a version's files may be taken away."""


class Kept(StrEnum):
    """Why something stays; each completes "… stays because …"."""

    PROMOTED = "it was promoted"
    PINNED = "it is pinned"
    UNREGISTERED = "it is not registered yet"
    UNJUDGED = "it is not judged yet"
    AWAITING = "it awaits a word"
    SCORED = "it is being scored"
    NEWEST_REJECTED = "it is among the newest rejected ones"
    NEWEST_SAMPLE = "it is among the newest samples"
    NEWEST_RUN = "it is the model's newest run"
    YOUNG = "it is not old enough"


_NEWEST = {VersionState.REJECTED: Kept.NEWEST_REJECTED, VersionState.SAMPLE: Kept.NEWEST_SAMPLE}


@dataclass(frozen=True)
class Version:
    """A registered version as the rules see it; `promoted` says whether it ever was, or is about to be."""

    number: int
    state: VersionState
    promoted: bool = False
    pinned: bool = False
    tidied: bool = False


@dataclass(frozen=True)
class Run:
    """A trained run as the rules see it; `scored` says whether a score of it is wanted."""

    id: int
    finished_at: datetime
    version: Version | None
    bundle: bool = True
    scored: bool = False


@dataclass(frozen=True)
class Choice:
    """For one run: why its version's files stay, and why its bundle does; None: they are taken. Absent ones (`has_…`) are neither."""

    run: Run
    files: Kept | None
    bundle: Kept | None

    @property
    def takes_files(self) -> bool:
        return self.run.version is not None and not self.run.version.tidied and self.files is None

    @property
    def takes_bundle(self) -> bool:
        return self.run.bundle and self.bundle is None


def sort_out(runs: Iterable[Run], keep: Keep, now: datetime) -> Iterator[Choice]:
    """The choice for each trained run of one model. They come newest first, from the newest of all on; lazily, so that a long history is paged."""
    newer = dict.fromkeys(TAKEN, 0)
    for index, run in enumerate(runs):
        files = _bound(run)
        if files is None and run.version is not None and not run.version.tidied:
            newer[run.version.state] += 1
            files = _NEWEST[run.version.state] if newer[run.version.state] <= keep.rejected else None
        yield Choice(run, files, files or _held(run, keep, now, newest=index == 0))


def _bound(run: Run) -> Kept | None:
    """What no rule of the operator's can loosen."""
    version = run.version
    if version is None:
        return Kept.UNREGISTERED
    if version.promoted or version.state is VersionState.PROMOTED:
        return Kept.PROMOTED
    if version.pinned:
        return Kept.PINNED
    if version.state is VersionState.CANDIDATE:
        return Kept.UNJUDGED
    if version.state is VersionState.AWAITING:
        return Kept.AWAITING
    return Kept.SCORED if run.scored else None


def _held(run: Run, keep: Keep, now: datetime, *, newest: bool) -> Kept | None:
    if newest:
        return Kept.NEWEST_RUN
    return Kept.YOUNG if run.finished_at > now - keep.runs else None


def takes_log(run_ended_at: datetime | None, last_line_at: datetime, keep: Keep, now: datetime) -> bool:
    """Whether a log of a run goes; `run_ended_at` is None while the run may still write. A score may be logged long after the run."""
    return run_ended_at is not None and max(run_ended_at, last_line_at) <= now - keep.logs


def reports_before(keep: Keep, now: datetime) -> datetime:
    """Reports received before this may be forgotten."""
    return now - max(keep.runs, REPORTS_AT_LEAST)


@dataclass(frozen=True)
class Place:
    """A directory on a trainer's disk that can be made again."""

    name: str
    size_bytes: int
    used_at: float


def fit(places: Iterable[Place], size_bytes: int, take: Callable[[Place], bool]) -> None:
    """Take the longest unused first until the others fit into `size_bytes`; one that `take` answers False for is in use and stays."""
    ordered = sorted(places, key=lambda place: (place.used_at, place.name))
    over = sum(place.size_bytes for place in ordered) - size_bytes
    for place in ordered:
        if over <= 0:
            return
        if take(place):
            over -= place.size_bytes


@dataclass
class Count:
    """So many things of a kind, and the bytes of them that a store gave back."""

    number: int = 0
    size_bytes: int = 0


@dataclass
class Report:
    """What was, or would be, taken; why the rest stays; and what went wrong."""

    taken: dict[str, Count] = field(default_factory=dict)
    kept: dict[str, dict[str, int]] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)

    def take(self, kind: str, number: int = 1, size_bytes: int = 0) -> None:
        count = self.taken.setdefault(kind, Count())
        count.number += number
        count.size_bytes += size_bytes

    def keep(self, kind: str, why: str, number: int = 1) -> None:
        reasons = self.kept.setdefault(kind, {})
        reasons[why] = reasons.get(why, 0) + number

    def to_json(self) -> dict[str, dict[str, int]]:
        """What was taken, for the record."""
        return {
            kind: {"count": one.number, "size_bytes": one.size_bytes} for kind, one in self.taken.items() if one.number
        }
