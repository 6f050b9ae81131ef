"""The one door from a worker to the ledger: claim, beat, checkpoint, finish, fail and scores."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta
from typing import Protocol

from services.trainer.told import Told
from shared.catalog import Catalog, Model
from shared.cuts import Range, digest, from_json, to_json
from shared.errors import Unavailable
from shared.gates import Scores
from shared.ledger import Ledger, Transaction, attempts, configuration, releases, repeats, runs, scores, workers
from shared.ledger.attempts import Checkpoint, Claim, Failure, Trained, Used
from shared.ledger.releases import Release

PATIENCE_S = 60.0
SCORE_PAUSE = timedelta(seconds=10)


class Claims(Protocol):
    """What a worker may do to the ledger. After `claim`, every call is fenced by the claim's token and raises `Fenced` when it is not
    the newest; each is safe to repeat. An adapter over HTTP can take the place of the one below where a machine holds no database password."""

    def claim(self, run: int) -> Claim | None: ...
    def beat(self, claim: Claim, told: Told) -> str | None: ...
    def checkpoint(self, claim: Claim, sha256: str, size_bytes: int) -> Checkpoint: ...
    def finish(
        self,
        claim: Claim,
        bundle: str,
        scored: dict[int, tuple[dict[str, Range], Scores]],
        seconds: dict[str, float],
        used: Used,
    ) -> None: ...
    def fail(self, claim: Claim, failure: Failure, seconds: dict[str, float], used: Used) -> None: ...
    def hand_back(self, claim: Claim, why: str, seconds: dict[str, float], used: Used) -> None: ...
    def cancelled(self, claim: Claim, seconds: dict[str, float], used: Used) -> None: ...


class LedgerClaims:
    """`Claims` by SQL. What ends an attempt is tried again while the ledger is away, as long as the claim may still be ours."""

    def __init__(self, ledger: Ledger, worker: str, lease: timedelta) -> None:
        self._ledger = ledger
        self._worker = worker
        self._lease = lease

    @repeats
    def claim(self, run: int) -> Claim | None:
        with self._ledger.write() as tx:
            return attempts.claim(tx, run, self._worker, self._lease)

    def beat(self, claim: Claim, told: Told) -> str | None:
        with self._ledger.write(tells=False) as tx:
            return attempts.beat(
                tx, claim.run, claim.token, self._lease, told.progress, told.note, told.metrics or None
            )

    def checkpoint(self, claim: Claim, sha256: str, size_bytes: int) -> Checkpoint:
        with self._ledger.write(tells=False) as tx:
            return attempts.checkpoint(tx, claim.run, claim.token, sha256, size_bytes)

    def finish(
        self,
        claim: Claim,
        bundle: str,
        scored: dict[int, tuple[dict[str, Range], Scores]],
        seconds: dict[str, float],
        used: Used,
    ) -> None:
        def write(tx: Transaction) -> None:
            attempts.finish(tx, claim.run, claim.token, bundle, seconds, used)
            for run, (ranges, found) in scored.items():
                compute_class = claim.release.declaration.compute_class
                metrics = dict(found.metrics) if found.metrics is not None else None
                scores.store(tx, run, digest(ranges), to_json(ranges), compute_class, metrics, found.error)

        self._persist(write)

    def fail(self, claim: Claim, failure: Failure, seconds: dict[str, float], used: Used) -> None:
        self._persist(lambda tx: attempts.fail(tx, claim.run, claim.token, failure, seconds, used))

    def hand_back(self, claim: Claim, why: str, seconds: dict[str, float], used: Used) -> None:
        self._persist(lambda tx: attempts.hand_back(tx, claim.run, claim.token, why, seconds, used))

    def cancelled(self, claim: Claim, seconds: dict[str, float], used: Used) -> None:
        self._persist(lambda tx: attempts.cancelled(tx, claim.run, claim.token, seconds, used))

    def _persist(self, write: Callable[[Transaction], object]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                with self._ledger.write() as tx:
                    write(tx)
                return
            except Unavailable:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.5)


class LedgerScores:
    """A wanted score as something to claim, keep and store."""

    def __init__(self, ledger: Ledger, lease: timedelta) -> None:
        self._ledger = ledger
        self._lease = lease

    @repeats
    def claim(self, run: int, holdout: str) -> tuple[Trained, dict[str, Range], configuration.InForce] | None:
        with self._ledger.write() as tx:
            wanted = scores.claim(tx, run, holdout, self._lease)
            if wanted is None:
                return None
            return attempts.trained(tx, run), from_json(wanted.rows), configuration.in_force(tx)

    def beat(self, run: int, holdout: str) -> None:
        with self._ledger.write() as tx:
            scores.beat(tx, run, holdout, self._lease)

    @repeats
    def release(self, run: int, holdout: str) -> None:
        """Give the score back untried: something was away, or this worker leaves."""
        with self._ledger.write() as tx:
            scores.release(tx, run, holdout, SCORE_PAUSE)

    @repeats
    def store(self, run: int, holdout: str, found: Scores) -> None:
        with self._ledger.write() as tx:
            row = scores.find(tx, run, holdout)
            metrics = dict(found.metrics) if found.metrics is not None else None
            scores.store(tx, run, holdout, row.rows, row.compute_class, metrics, found.error)


class LedgerWork:
    """What a free worker finds in the ledger, and what it tells of itself."""

    def __init__(self, ledger: Ledger, worker: str, compute_class: str, slots: int) -> None:
        self._ledger = ledger
        self._worker = worker
        self._class = compute_class
        self._slots = slots

    def due(self, patience: timedelta) -> int | tuple[int, str] | None:
        """A run that has been due for `patience` and that nobody works on, or a wanted score as (run, holdout)."""
        with self._ledger.read() as tx:
            run = runs.claimable(tx, self._class, patience)
            wanted = scores.wanted(tx, self._class) if run is None else None
            return run if run is not None else (wanted.run_id, wanted.holdout) if wanted is not None else None

    def coming(self) -> list[tuple[Model, Release]]:
        """The models of this class with a run that waits for its time, and the release that it would train."""
        with self._ledger.read() as tx:
            models = configuration.in_force(tx).catalog.models
            waiting = [row for row in runs.coming(tx, self._class) if row.model in models]
            return [(models[row.model], releases.find(tx, row.release_id)) for row in waiting]

    def is_open(self, due: int | tuple[int, str]) -> bool:
        """Whether nobody has claimed the run, or the wanted score, since it became due."""
        with self._ledger.read() as tx:
            if isinstance(due, int):
                return runs.is_claimable(tx, due)
            row = scores.find(tx, *due)
            return row.scored_at is None and (row.lease_until is None or row.lease_until < tx.now)

    def catalog(self) -> Catalog:
        """What is in force; raises `ConfigurationError` before the first."""
        with self._ledger.read() as tx:
            return configuration.in_force(tx).catalog

    def tell(self, busy: int) -> None:
        with self._ledger.write() as tx:
            workers.seen(tx, self._worker, self._class, self._slots, busy)

    def leave(self) -> None:
        with self._ledger.write() as tx:
            workers.left(tx, self._worker)
