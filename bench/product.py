"""The platform as a contestant: rows are committed, and everything else is its own affair."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from headrace.connection import Connection

from bench.hook import Hook, NotTold, Receipt
from bench.measured import Measured
from bench.rows import Table
from stack.demo.flights import Row

PATIENCE_S = 30.0
MODEL = "flight-delays"


class Product:
    """The stack behind `api`, whose watcher looks at `table`."""

    name = "Headrace"

    def __init__(self, api: Connection, table: Table, hook: Hook) -> None:
        self._api, self._table, self._hook = api, table, hook

    def wait_first(self, since: float) -> None:
        """Wait until the rows of before have been trained on: that builds the environment."""
        self._hook.wait_promoted(MODEL, since)
        self._wait_idle()

    def prepare(self) -> None:
        self._table.make_room()

    def once(self, rows: Sequence[Row]) -> Measured:
        began = self._table.arrive(rows)
        receipt = self._hook.wait_promoted(MODEL, began)
        self._wait_idle()
        return self._measure(began, receipt)

    def _wait_idle(self) -> None:
        """Until nothing is under way any more that would disturb the next contestant."""
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            status = self._api.get("/v1/status")
            if not any((status["runs"]["waiting"], status["runs"]["running"], status["deliveries"]["pending"])):
                return
            time.sleep(0.1)
        raise NotTold(f"the stack is not idle {PATIENCE_S:g} s after the webhook: {status}")

    def _measure(self, began: float, receipt: Receipt) -> Measured:
        version = self._api.get(f"/v1/models/{MODEL}/versions/{receipt.notice.version}")
        run = self._api.get(f"/v1/runs/{version['run']}")
        arrival = self._api.get(f"/v1/arrivals/{version['lineage']['arrivals'][-1]}")
        served = _moment(self._api.get(f"/v1/models/{MODEL}")["champion"]["since"])
        # With no `quiet` a run is due as soon as it is planned; the API shows `due_at` only while it waits.
        observed, due = _moment(arrival["observed_at"]), _moment(run["planned_at"])
        claimed, trained = _moment(run["started_at"]), _moment(run["finished_at"])
        registered, judged = _moment(version["registered_at"]), _moment(version["verdict"]["at"])
        seconds = run["attempts"][-1]["seconds"]
        steps = {
            "noticed": observed - began,
            "due": due - observed,
            "claimed": claimed - due,
            **_attempt(seconds, trained - claimed),
            "registered": registered - trained,
            "judged": judged - registered,
            "alias": served - judged,
            "delivered": receipt.at - served,
        }
        return Measured(receipt.at - began, steps, {"champion": seconds.get("champion", 0.0)})


def _attempt(seconds: dict[str, float], whole: float) -> dict[str, float]:
    """The steps of an attempt of `whole` seconds; the champion is scored beside them, so that only what it takes longer counts."""
    phases = {name: seconds[f"train.{name}"] for name in ("import", "train", "save", "evaluate")}
    own = seconds["prepare"] + seconds["train"] + seconds["bundle"]
    waited = max(0.0, seconds.get("champion", 0.0) - own)
    return {
        "prepare": seconds["prepare"],
        "start": seconds["train"] - sum(phases.values()),
        **phases,
        "champion": waited,
        "bundle": seconds["bundle"],
        "finish": whole - own - waited,
    }


def _moment(text: Any) -> float:
    return datetime.fromisoformat(str(text)).timestamp()
