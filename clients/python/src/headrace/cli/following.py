"""What becomes of the runs of a campaign, from the wish to the verdict: asked for often where something moves, seldom where it waits."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any, Callable, Dict, List, Mapping, Optional, Set

from headrace.cli import show
from headrace.connection import Connection, Unreachable, api_path

LOOK_S = 2
"""How long a long poll for news may take: progress is looked at so often, an end as soon as it is told."""
WAITING_S = 10.0
PATIENCE_S = 120.0
BAD = ("failed", "cancelled")
_NEWS = "run.failed,run.cancelled,version.promoted,version.rejected,version.awaiting"
_SETTLED = ("promoted", "rejected", "awaiting", "sample")
_ENOUGH = 0.05


@dataclass
class Followed:
    """One run, and the version that came of it."""

    run: Mapping[str, Any]
    version: Optional[Mapping[str, Any]] = None

    @property
    def model(self) -> str:
        return str(self.run["model"])

    @property
    def result(self) -> Optional[str]:
        """How it ended: failed, cancelled, unchanged, or what was decided about its version; None while it goes on."""
        state = self.run["state"]
        if state in BAD:
            return "unchanged" if (self.run["error"] or {}).get("kind") == "unchanged" else str(state)
        decided = self.version is not None and self.version["state"] in _SETTLED
        return str(self.version["state"]) if decided and self.version is not None else None

    @property
    def stage(self) -> str:
        """Where it is, in one word."""
        if self.run["state"] != "trained":
            return self.result or str(self.run["state"])
        return self.result or ("registering" if self.version is None else "judging")

    @property
    def done(self) -> float:
        """How much of it is done, from 0 to 1."""
        progress = self.run["progress"]
        if self.result is not None or self.run["state"] == "trained":
            return 1.0
        return float(progress["fraction"]) if self.run["state"] == "running" and progress else 0.0

    @property
    def what(self) -> str:
        """What it does, waits for or died of, or why it was decided so; one line."""
        error, progress = self.run["error"], self.run["progress"]
        if self.result in BAD:
            return f"{error['kind']}: {str(error['message']).partition(chr(10))[0]}" if error else ""
        if self.version is not None and self.version.get("verdict"):
            return "; ".join(self.version["verdict"]["reasons"])
        if self.result == "sample":
            return f"on {show.sample(str(self.run['sample']))}"
        if self.stage == "running":
            return str(progress["note"]) if progress else ""
        return str(self.run["sentence"])


@dataclass
class Following:
    """The runs of a campaign by model. `look` brings them up to date; `wait` returns with the next news, or after a while."""

    connection: Connection
    entries: Dict[str, Followed]
    began: float = field(default_factory=time.monotonic)
    _after: Optional[int] = None
    _told: Set[str] = field(default_factory=set)
    _whole_at: float = 0.0

    def begin(self) -> None:
        """From here on news count; before the runs are looked at for the first time, so that none is missed."""
        self._after = self.connection.get("/v1/notices", {"limit": 1}).get("newest")

    def going(self) -> List[Followed]:
        return [one for one in self.entries.values() if one.result is None]

    def look(self) -> None:
        """Those that run come in one list; one that has left it, or of which there is news, is asked for; those that wait every ten seconds."""
        running = {run["id"]: run for run in self.connection.items(api_path("runs"), {"state": "running"})}
        whole = time.monotonic() - self._whole_at > WAITING_S
        for one in self.going():
            if one.run["id"] in running:
                one.run = running[one.run["id"]]
            elif whole or one.model in self._told or one.run["state"] != "waiting":
                self._ask(one)
        self._told.clear()  # only now: a look that was not answered is made again
        self._whole_at = time.monotonic() if whole else self._whole_at

    def _ask(self, one: Followed) -> None:
        one.run = self.connection.get(api_path("runs", one.run["id"]))
        if one.run["version"] is not None:
            one.version = self.connection.get(api_path("models", one.model, "versions", one.run["version"]))

    def wait(self) -> None:
        if self._after is None:  # an older platform, which does not say where its news end
            time.sleep(LOOK_S)
            return
        query = {"after": self._after, "limit": 200, "wait": LOOK_S, "types": _NEWS}
        page = self.connection.get("/v1/notices", query, wait_s=LOOK_S)
        self._after = int(page["next"])
        self._told |= {event["subject"] for event in page["items"]}

    def left_s(self) -> Optional[float]:
        """About how long until all have ended, by how far they have come in the time that has passed; None while that says nothing."""
        done = sum(one.done for one in self.entries.values()) / len(self.entries)
        longest = max((one.run.get("left_s") or 0.0 for one in self.going()), default=0.0)
        if done < _ENOUGH:
            return longest or None
        return max(longest, (time.monotonic() - self.began) * (1 - done) / done)

    def persist(self, act: Optional[Callable[[], None]] = None) -> None:
        """Look, or do that, and go on where nothing answers for a while; raises `Unreachable` after two minutes of it."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                return (act or self.look)()
            except Unreachable:
                if time.monotonic() > deadline:
                    raise
                time.sleep(1)
