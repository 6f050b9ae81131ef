"""What happens in the demo, in order; each thing that must be seen is noted when it was."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar

from headrace.connection import Connection, Problem

from stack.demo.author import Author
from stack.demo.consumer import Callers, Consumer
from stack.demo.flights import Flights
from stack.demo.show import Show, Update

MODEL = "flight-delays"
LIMIT_S = 300.0
MONTHS = (
    "",
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
)
TO_SEE = {
    "promotion": "a promotion",
    "rejection": "a rejection of a worse release",
    "join": "an arrival that joined a waiting run",
    "repeat": "a repeated REST event recognised",
    "nudge": "a REST nudge",
    "tag": "a new tag that retrained without new data",
    "why": "`why` answering in a sentence",
    "swap": "the consumer swapping its model without dropping a request",
    "line": "the one-line change of models.toml",
}
T = TypeVar("T")


class NotSeen(Exception):
    """Something that the demo shows did not happen."""


@dataclass
class Scene:
    """One run of the story: what set it off, and when."""

    cause: str
    at: float
    run: dict[str, Any]
    version: dict[str, Any]
    served_at: float | None


class Story:
    def __init__(
        self, api: Connection, show: Show, flights: Flights, author: Author, consumer: Consumer, callers: Callers
    ) -> None:
        self.api, self.show, self.flights, self.author, self.consumer, self.callers = (
            api,
            show,
            flights,
            author,
            consumer,
            callers,
        )
        self.seen: dict[str, bool] = dict.fromkeys(TO_SEE, False)
        self.scenes: list[Scene] = []

    def tell(self) -> None:
        self._first_month()
        self._joined_month()
        self._nudged_month()
        self._months(4, 6)
        self._new_release()
        self._months(7, 9)
        self._worse_release()
        self._mended_release()
        self._months(10, 12)
        self._see("swap", not self.callers.failures and len(self.callers.first_answers) > 1)

    def _first_month(self) -> None:
        self.show.chapter("1  January lands; the model is trained for the first time")
        self._wait("the first release to be read", lambda: self._model()["release"])
        self.show.line(f"release {self._model()['release']['name']} is known; {self._why()}")
        at = self._insert(1)
        scene = self._scene("January", at, 1)
        self._see("promotion", scene.version["state"] == "promoted")
        self._wait("models.toml to be changed", self.consumer.diff)
        self.show.line("the consumer wrote the version into its models.toml:")
        self.show.quote(self.consumer.diff())
        self._see("line", True)

    def _joined_month(self) -> None:
        self.show.chapter("2  February lands in two loads; the second joins the run that waits for quiet")
        rows = self.flights.months[2]
        at = time.time()
        self.flights.insert(rows[: len(rows) // 2])
        run = self._wait("a run to wait", lambda: self._model()["waiting_run"])
        why = self._why()
        self._see("why", bool(why))
        self.show.line("headrace why flight-delays:")
        self.show.quote(why)
        self.flights.insert(rows[len(rows) // 2 :])
        self.show.line(f"February inserted in two loads, {len(rows):,} flights")
        scene = self._scene("February", at, run)
        covered = scene.version["lineage"]["arrivals"]
        self._see("join", len(covered) == 2)
        self.show.seen(f"run {run} trained both arrivals ({', '.join(map(str, covered))})")

    def _nudged_month(self) -> None:
        self.show.chapter("3  March lands; its loader also reports it over REST, twice")
        at = self._insert(3)
        event = {"dataset": "flights", "rows": len(self.flights.months[3]), "id": "load-2013-03"}
        first, second = self.api.post("/v1/events", event), self.api.post("/v1/events", event)
        self._see("nudge", first["nudged"] and not first["repeated"])
        self.show.seen("the report is a nudge: the watcher looks at the table now, the table says what came")
        self._see("repeat", second["repeated"])
        self.show.seen("the same report again is recognised and counts once")
        self._scene("March", at)

    def _months(self, first: int, last: int) -> None:
        self.show.chapter(f"{MONTHS[first]} to {MONTHS[last]}: each month a new candidate, judged against the champion")
        for month in range(first, last + 1):
            self._scene(MONTHS[month], self._insert(month))

    def _new_release(self) -> None:
        self.show.chapter("A new release is tagged: the model is retrained although no row is new")
        self.author.edit(
            "README.md",
            "\n",
            "\n\n",
        )
        at = time.time()
        self.author.release("1.1.0", "Grow a hundred trees")
        scene = self._scene("release v1.1.0", at)
        self._see("tag", scene.run["release"]["name"] == "v1.1.0" and scene.run["cut"] == self.scenes[-2].run["cut"])
        self.show.seen("the same data, a new release: judged on the same rows as the champion")

    def _worse_release(self) -> None:
        self.show.chapter(
            "A worse release is tagged: it is trained, judged and rejected; the consumer keeps the better model"
        )
        before = self.callers.version
        self.author.edit(*WORSE)
        at = time.time()
        self.author.release("1.2.0", "Do without the hour of departure")
        scene = self._scene("release v1.2.0", at)
        self._see("rejection", scene.version["state"] == "rejected" and self.callers.version == before)

    def _mended_release(self) -> None:
        self.author.edit(WORSE[0], WORSE[2], WORSE[1])
        at = time.time()
        self.author.release("1.2.1", "Look at the hour of departure again")
        self._scene("release v1.2.1", at)

    def _insert(self, month: int) -> float:
        rows = self.flights.months[month]
        at = time.time()
        self.flights.insert(rows)
        self.show.line(f"{MONTHS[month]} inserted, {len(rows):,} flights; nobody is told")
        return at

    def _scene(self, cause: str, at: float, run: int | None = None) -> Scene:
        """Follow the next run to its verdict, and to the consumer if it is promoted."""
        last = self.scenes[-1].run["id"] if self.scenes else 0
        run = run or self._wait(f"{cause} to be noticed", lambda: self._newest_run(last))
        with self.show.working(f"run {run}") as update:
            ended = self._wait_ended(run, update)
            version = self._wait("a verdict", lambda: self._settled(ended))
            served_at = self._served(version, update)
        scene = Scene(cause, at, ended, version, served_at)
        self.scenes.append(scene)
        self._tell_scene(scene)
        return scene

    def _tell_scene(self, scene: Scene) -> None:
        version, metrics = scene.version, scene.version["metrics"]
        took = f"{(scene.served_at or time.time()) - scene.at:.1f} s after {scene.cause}"
        auc = f"auc {metrics['auc']:.4f}" if "auc" in metrics else ""
        if version["state"] == "promoted":
            self.show.seen(f"version {version['version']} promoted ({auc}); the consumer serves it {took}")
        else:
            self.show.line(f"version {version['version']} {version['state']} ({auc}):", "[yellow]–[/]")
        self.show.quote("\n".join(version["verdict"]["reasons"]))

    def _newest_run(self, after: int) -> int | None:
        found = self.api.get("/v1/runs", {"model": MODEL, "limit": 1})["items"]
        return int(found[0]["id"]) if found and found[0]["id"] > after else None

    def _wait_ended(self, run: int, update: Update) -> dict[str, Any]:
        def look() -> dict[str, Any] | None:
            found = self.api.get(f"/v1/runs/{run}")
            progress = found.get("progress")
            update(
                progress["fraction"] if progress else None, f"run {run}: {found['sentence'] or found['state']}"[:110]
            )
            return found if found["state"] in ("trained", "failed", "cancelled") else None

        ended = self._wait(f"run {run} to end", look)
        if ended["state"] != "trained":
            raise NotSeen(
                f"run {run} {ended['state']}: {ended['error']['message']}\n{ended['error'].get('advice', '')}"
            )
        return ended

    def _settled(self, run: dict[str, Any]) -> dict[str, Any] | None:
        number = self.api.get(f"/v1/runs/{run['id']}")["version"]
        found = self.api.get(f"/v1/models/{MODEL}/versions/{number}") if number else None
        return found if found and found["verdict"] and found["state"] != "candidate" else None

    def _served(self, version: dict[str, Any], update: Update) -> float | None:
        if version["state"] != "promoted":
            return None
        number = int(version["version"])
        update(text=f"version {number} is promoted; the consumer fetches it")
        return self._wait(f"the consumer to serve version {number}", lambda: self.callers.first_answers.get(number))

    def _model(self) -> dict[str, Any]:
        return self.api.get(f"/v1/models/{MODEL}")

    def _why(self) -> str:
        return "\n".join(self.api.get(f"/v1/models/{MODEL}/why")["sentences"])

    def _see(self, what: str, happened: bool) -> None:
        self.seen[what] = self.seen[what] or bool(happened)

    def _wait(self, what: str, look: Callable[[], T | None]) -> T:
        deadline = time.monotonic() + LIMIT_S
        while time.monotonic() < deadline:
            try:
                if found := look():
                    return found
            except Problem as problem:
                self.show.line(str(problem), "[yellow]![/]")
            time.sleep(0.05)
        raise NotSeen(f"waited {LIMIT_S:g} s for {what}. {self._why()}")


def moment(text: str) -> float:
    """Seconds since 1970 of a time as the API writes it."""
    return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()


WORSE = (  # file, line as released, line of the worse release
    "flight_delays/model.py",
    'NUMBERS = ["hour", "minute", "distance"]',
    'NUMBERS = ["distance"]',
)
