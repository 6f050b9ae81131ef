"""Scoring a trained model on rows that it has not seen: by its own code, in its own environment, from its stored bundle."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from services.trainer import bundle, child, jobs
from services.trainer.checkout import Say, Workshop
from services.trainer.disk import Disk
from services.trainer.failures import AttemptFailed
from services.trainer.heart import Heart
from services.trainer.sandbox import Sandbox
from services.trainer.shares import Share
from services.trainer.usage import Meter
from shared import catalog, cuts
from shared.blobs import Blobs
from shared.cuts import Range
from shared.errors import Permanent, Transient
from shared.gates import Scores
from shared.ledger.attempts import Trained
from shared.ledger.releases import Release
from shared.logs import Logs

NO_ROWS = "the holdout has no rows yet"


def no_metrics(release: Release) -> str:
    wrote = "" if release.declaration.command is None else ", and its command wrote no metrics of these rows"
    return f"release {release.name} declares no evaluate{wrote}"


@dataclass(frozen=True)
class Evaluator:
    """Scores trained runs on this machine."""

    workshop: Workshop
    blobs: Blobs
    logs: Logs
    home: Path

    def score(
        self,
        subject: Trained,
        model: catalog.Model,
        sources: Mapping[str, catalog.Dataset],
        holdout: Mapping[str, Range],
        heart: Heart,
        *,
        by: str,
        say: Say,
        share: Share,
        meter: Meter,
    ) -> Scores | None:
        """Metrics of the subject on the holdout; what keeps it from being scored for good is a result too, for the verdict
        says so. None where trying again may help. Raises `Stopped` when the work must stop. `by` names who asked, in logs and scratch.
        """
        disk = Disk(self.home)
        scratch = disk.scratch / f"score-{subject.run}-for-{by}"
        shutil.rmtree(scratch, ignore_errors=True)  # of a worker that was killed: its result must not pass for ours
        if cuts.total_rows(holdout) == 0:
            return Scores(None, NO_ROWS)
        try:
            if not subject.release.declaration.can_score:
                return Scores(None, no_metrics(subject.release))
            if subject.bundle is None:
                return Scores(None, f"the bundle of run {subject.run} was tidied away")
            kept = disk.bundles / subject.bundle.removeprefix("sha256:")
            with (
                disk.using(scratch),
                disk.using(kept),
                self.workshop.prepared(model, subject.release, say) as prepared,
            ):
                files = bundle.fetch(self.blobs, subject.bundle, kept)
                job = jobs.scoring_job(
                    subject.run, subject.release, model, sources, holdout, prepared, scratch, files / "model"
                )
                env = child.environment(model.pass_env, subject.run, prepared, scratch, share)
                self.workshop.users.open_tree(files)
                log = f"runs/{subject.run}/score-for-{by}"
                limits, inside = model.limits, Sandbox.of(model)
                work = child.Work(
                    job, scratch, log, model.time_limit, env, limits, share.cpus, meter=meter, sandbox=inside
                )
                return Scores(
                    child.run(work, prepared, self.workshop.users, self.workshop.parents, self.logs, heart).metrics
                )
        except AttemptFailed as error:
            return None if error.failure.transient else Scores(None, f"{error.failure.kind}: {error.message}"[:2000])
        except KeyError as error:
            return Scores(None, f"dataset {error} is no longer in the configuration")
        except Transient:
            return None
        except Permanent as error:
            return Scores(None, error.message[:2000])
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
