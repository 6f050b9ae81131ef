"""What is taken from the shared stores, step by step: the ledger says first that a thing is taken, then its bytes go.

A kill between any two steps leaves something that the ledger calls tidied and that is still there: the next turn takes it. A blob goes
only when no manifest names it and nobody has kept it for a day, which is how an upload that the ledger does not name yet is safe.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, TypeVar

from services.registry_bridge.register import Registry
from shared.blobs import Blobs
from shared.catalog import Keep
from shared.errors import HeadraceError, Permanent, Unavailable
from shared.ledger import Ledger, repeats, retention
from shared.logs import Logs
from shared.manifest import Manifest
from shared.retention import Kept, Report, Run, reports_before, sort_out, takes_log

FRESH = timedelta(hours=24)
PAGE = 200
_LOG = re.compile(r"runs/([1-9][0-9]{0,17})/.+")
T = TypeVar("T")


class Unreadable(Permanent):
    """A manifest cannot be read, so that nobody knows which blobs it names."""


@dataclass
class Turn:
    """One pass over the stores. `check` raises when it must stop; `tell` hears what is done and how far it is."""

    keep: Keep
    now: datetime
    dry: bool = False
    check: Callable[[], None] = lambda: None
    tell: Callable[[str, int], None] = lambda what, done: None
    report: Report = field(default_factory=Report)
    bundles: set[int] = field(default_factory=set)  # of a dry run: what the blobs' turn must take for gone
    files: set[int] = field(default_factory=set)


@dataclass(frozen=True)
class Tidy:
    """The steps. Any of them may be repeated, and all may run at several places at once."""

    ledger: Ledger
    registry: Registry
    blobs: Blobs
    logs: Logs

    def run(self, turn: Turn) -> Report:
        """Take what the rules allow; raises what `turn.check` raises. What could not be done stands in the report and is left for later."""
        for step in (self._runs, self._mlflow, self._logs, self._notices, self._reports, self._blobs):
            turn.check()
            try:
                step(turn)
            except Unavailable as error:
                turn.report.errors.append(error.message)
            except Unreadable as error:
                turn.report.errors.append(f"{error.message}; no blob is taken while that is so")
        return turn.report

    def _runs(self, turn: Turn) -> None:
        with self.ledger.read() as tx:
            models = retention.models(tx)
        for model in models:
            choices = sort_out(self._trained(model), turn.keep, turn.now)
            for done, page in enumerate(pages(choices, PAGE)):
                turn.check()
                turn.tell(f"versions and bundles of {model}", done * PAGE + len(page))
                for choice in page:
                    if choice.files is not None and choice.run.version is not None:
                        turn.report.keep("versions", choice.files)
                    if choice.bundle is not None and choice.run.bundle:
                        turn.report.keep("bundles", choice.bundle)
                self._take(
                    turn,
                    [one.run.id for one in page if one.takes_files],
                    [one.run.id for one in page if one.takes_bundle],
                )

    def _trained(self, model: str) -> Iterator[Run]:
        below = None
        while True:
            with self.ledger.read() as tx:
                found = retention.trained(tx, model, below, PAGE)
            yield from found
            if len(found) < PAGE:
                return
            below = found[-1].id

    @repeats
    def _take(self, turn: Turn, files: list[int], bundles: list[int]) -> None:
        if turn.dry:
            turn.files |= set(files)
            turn.bundles |= set(bundles)
            turn.report.take("versions", len(files))
            turn.report.take("bundles", len(bundles))
        elif files or bundles:
            with self.ledger.write() as tx:
                gone = retention.take_files(tx, files), retention.take_bundles(tx, bundles)
            turn.report.take("versions", gone[0])
            turn.report.take("bundles", gone[1])

    def _mlflow(self, turn: Turn) -> None:
        if turn.dry:
            turn.report.take("versions in MLflow", len(turn.files))
        after = 0
        while True:
            with self.ledger.read() as tx:
                page = retention.unremoved(tx, after, PAGE)
            for done, row in enumerate(page):
                turn.check()
                turn.tell("versions in MLflow", done)
                if not turn.dry and not self._remove(turn, row):
                    continue
                turn.report.take("versions in MLflow")
            if len(page) < PAGE:
                return
            after = page[-1].id

    def _remove(self, turn: Turn, version: Any) -> bool:
        try:
            self.registry.remove(version.model, version.number, version.mlflow_run, version.mlflow_model)
        except Permanent as error:
            turn.report.errors.append(error.message)
            return False
        self._removed(version.id)
        return True

    @repeats
    def _removed(self, version: int) -> None:
        with self.ledger.write() as tx:
            retention.removed(tx, version)

    def _logs(self, turn: Turn) -> None:
        for done, page in enumerate(pages(self.logs.names(), PAGE)):
            turn.check()
            turn.tell("logs", done * PAGE + len(page))
            owners = {name: int(found[1]) for name, _, _ in page if (found := _LOG.fullmatch(name))}
            with self.ledger.read() as tx:
                ended = retention.ended(tx, set(owners.values()))
            for name, written_at, size_bytes in page:
                if owners.get(name) not in ended:
                    turn.report.keep("logs", "it is of no run that is known")
                elif not takes_log(ended[owners[name]], written_at, turn.keep, turn.now):
                    turn.report.keep("logs", Kept.YOUNG)
                else:
                    turn.report.take("logs", 1, size_bytes)
                    if not turn.dry:
                        self.logs.remove(name)

    def _notices(self, turn: Turn) -> None:
        after: int | None = 0
        while after is not None:
            turn.check()
            with self.ledger.read() as tx:
                old, after = retention.old_notices(tx, turn.now - turn.keep.runs, after, PAGE)
            turn.tell("notices", after or 0)
            if turn.dry:
                turn.report.take("notices", len(old))
            elif old:
                turn.report.take("notices", self._forget_notices(old))

    @repeats
    def _forget_notices(self, old: list[int]) -> int:
        with self.ledger.write() as tx:
            return retention.forget_notices(tx, old)

    def _reports(self, turn: Turn) -> None:
        before = reports_before(turn.keep, turn.now)
        if turn.dry:
            with self.ledger.read() as tx:
                turn.report.take("reports", retention.count_reports(tx, before))
            return
        while True:
            turn.check()
            gone = self._forget_reports(before)
            turn.report.take("reports", gone)
            if gone < PAGE:
                return

    @repeats
    def _forget_reports(self, before: datetime) -> int:
        with self.ledger.write() as tx:
            return retention.forget_reports(tx, retention.old_reports(tx, before, PAGE))

    def _blobs(self, turn: Turn) -> None:
        """Mark and sweep. What is named after the mark is fresh: who names a blob has put or kept it just before."""
        live = self._named(turn)
        for done, (sha256, at, size_bytes) in enumerate(self.blobs.stored()):
            if done % PAGE == 0:
                turn.check()
                turn.tell("blobs", done)
            if bytes.fromhex(sha256) in live:
                turn.report.keep("blobs", "a run or a version needs it")
            elif at > turn.now - FRESH:
                turn.report.keep("blobs", "it is younger than a day")
            else:
                turn.report.take("blobs", 1, size_bytes)
                if not turn.dry:
                    self.blobs.remove(sha256, FRESH)
        if not turn.dry and (left := self.blobs.leftovers(FRESH)):
            turn.report.take("leftovers of uploads", left)

    def _named(self, turn: Turn) -> set[bytes]:
        """Every blob that a manifest names which is not tidied, the manifests, and checkpoints: 32 bytes each, however long the history."""
        with self.ledger.read() as tx:
            live = {bytes.fromhex(sha256) for sha256 in retention.checkpoints(tx)}
        after = (0, 0)
        while True:
            turn.check()
            with self.ledger.read() as tx:
                runs, versions = retention.named(tx, after, PAGE)
            for row in runs:
                if row.id not in turn.bundles:
                    self._mark(row.bundle, f"the bundle of run {row.id}", live)
            for row in versions:
                if row.run_id not in turn.files:
                    self._mark(row.digest, f"the version of run {row.run_id}", live)
            turn.tell("manifests", len(live))
            if len(runs) < PAGE and len(versions) < PAGE:
                return live
            after = (runs[-1].id if runs else after[0], versions[-1].id if versions else after[1])

    def _mark(self, digest: str, whose: str, live: set[bytes]) -> None:
        name = digest.removeprefix("sha256:")
        live.add(bytes.fromhex(name))
        try:
            with self.blobs.open(name) as stream:
                manifest = Manifest.model_validate_json(stream.read())
        except Unavailable:
            raise
        except (HeadraceError, ValueError, OSError) as error:
            raise Unreadable(f"the list of files of {whose} cannot be read ({str(error)[:300]})") from error
        live.update(bytes.fromhex(file.sha256) for file in manifest.files)


def pages(rows: Iterable[T], size: int) -> Iterator[list[T]]:
    """The rows in lists of at most `size`."""
    page: list[T] = []
    for row in rows:
        page.append(row)
        if len(page) == size:
            yield page
            page = []
    if page:
        yield page
