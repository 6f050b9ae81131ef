"""What becomes of runs, written down a second time and as plainly as it can be said, to hold the ledger against."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import Enum

LOST_WORKERS = 3
TRIES = 3


class End(Enum):
    """What a worker may say of its claim."""

    TRAINED = "finish"
    BEAT = "beat"
    FAILED = "fail"
    FAILED_FOR_GOOD = "fail for good"
    HANDED_BACK = "hand back"
    CANCELLED = "cancelled"


@dataclass(frozen=True)
class PlainRun:
    state: str = "waiting"
    token: int = 0
    failures: int = 0
    lost: int = 0
    to_stop: bool = False
    lease_until: datetime | None = None
    due_at: datetime | None = None  # of a retrying run; when a waiting one is due is the policy's business


@dataclass
class PlainModel:
    """The runs of one model. `known` is false while the operator's file lacks the model or a dataset of its release."""

    lease: timedelta
    runs: dict[int, PlainRun] = field(default_factory=dict)

    def take(self, id: int, now: datetime, *, due: bool, known: bool, repeats: bool = False) -> bool:
        """A worker asks for a run; whether it gets it. `due` is what the policy says of a waiting run, `repeats` whether it would
        train what the newest run has trained."""
        one = self.runs.get(id)
        if one is None or not self._is_free(one, now, due):
            return False
        lost = one.lost + (one.state == "running")
        if one.state == "running" and one.to_stop:
            return self._end(id, "cancelled")
        if one.state == "running" and lost >= LOST_WORKERS:
            return self._end(id, "failed", lost=lost)
        if not known or repeats:
            return self._end(id, "cancelled")
        self.runs[id] = replace(
            one, state="running", token=one.token + 1, lost=lost, lease_until=now + self.lease, due_at=None
        )
        return True

    def say(self, id: int, token: int, said: End, now: datetime, *, known: bool) -> bool:
        """A worker says how its claim goes; False if that claim is no longer the newest, and then nothing is different."""
        one = self.runs[id]
        if one.state != "running" or one.token != token:
            return False
        failures = one.failures + 1
        if said is End.BEAT:
            self.runs[id] = replace(one, lease_until=now + self.lease)
        elif said is End.TRAINED:
            self._end(id, "trained")
        elif said is End.CANCELLED:
            self._end(id, "cancelled")
        elif said is End.FAILED_FOR_GOOD or (said is End.FAILED and (not known or failures >= TRIES)):
            self._end(id, "failed", failures=failures)
        elif one.to_stop:
            self._end(id, "cancelled")
        else:
            pause = timedelta(seconds=5 * 3 ** (failures - 1)) if said is End.FAILED else timedelta(0)
            counted = failures if said is End.FAILED else one.failures
            self.runs[id] = replace(one, state="retrying", failures=counted, lease_until=None, due_at=now + pause)
        return True

    def stop(self, id: int) -> None:
        """A person wants it to end."""
        one = self.runs[id]
        if one.state in ("waiting", "retrying"):
            self._end(id, "cancelled")
        elif one.state == "running":
            self.runs[id] = replace(one, to_stop=True)

    def taken_out(self) -> None:
        """The operator's file has the model no longer."""
        for id, one in self.runs.items():
            if one.state == "waiting":
                self._end(id, "cancelled")

    def _is_free(self, one: PlainRun, now: datetime, due: bool) -> bool:
        if one.state == "running":
            return one.lease_until is not None and one.lease_until < now
        if one.state == "retrying":
            return one.due_at is not None and one.due_at <= now
        return one.state == "waiting" and due

    def _end(self, id: int, state: str, **more: int) -> bool:
        self.runs[id] = replace(self.runs[id], state=state, lease_until=None, due_at=None, **more)
        return False
