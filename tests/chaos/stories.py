"""What happens in a house that trains models: each story is told to its end, however often the processes that carry it die."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import time
import urllib.error
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from itertools import count
from pathlib import Path
from typing import Any

from redis import Redis

from tests.chaos.arena import Arena
from tests.faulty_proxy import Fault, FaultyProxy
from tests.system.product import Model

OPERATOR = {"HEADRACE_OPERATOR_TOKEN": "an-operators-token-of-thirty-two-or-more-characters"}
TWO_DAYS_S = 2 * 24 * 3600
TOLD_AGAIN = 4
Story = Callable[[], object]


@dataclass
class Cast:
    """The models, made before the product starts."""

    arena: Arena
    mlflow: FaultyProxy

    def __post_init__(self) -> None:
        add = self.arena.add_model
        self.plain = [add(f"plain-{n}") for n in range(2)]
        self.arena.release_poll = "30s"
        self.manual = add("manual", more='promote = "manual"')
        self.held = add("held")
        self.leaving = add("leaving")
        self.later = add("later")
        self.later.evaluate_s = 1.2
        self.later.release("1.0.1", 0.7)
        self.broken = add("broken", quality="1 / 0")
        self.told = add("told", kind="rest")
        self.streamed = add("streamed", kind="stream")
        self.arena.add_section('[datasets.chatter]\nsource = { kind = "rest" }\n')
        self._numbers = count(1)

    @property
    def models(self) -> list[Model]:
        return [*self.plain, self.manual, self.held, self.leaving, self.later, self.broken, self.told, self.streamed]

    def rare(self) -> dict[Story, tuple[str, ...]]:
        """The stories, and with each the steps that only it comes to: it is told again until nobody has been spared there."""
        return {
            self.data: (),
            self.reports: (),
            self.releases: (),
            self.word: ("versions.promote", "versions.roll_back", "retention.pin", "retention.unpin"),
            self.stop: ("attempts.cancelled", "attempts.fail", "planning.cancel", "planning.retry", "planning.resume"),
            self.leave: ("attempts.hand_back", "workers.left"),
            self.score: ("scores.claim", "scores.beat", "scores.release"),
            self.hook: ("deliveries.undelivered", "deliveries.replay"),
            self.commands: ("versions.registration_failed", "versions.keep_registration"),
        }

    def round(self) -> None:
        """All stories at once, each to its end; then nothing is left to do."""
        rare = self.rare()
        with ThreadPoolExecutor(len(rare)) as pool:
            for told in [pool.submit(self._tell, story, steps) for story, steps in rare.items()]:
                told.result()
        self.mlflow.delay_s = 0.0
        self.settle()
        self.replay()
        self.settle()

    def _tell(self, story: Story, steps: tuple[str, ...]) -> None:
        for _ in range(TOLD_AGAIN):
            story()
            if not self.arena.board.left(f"commit {step}" for step in steps):
                return

    def settle(self) -> None:
        self.arena.wait("everything to settle", self.arena.settled)

    # The stories.

    def data(self) -> None:
        """Rows come; what they make is looked at by nobody."""
        for model in self.plain:
            model.insert()
            self._trained(model)

    def reports(self) -> None:
        """Told over REST, in both ways, and over the stream; one of the events is nonsense."""
        n = next(self._numbers)
        told = {"dataset": "told", "from": n * 100, "to": n * 100 + 50, "rows": 50}
        self.arena.send("POST", "/v1/events", told, Idempotency_Key=f"report-{n}")
        event = {
            "specversion": "1.0",
            "type": "dataset.arrived",
            "source": "tests",
            "id": f"event-{n}",
            "subject": "told",
        }
        data = {"from": n * 100 + 50, "to": n * 100 + 100, "rows": 50}
        self.arena.send("POST", "/v1/events", event | {"data": data}, Content_Type="application/cloudevents+json")
        self.arena.send("POST", "/v1/events", {"dataset": "plain-0"})
        client = Redis.from_url(self.arena.redis_url, protocol=2)
        for body in (json.dumps(event | {"id": f"streamed-{n}", "subject": "streamed", "data": data}), f"nonsense {n}"):
            client.xadd("headrace:arrivals", {"event": body})
        client.close()
        for model in (self.told, self.streamed):
            self.arena.wait(f"a version of {model.name}", model.versions)
            self._trained(model)

    def releases(self) -> None:
        """One that nobody can read, and then a good one."""
        n, model = next(self._numbers), self.plain[1]
        model.push(f"1.{n}.0", "[tool.headrace]\nnonsense = 1\n", "")
        self.arena.wait("the release to be refused", lambda: model.get()["release_error"])
        self._release(model, f"1.{n}.1", 0.7)

    def word(self) -> None:
        """A person promotes what awaits a word, pins it, and goes back to the one before."""
        model = self.manual
        known = {one["version"] for one in model.versions()}
        self.arena.post("/v1/runs", {"model": model.name, "again": True}) if known else model.insert()
        self.arena.wait("a version", lambda: {one["version"] for one in model.versions()} - known)
        self._trained(model)
        served = (model.get()["champion"] or {}).get("version")
        awaiting = max(one["version"] for one in model.versions() if one["state"] == "awaiting")
        self._say(f"/v1/models/{model.name}/promote", {"version": awaiting, "reason": "it is good"})
        model.wait_for_champion(awaiting)
        self._say(f"/v1/models/{model.name}/versions/{awaiting}/pin", {"reason": "it is relied on"})
        self._say(f"/v1/models/{model.name}/versions/{awaiting}/unpin", {})
        if served is not None:
            self._say(f"/v1/models/{model.name}/rollback", {"version": served, "reason": "it was better"})
            model.wait_for_champion(served)

    def stop(self) -> None:
        """A run is cancelled in the middle and tried again; one that fails is tried again in vain."""
        self.held.hold()
        self.held.insert()
        run = self._running(self.held)
        self._say(f"/v1/runs/{run['id']}/cancel", {"reason": "too long"})
        self.arena.wait("the run to be cancelled", lambda: self._state(run["id"]) == "cancelled")
        self.held.go()
        self._say(f"/v1/runs/{run['id']}/retry", {"reason": "now"})
        self.broken.insert()
        failed = self.arena.wait("a run to fail", lambda: next(iter(self.broken.runs("failed")), None))
        self._say(f"/v1/runs/{failed['id']}/retry", {"reason": "perhaps"})
        self._say(f"/v1/models/{self.broken.name}/resume", {"reason": "it is as good as mended"})
        self._trained(self.held)

    def leave(self) -> None:
        """A trainer is asked to leave in the middle of a training."""
        model = self.leaving
        model.hold()
        model.insert()
        self._running(model)
        self._ask_trainers_to_leave()
        model.go()

    def score(self) -> None:
        """Another champion than the one at the claim: the scores are asked for later, and the trainer that makes them leaves."""
        model = self.later
        while len(model.versions()) < 2:
            known = len(model.versions())
            model.insert()
            self.arena.wait("a version", lambda known=known: len(model.versions()) > known)  # type: ignore[misc]
            self.settle_model(model)
        model.hold()
        model.insert()
        self._running(model)
        self._say(f"/v1/models/{model.name}/rollback", {"reason": "to be scored anew"})
        self.arena.wait("the alias to follow", lambda: not self._intended(model))
        model.go()
        with suppress(AssertionError):
            self.arena.wait("a score to be made", self._scoring, 8.0)
            self._ask_trainers_to_leave()
        self._trained(model)

    def hook(self) -> None:
        """The consumer refuses once for a while, and once for good: that delivery is replayed."""
        self.arena.hook.refusals += [410, 500]
        for n in range(2):
            event = f"chatter-{next(self._numbers)}-{n}"
            self.arena.send("POST", "/v1/events", {"dataset": "chatter"}, Idempotency_Key=event)
        self.arena.wait("something to tell", lambda: not self.arena.hook.refusals)
        self.arena.wait("it to be written down", lambda: self._failed() or self.arena.settled())
        self.replay()

    def replay(self) -> None:
        for one in self._failed():
            self._say(f"/v1/deliveries/{one['id']}/replay", {})

    def _failed(self) -> list[dict[str, Any]]:
        return list(self.arena.get("/v1/deliveries?state=failed&limit=200")["items"])

    def commands(self) -> None:
        """What an operator types; MLflow fails once meanwhile, and is slow."""
        n = next(self._numbers)
        self.mlflow.fail_path("runs/create", Fault.REFUSE_REQUEST)
        self.mlflow.delay_s = 0.05
        self.arena.stack("token", "create", f"shop-{n}")
        self.arena.stack("token", "revoke", f"shop-{n}")
        self.arena.add_section(f'[datasets.extra-{n}]\nsource = {{ kind = "rest" }}\n')
        self.arena.stack("prepare", "--config", str(self.arena.config), environment=OPERATOR)

    def tidy(self) -> None:
        """Little is kept, and all of it is old."""
        self.mlflow.delay_s = 0.0
        self._release(self.plain[1], f"2.{next(self._numbers)}.0", 0.5)
        self._trained(self.plain[1])
        self.settle()
        at = time.time() - TWO_DAYS_S  # what is younger than a day may belong to an upload
        for folder in ("blobs", "runs"):
            for path in (self.arena.state / folder).rglob("*"):
                if path.is_file():
                    os.utime(path, (at, at))
        self._crowd_the_disk(at)
        if "[keep]" not in self.arena.config.read_text():
            self.arena.add_section('[keep]\nruns = "1s"\nrejected = 0\nlogs = "1s"\nenvironments = "1MB"\n')
        self.arena.wait("the turn of tidying", lambda: self.arena.stack("tidy") == 0)

    def _crowd_the_disk(self, at: float) -> None:
        """More lies on the trainers' disk than may, and the environments have not been used for longest."""
        trainer = self.arena.state / "trainer"
        crowd = trainer / "bundles" / "crowd"
        crowd.mkdir(parents=True, exist_ok=True)
        (crowd / "much").write_bytes(b"." * 2_000_000)
        os.utime(crowd, (at + 1, at + 1))
        for mark in (trainer / "uses" / "environments").iterdir():
            os.utime(mark, (at, at))

    # What they are made of.

    def settle_model(self, model: Model) -> None:
        self.arena.wait(f"{model.name} to settle", lambda: self._is_idle(model))

    def _release(self, model: Model, version: str, quality: float) -> None:
        model.release(version, quality)
        self.arena.wait("the release to be taken", lambda: (model.get()["release"] or {}).get("name") == f"v{version}")

    def _trained(self, model: Model) -> None:
        """All that has come for the model has become a version that is judged."""
        self.arena.wait(f"a run of {model.name}", lambda: model.runs())
        self.settle_model(model)

    def _is_idle(self, model: Model) -> bool:
        busy = [run for run in model.runs() if run["state"] in ("running", "retrying") or run.get("due_at")]
        return not busy and not any(one["state"] == "candidate" for one in model.versions())

    def _running(self, model: Model) -> dict[str, Any]:
        return dict(self.arena.wait(f"a run of {model.name}", lambda: next(iter(model.runs("running")), None)))

    def _state(self, run: int) -> str:
        return str(self.arena.get(f"/v1/runs/{run}")["state"])

    def _say(self, path: str, body: object) -> None:
        """A person says it until it is heard; that it has been done already is fine."""
        try:
            self.arena.send("POST", path, body)
        except urllib.error.HTTPError as error:
            if error.code != HTTPStatus.CONFLICT:
                raise

    def _ask_trainers_to_leave(self) -> None:
        pids = json.loads((self.arena.root / "pids.json").read_text())
        for name, pid in pids.items():
            if name.startswith("trainer"):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGTERM)

    def _scoring(self) -> bool:
        with _look(self.arena.ledger_file) as ledger:
            return bool(
                ledger.execute("SELECT 1 FROM score WHERE scored_at IS NULL AND lease_until IS NOT NULL").fetchone()
            )

    def _intended(self, model: Model) -> bool:
        with _look(self.arena.ledger_file) as ledger:
            return bool(
                ledger.execute(
                    "SELECT 1 FROM promotion WHERE model = ? AND served_at IS NULL", (model.name,)
                ).fetchone()
            )


class _look:
    def __init__(self, ledger: Path) -> None:
        self._connection = sqlite3.connect(f"file:{ledger}?mode=ro", uri=True, timeout=10)

    def __enter__(self) -> sqlite3.Connection:
        return self._connection

    def __exit__(self, *_: object) -> None:
        self._connection.close()
