"""The states of runs, versions and deliveries, and the steps between them that are legal (pure).

    run:       waiting ─▶ running ─▶ trained | failed | cancelled;  running ⇄ retrying;  waiting | retrying ─▶ cancelled
    version:   candidate ─▶ promoted | rejected | awaiting;  awaiting ─▶ promoted;  a sample stays what it is
    delivery:  pending ─▶ delivered | failed;  failed ─▶ pending (replayed by a person)

A retrying run keeps its model's running place, so that a model never has two waiting runs (invariant I4).
Runs on a sample have places of their own: they train beside the model's other runs, and keep none of them waiting.
"""

from __future__ import annotations

from enum import StrEnum

from shared.errors import Conflict


class RunState(StrEnum):
    WAITING = "waiting"
    RUNNING = "running"
    RETRYING = "retrying"
    TRAINED = "trained"
    FAILED = "failed"
    CANCELLED = "cancelled"


class VersionState(StrEnum):
    CANDIDATE = "candidate"
    PROMOTED = "promoted"
    REJECTED = "rejected"
    AWAITING = "awaiting"
    SAMPLE = "sample"


class DeliveryState(StrEnum):
    PENDING = "pending"
    DELIVERED = "delivered"
    FAILED = "failed"


State = RunState | VersionState | DeliveryState

TRANSITIONS: dict[
    type[State], dict[State, frozenset[State]]
] = {  # by noun: a failed run equals a failed delivery as text
    RunState: {
        RunState.WAITING: frozenset({RunState.RUNNING, RunState.CANCELLED}),
        RunState.RUNNING: frozenset(
            {RunState.RUNNING, RunState.RETRYING, RunState.TRAINED, RunState.FAILED, RunState.CANCELLED}
        ),
        RunState.RETRYING: frozenset({RunState.RUNNING, RunState.CANCELLED}),
        RunState.TRAINED: frozenset(),
        RunState.FAILED: frozenset(),
        RunState.CANCELLED: frozenset(),
    },
    VersionState: {
        VersionState.CANDIDATE: frozenset({VersionState.PROMOTED, VersionState.REJECTED, VersionState.AWAITING}),
        VersionState.AWAITING: frozenset({VersionState.PROMOTED}),
        VersionState.PROMOTED: frozenset(),
        VersionState.REJECTED: frozenset(),
        VersionState.SAMPLE: frozenset(),
    },
    DeliveryState: {
        DeliveryState.PENDING: frozenset({DeliveryState.DELIVERED, DeliveryState.FAILED}),
        DeliveryState.DELIVERED: frozenset(),
        DeliveryState.FAILED: frozenset({DeliveryState.PENDING}),
    },
}

UNFINISHED = (RunState.WAITING, RunState.RUNNING, RunState.RETRYING)


def check(before: State, after: State) -> None:
    """Raise `Conflict` unless the step is legal. A running run that is claimed again (its lease ran out) stays running."""
    if after not in TRANSITIONS[type(before)][before]:
        raise Conflict(f"a {before} {type(before).__name__.removesuffix('State').lower()} cannot become {after}")
