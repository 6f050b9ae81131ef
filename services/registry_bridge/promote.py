"""From a registered version to a champion: the verdict, the intent, the alias, the news; each step may be repeated."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import structlog

from services.registry_bridge.register import Registry
from shared import cuts, gates
from shared.declaration import Gate
from shared.errors import Conflict, Permanent
from shared.gates import Decision, Evidence, Scores, Verdict
from shared.ledger import Ledger, Transaction, attempts, configuration, scores, versions
from shared.ledger.attempts import Trained
from shared.lifecycle import VersionState

ALIAS_LEASE = timedelta(seconds=35)  # an answer of MLflow is waited for for 30 s
log = structlog.get_logger()
Wanted = tuple[int, str, str]  # run, holdout, compute class


@dataclass(frozen=True)
class Promoter:
    """Judges candidates and makes champions. `ask` rings for a score that is missing; the ledger holds the wish in any case."""

    ledger: Ledger
    registry: Registry
    ask: Callable[[Wanted], object]

    def settle(self, run: int) -> None:
        """Take a run's version as far as it goes now: judge it, and let the alias follow an intent."""
        try:
            with self.ledger.write() as tx:
                row = versions.find_to_judge(tx, run)
                wanted = self._judge(tx, row) if row is not None and row.state == VersionState.CANDIDATE else []
        except Conflict as error:
            log.info(
                "verdict_void", run=run, reason=error.message
            )  # another champion serves by now: it is judged again
            return
        for one in wanted:
            self.ask(one)
        if row is not None:
            self.follow(row.model)

    def follow(self, model: str) -> None:
        """Move the alias to the version that the ledger wants as champion, then say in the ledger that it serves."""
        with self.ledger.write() as tx:
            intended = versions.claim_intent(tx, model, ALIAS_LEASE)
        if intended is None:
            return
        self.registry.set_champion(model, intended.number)
        with self.ledger.write() as tx:
            versions.served(tx, intended)
        log.info("version_serves", model=model, version=intended.number)

    def mirror(self) -> None:
        """Put right an alias that differs from the ledger: someone moved it, or a mover was stopped for longer than its lease."""
        with self.ledger.read() as tx:
            models = list(configuration.in_force(tx).catalog.models)
        for model in models:
            try:
                self._mirror(model)
            except Permanent as error:  # such as a version that was deleted there: the other models' aliases count too
                log.error("alias_differs", model=model, error=error.message)

    def _mirror(self, model: str) -> None:
        """The ledger is asked after MLflow, and again after a move: another bridge may have promoted in between."""
        while True:
            found, wanted = self.registry.champion(model), self._settled(model)
            if wanted is None or found == wanted:
                return
            log.warning("alias_put_right", model=model, found=found, version=wanted)
            self.registry.set_champion(model, wanted)
            if self._settled(model) == wanted:
                return

    def _settled(self, model: str) -> int | None:
        """The version that the alias should name; None before the first, and while a promotion is under way."""
        with self.ledger.read() as tx:
            row = versions.champion(tx, model)
            return None if row is None or versions.has_intent(tx, model) else int(row.number)

    def _judge(self, tx: Transaction, row: Any) -> list[Wanted]:
        """Judge and decide in this transaction, or say which scores are missing."""
        config = configuration.in_force(tx).catalog.models.get(row.model)
        if config is None or versions.has_intent(tx, row.model):
            return []  # judged when the model is back, or the other promotion has ended
        candidate, champion = attempts.trained(tx, row.run_id), versions.champion(tx, row.model)
        serving = attempts.trained(tx, champion.run_id) if champion is not None else None
        holdout = cuts.comparison(candidate.cut, serving.cut if serving is not None else None)
        rules = gates.with_floor(candidate.release.declaration.gates, config.gates)
        complete, wished = _want(tx, candidate, serving, holdout, rules)
        if not complete:
            return wished
        digest = cuts.digest(holdout)
        evidence = Evidence(
            candidate=_scores(tx, candidate.run, digest),
            champion=_scores(tx, serving.run, digest) if serving is not None else None,
            champion_number=champion.number if champion is not None else None,
            holdout_rows=cuts.total_rows(holdout),
            min_rows=max((_min_rows(tx, name) for name in holdout), default=0),
        )
        verdict = _verdict(evidence, rules, candidate, serving)
        versions.decide(tx, row, champion, verdict, digest, automatic=config.promote == "automatic")
        log.info(
            "version_judged", model=row.model, version=row.number, decision=verdict.decision, reasons=verdict.reasons
        )
        return []


def _want(
    tx: Transaction, candidate: Trained, serving: Trained | None, holdout: dict[str, cuts.Range], rules: dict[str, Gate]
) -> tuple[bool, list[Wanted]]:
    """Whether the scores are there that the gates need; those that nobody has wished for yet are, and are returned for the doorbell."""
    needed = [candidate] if rules else []
    if serving is not None and any(gate.compares for gate in rules.values()):
        needed.append(serving)
    digest, compute_class = cuts.digest(holdout), candidate.release.declaration.compute_class
    complete, wished = True, []
    for subject in needed:
        score = scores.find(tx, subject.run, digest)
        if score is None:
            scores.want(tx, subject.run, digest, cuts.to_json(holdout), compute_class)
            wished.append((subject.run, digest, compute_class))
        complete = complete and score is not None and score.scored_at is not None
    return complete, wished


def _verdict(evidence: Evidence, rules: dict[str, Gate], candidate: Trained, serving: Trained | None) -> Verdict:
    if serving is not None and serving.run > candidate.run:
        return Verdict(
            Decision.REJECT,
            (f"champion {evidence.champion_number} was trained later, on newer data (run {serving.run})",),
        )
    verdict = gates.judge(evidence, rules)
    if serving is None:
        return verdict
    looser = gates.loosened(serving.release.declaration.gates, candidate.release.declaration.gates)
    return Verdict(
        verdict.decision,
        (*verdict.reasons, *(f"release {candidate.release.name} loosens its own gates: {one}" for one in looser)),
    )


def _scores(tx: Transaction, run: int, digest: str) -> Scores:
    row = scores.find(tx, run, digest)
    return Scores(row.metrics, row.error) if row is not None else Scores(None, "it was not scored")


def _min_rows(tx: Transaction, dataset: str) -> int:
    known = configuration.in_force(tx).catalog.datasets.get(dataset)
    return known.holdout.min_rows if known is not None else 0
