"""What the harness is told: the job file for a training and for a scoring."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from headrace import job

from services.trainer.checkout import Prepared
from services.trainer.child import source_url
from shared import catalog, cuts
from shared.cuts import Cut, Range
from shared.ledger.releases import Release


def training_job(
    run: int, release: Release, model: catalog.Model, sources: Mapping[str, catalog.Dataset], cut: Mapping[str, Cut],
    holdout: Mapping[str, Range], prepared: Prepared, scratch: Path,
) -> dict[str, Any]:  # fmt: skip
    """Train, save, load back and, where the release declares it, evaluate on the holdout. `judged`: whether its metrics are of held-out rows."""
    ranges = {
        name: (cuts.training(part, release.declaration.datasets[name]), holdout.get(name)) for name, part in cut.items()
    }
    told = _job("train", run, release, model, sources, ranges, prepared, scratch)
    if cuts.total_rows(holdout) == 0:  # a share of no rows is no evidence, and most metrics divide by their number
        return job.unjudged(told) | {"judged": False}
    return told | {"judged": release.declaration.can_score or release.declaration.command is not None}


def scoring_job(
    run: int, release: Release, model: catalog.Model, sources: Mapping[str, catalog.Dataset], holdout: Mapping[str, Range],
    prepared: Prepared, scratch: Path, model_dir: Path,
) -> dict[str, Any]:  # fmt: skip
    """Evaluate a saved model on rows that may be newer than those it was trained for."""
    ranges: dict[str, tuple[Range | None, Range | None]] = {
        name: (None, part) for name, part in holdout.items() if name in release.declaration.datasets
    }
    told = _job("evaluate", run, release, model, sources, ranges, prepared, scratch)
    return told | {"model_dir": str(model_dir)}


def _job(
    action: str, run: int, release: Release, model: catalog.Model, sources: Mapping[str, catalog.Dataset],
    ranges: Mapping[str, tuple[Range | None, Range | None]], prepared: Prepared, scratch: Path,
) -> dict[str, Any]:  # fmt: skip
    declared = release.declaration
    return job.describe(
        action,
        run=str(run),
        model=release.model,
        checkout=prepared.checkout,
        scratch=scratch,
        entries={key: getattr(declared, key) for key in job.ENTRIES},
        parameters=declared.parameters,
        datasets={
            name: _dataset(sources[name].source, train, held, model.pass_env) for name, (train, held) in ranges.items()
        },
    )


def _dataset(
    source: catalog.Source, train: Range | None, held: Range | None, pass_env: tuple[str, ...]
) -> dict[str, Any]:
    learnt, judged = (None if which is None else asdict(which) for which in (train, held))
    if isinstance(source, catalog.Reported):
        return job.reported(source.kind, train=learnt, holdout=judged)
    variable, url = source_url(source.url, pass_env)
    time = source.time_column
    return job.sql(source.table, source.cursor, url, variable, time_column=time, train=learnt, holdout=judged)
