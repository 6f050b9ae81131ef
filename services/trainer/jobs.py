"""What the harness is told: the job file for a training and for a scoring."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from services.trainer.checkout import Prepared
from services.trainer.child import LOADER, source_url
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
    job = _job("train", run, release, model, sources, ranges, prepared, scratch)
    job["parameters"] = dict(release.declaration.parameters)
    if cuts.total_rows(holdout) == 0:  # a share of no rows is no evidence, and most metrics divide by their number
        job["evaluate"] = job["evaluate_command"] = None
        return job | {"judged": False}
    return job | {"judged": release.declaration.can_score or release.declaration.command is not None}


def scoring_job(
    run: int, release: Release, model: catalog.Model, sources: Mapping[str, catalog.Dataset], holdout: Mapping[str, Range],
    prepared: Prepared, scratch: Path, model_dir: Path,
) -> dict[str, Any]:  # fmt: skip
    """Evaluate a saved model on rows that may be newer than those it was trained for."""
    ranges: dict[str, tuple[Range | None, Range | None]] = {
        name: (None, part) for name, part in holdout.items() if name in release.declaration.datasets
    }
    job = _job("evaluate", run, release, model, sources, ranges, prepared, scratch)
    return job | {"model_dir": str(model_dir), "parameters": dict(release.declaration.parameters)}


def _job(
    action: str, run: int, release: Release, model: catalog.Model, sources: Mapping[str, catalog.Dataset],
    ranges: Mapping[str, tuple[Range | None, Range | None]], prepared: Prepared, scratch: Path,
) -> dict[str, Any]:  # fmt: skip
    declared = release.declaration
    return {
        "action": action,
        "run": str(run),
        "model": release.model,
        "checkout": str(prepared.checkout),
        "source_roots": [str(prepared.checkout / "src"), str(prepared.checkout)],
        "output": str(scratch / "output"),
        "scratch": str(scratch),
        "train": declared.train,
        "command": declared.command,
        "evaluate": declared.evaluate,
        "evaluate_command": declared.evaluate_command,
        "export": declared.export,
        "predict": declared.predict,
        "load": declared.load,
        "loader": str(LOADER),
        "datasets": {
            name: _dataset(sources[name].source, train, held, model.pass_env) for name, (train, held) in ranges.items()
        },
    }


def _dataset(
    source: catalog.Source, train: Range | None, held: Range | None, pass_env: tuple[str, ...]
) -> dict[str, Any]:
    if isinstance(source, catalog.Reported):
        return {"kind": source.kind, "train": train and asdict(train), "holdout": held and asdict(held)}
    variable, url = source_url(source.url, pass_env)
    return {
        "kind": "sql",
        "table": source.table,
        "cursor": source.cursor,
        "url_variable": variable,
        "url": url,
        "train": train and _rows(source, train),
        "holdout": held and _rows(source, held),
    }


def _rows(source: catalog.Sql, which: Range) -> dict[str, Any]:
    return {
        "table": source.table,
        "cursor": source.cursor,
        "cursor_type": "integer" if isinstance(which.upto, int) else "timestamp",
        "above": which.above,
        "upto": which.upto,
        "newest": which.newest,
        "time_column": source.time_column,
        "since": which.since,
        "rows": which.rows,
    }
