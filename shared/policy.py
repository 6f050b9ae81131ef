"""When a waiting run becomes due, when a failed attempt is tried again, and the sentence for each (pure)."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from shared.catalog import Policy

FIRST_RETRY = timedelta(seconds=5)
LONGEST_RETRY = timedelta(minutes=10)
LOST_WORKERS = 3


@dataclass(frozen=True)
class Facts:
    """What the ledger knows about a waiting run. `rows` is None where an arrival did not say how many: that counts as enough."""

    arrivals: int
    rows: int | None
    first_at: datetime | None
    last_at: datetime | None
    asked_at: datetime | None = None  # a person or a new release asked for it
    busy: int | None = None  # the model's own run that is training
    last_ended_at: datetime | None = None
    without_data: tuple[str, ...] = ()
    failed: int | None = None  # it is paused after so many failed runs in a row
    unknown: tuple[str, ...] = ()  # datasets that the configuration does not have


@dataclass(frozen=True)
class Due:
    """`at` is None while something else has to happen first; the sentence says what."""

    at: datetime | None
    sentence: str


def due_at(policy: Policy, facts: Facts) -> Due:
    """When the run may start. Does not look at a clock: the same facts give the same answer."""
    if facts.unknown:
        return Due(None, f"waits for dataset {', '.join(facts.unknown)}, which is not in the configuration")
    if facts.without_data:
        return Due(None, f"waits for the first rows of {', '.join(facts.without_data)}")
    if facts.busy is not None:
        return Due(None, f"waits for run {facts.busy} of the same model to end")
    if facts.asked_at is not None:
        return Due(facts.asked_at, "was asked for, due at once")
    if facts.failed is not None:
        return Due(
            None, f"is paused, for the last {facts.failed} runs have failed, until `headrace resume` or a new release"
        )
    if facts.first_at is None or facts.last_at is None:
        return Due(None, "waits for new data")
    latest = facts.first_at + policy.max_wait if policy.max_wait is not None else None
    if facts.rows is not None and facts.rows < policy.min_rows:
        if latest is None:
            return Due(None, f"has {facts.rows:,} new rows and waits for {policy.min_rows:,} (min_rows)")
        return _after_cooldown(
            policy,
            facts,
            latest,
            f"has {facts.rows:,} of {policy.min_rows:,} rows (min_rows) and waits no longer than {_span(policy.max_wait)} (max_wait)",
        )
    at, sentence = facts.last_at, f"has {_rows(facts.rows)}, enough to start"
    if policy.quiet:
        at, sentence = (
            at + policy.quiet,
            f"has {_rows(facts.rows)} and waits until none has come for {_span(policy.quiet)} (quiet)",
        )
    if latest is not None and latest < at:
        at, sentence = latest, f"has {_rows(facts.rows)} and waits no longer than {_span(policy.max_wait)} (max_wait)"
    return _after_cooldown(policy, facts, at, sentence)


def _after_cooldown(policy: Policy, facts: Facts, at: datetime, sentence: str) -> Due:
    if policy.cooldown and facts.last_ended_at is not None and facts.last_ended_at + policy.cooldown > at:
        return Due(
            facts.last_ended_at + policy.cooldown, f"rests {_span(policy.cooldown)} after the last run (cooldown)"
        )
    return Due(at, sentence)


def retry_after(failures: int) -> timedelta:
    """The pause after the n-th failed attempt (n from 1): 5 s, tripled each time, at most 10 minutes."""
    return min(FIRST_RETRY * int(3 ** (failures - 1)), LONGEST_RETRY)


def _rows(rows: int | None) -> str:
    return "new data of unknown size" if rows is None else f"{rows:,} new rows"


def _span(span: timedelta | None) -> str:
    seconds = span.total_seconds() if span else 0.0
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size and seconds % size == 0:
            return f"{seconds / size:g} {unit}"
    return f"{seconds:g} s"
