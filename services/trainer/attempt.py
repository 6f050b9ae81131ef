"""One attempt at a run, from the claim to the bundle: the whole of what a worker does, in order."""

from __future__ import annotations

import shlex
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path

import structlog

from services.trainer import bundle, checkpoints, child, jobs, own_tests
from services.trainer.checkout import Prepared, Say, Workshop
from services.trainer.checkpoints import Keeper
from services.trainer.claims import Claims
from services.trainer.disk import Disk
from services.trainer.evaluate import NO_ROWS, Evaluator, no_metrics
from services.trainer.failures import Cancelled, Leaving, Lost, classify
from services.trainer.heart import Heart
from services.trainer.sandbox import Sandbox
from services.trainer.shares import Share, Shares
from services.trainer.usage import Meter
from shared import cuts
from shared.blobs import Blobs
from shared.cuts import Range
from shared.errors import Fenced, HeadraceError
from shared.gates import Scores
from shared.ledger.attempts import Claim, Used
from shared.logs import Logs

log = structlog.get_logger()


@dataclass
class Steps:
    """Seconds of each step of an attempt, in order; two steps may overlap."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        started = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = round(time.monotonic() - started, 4)


@dataclass(frozen=True)
class Trainer:
    """All that an attempt needs on this machine."""

    claims: Claims
    workshop: Workshop
    evaluator: Evaluator
    blobs: Blobs
    logs: Logs
    home: Path
    shares: Shares
    heartbeat_s: float
    leaving: threading.Event
    grace_s: float = child.GRACE_S

    def attempt(self, run: int) -> bool:
        """Claim the run and see it through; False if there was nothing to claim. Every way out is written into the ledger, or fenced."""
        claim = self.claims.claim(run)
        if claim is None:
            return False
        bound = log.bind(run=run, attempt=claim.token, model=claim.release.model, traceparent=claim.traceparent)
        bound.info("attempt_started", release=claim.release.name, cut=claim.cut_digest)
        steps, meter = Steps(), Meter(claim.gpus)
        try:
            self._carry_out(claim, steps, meter)
            bound.info("attempt_trained", seconds=steps.seconds)
        except (Lost, Fenced) as error:
            bound.warning("attempt_fenced", reason=error.message)
        except Exception as error:  # noqa: BLE001 -- the edge: whatever happened becomes a state
            self._end(claim, steps, meter.used(), error)
            bound.warning("attempt_ended", reason=str(error)[:500], exc_info=not isinstance(error, HeadraceError))
        return True

    def _end(self, claim: Claim, steps: Steps, used: Used, error: Exception) -> None:
        try:
            match error:
                case Leaving():
                    self.claims.hand_back(claim, error.message, steps.seconds, used)
                case Cancelled():
                    self.claims.cancelled(claim, steps.seconds, used)
                case _:
                    failure = classify(error)
                    self._say(claim, f"failed ({failure.kind}): {failure.message}")
                    self.claims.fail(claim, failure, steps.seconds, used)
        except HeadraceError as ending:
            log.warning(
                "attempt_end_not_written", run=claim.run, reason=ending.message
            )  # the lease runs out; another claims it

    def _carry_out(self, claim: Claim, steps: Steps, meter: Meter) -> None:
        disk = Disk(self.home)
        scratch = disk.scratch / f"{claim.run}-{claim.token}"
        holdout = cuts.comparison(claim.cut, claim.champion.cut if claim.champion is not None else None)
        try:
            with (
                disk.using(scratch),
                disk.using(_own_place(scratch)),
                ExitStack() as uses,
                self.shares.one(claim.gpus) as share,
                Heart(lambda told: self.claims.beat(claim, told), self.heartbeat_s, self.leaving) as heart,
            ):
                with _beside(lambda: self._score_champion(claim, holdout, heart, steps, share, meter)) as champion:
                    prepared, found = self._train(claim, holdout, scratch, heart, steps, uses, share, meter)
                    with steps.step("bundle"):
                        digest = self._bundle(claim, scratch / "output", prepared)
                scores = self._scores(claim, holdout, found, champion.result())
                heart.check()
            self.claims.finish(claim, digest, scores, steps.seconds, meter.used())
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
            shutil.rmtree(_own_place(scratch), ignore_errors=True)

    def _train(
        self,
        claim: Claim,
        holdout: dict[str, Range],
        scratch: Path,
        heart: Heart,
        steps: Steps,
        uses: ExitStack,
        share: Share,
        meter: Meter,
    ) -> tuple[Prepared, dict[str, float] | None]:
        """Train in a child. What it was prepared with stays until `uses` is closed."""
        with steps.step("prepare"):
            place = self.workshop.prepared(claim.model, claim.release, self._teller(claim, heart))
            prepared = uses.enter_context(place)
        heart.check()
        (scratch / "output").mkdir(parents=True, exist_ok=True, mode=0o700)
        sources, model = claim.datasets, claim.model
        job = jobs.training_job(claim.run, claim.release, model, sources, claim.cut, holdout, prepared, scratch)
        job["resume"] = self._resumed(claim, scratch)
        env = child.environment(model.pass_env, claim.run, prepared, scratch, share)
        limit, inside = _time_limit(claim), Sandbox.of(model)
        work = child.Work(
            job,
            scratch,
            self._log_name(claim),
            limit,
            env,
            model.limits,
            share.cpus,
            self.grace_s,
            meter,
            sandbox=inside,
        )
        if claim.release.declaration.test is not None:
            with steps.step("test"):
                self._run_tests(claim, claim.release.declaration.test, work, prepared, heart, share)
        with self._keeper(claim, scratch), steps.step("train"):
            result = child.run(work, prepared, self.workshop.users, self.workshop.parents, self.logs, heart)
        steps.seconds |= {f"train.{name}": seconds for name, seconds in result.seconds.items()}
        return prepared, result.metrics if job["judged"] else None

    def _run_tests(
        self, claim: Claim, command: tuple[str, ...], work: child.Work, prepared: Prepared, heart: Heart, share: Share
    ) -> None:
        """The model's own tests, in a scratch directory that the training never sees."""
        disk, scratch = Disk(self.home), work.scratch.with_name(f"{work.scratch.name}-tests")
        shutil.rmtree(scratch, ignore_errors=True)
        with disk.using(scratch):
            try:
                scratch.mkdir(mode=0o700)
                env = child.environment(claim.model.pass_env, claim.run, prepared, scratch, share)
                self._say(claim, f"running the tests: {shlex.join(command)}")
                own = replace(work, job={}, scratch=scratch, env=env)
                own_tests.run(command, own, prepared, self.workshop.users, self.logs, heart)
            finally:
                shutil.rmtree(scratch, ignore_errors=True)

    def _resumed(self, claim: Claim, scratch: Path) -> str | None:
        """What an earlier attempt has left to go on from, as a file that the child reads."""
        if claim.checkpoint is None:
            return None
        into = scratch / "resume"
        found = checkpoints.fetch(self.blobs, claim.checkpoint, into, lambda text: self._say(claim, text))
        return str(into) if found else None

    def _keeper(self, claim: Claim, scratch: Path) -> Keeper:
        return Keeper(
            scratch,
            _own_place(scratch),
            self.blobs,
            lambda sha256, size_bytes: self.claims.checkpoint(claim, sha256, size_bytes),
            lambda text: self._say(claim, text),
            most_bytes=claim.model.limits.checkpoint,
            replaces=claim.checkpoint,
        )

    def _score_champion(
        self, claim: Claim, holdout: dict[str, Range], heart: Heart, steps: Steps, share: Share, meter: Meter
    ) -> Scores | None:
        if claim.champion is None:
            return None
        with steps.step("champion"):
            return self.evaluator.score(
                claim.champion,
                claim.model,
                claim.datasets,
                holdout,
                heart,
                by=f"{claim.run}-{claim.token}",
                say=self._teller(claim, heart),
                share=share,
                meter=meter,
            )

    def _scores(
        self, claim: Claim, holdout: dict[str, Range], found: dict[str, float] | None, champion: Scores | None
    ) -> dict[int, tuple[dict[str, Range], Scores]]:
        """Scores to store, by the run whose model they are of."""
        missing = NO_ROWS if cuts.total_rows(holdout) == 0 else no_metrics(claim.release)
        own = Scores(found, None if found is not None else missing)
        scores = {claim.run: (holdout, own)}
        if claim.champion is not None and champion is not None:
            scores[claim.champion.run] = (holdout, champion)
        return scores

    def _bundle(self, claim: Claim, output: Path, prepared: Prepared) -> str:
        text, _ = self.logs.read(self._log_name(claim), 0, 10_000_000)
        bundle.complete(output, prepared, text)
        return bundle.store(self.blobs, output, bundle.check(output))

    def _teller(self, claim: Claim, heart: Heart) -> Say:
        """Tells what goes on while a checkout or an environment is made, each thing once; raises when the work must stop."""
        told: list[str] = []

        def say(text: str) -> None:
            heart.check()
            if told[-1:] != [text]:
                told.append(text)
                self._say(claim, text)

        return say

    def _say(self, claim: Claim, text: str) -> None:
        """A line of the platform's own in the author's log; one that is lost keeps nothing from going on."""
        try:
            self.logs.append(self._log_name(claim), f"[headrace] {text}\n".encode())
        except (OSError, HeadraceError) as error:
            log.warning("log_line_lost", run=claim.run, reason=str(error))

    def _log_name(self, claim: Claim) -> str:
        return f"runs/{claim.run}/{claim.token}"


def _own_place(scratch: Path) -> Path:
    """Beside the child's directory, and out of its reach."""
    return scratch.with_name(f"{scratch.name}-kept")


def _time_limit(claim: Claim) -> timedelta:
    own = claim.release.declaration.time_limit
    return min(own, claim.model.time_limit) if own is not None else claim.model.time_limit


@contextmanager
def _beside(work: Callable[[], Scores | None]) -> Iterator[Future[Scores | None]]:
    """Work in a second thread; left only when it has ended, whatever happened to ours."""
    with ThreadPoolExecutor(1, thread_name_prefix="champion") as pool:
        yield pool.submit(work)
