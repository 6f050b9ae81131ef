"""Whether a training would be one that was made already: what a run freezes, beside what the model's newest one has frozen."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from sqlalchemy import select

from shared.ledger import datasets, releases
from shared.ledger.releases import Release
from shared.ledger.session import Transaction
from shared.ledger.tables import run
from shared.lifecycle import RunState

SENTENCE = "nothing has changed since run {run}: the same code and the same data"


def freeze(tx: Transaction, release: Release) -> dict[str, Any]:
    """What the first claim fixes for all attempts: the release and the cut of its datasets."""
    cut = {
        name: part.to_json() for name, part in sorted(datasets.known(tx, list(release.declaration.datasets)).items())
    }
    return {"release_id": release.id, "cut": cut, "cut_digest": digest(cut)}


def digest(value: Any) -> str:
    """`sha256:…` of canonical JSON."""
    return "sha256:" + hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def trained(tx: Transaction, model: str, release: Release, cut_digest: str) -> int | None:
    """The model's newest run, if it was trained from the same content and the same data: another would give the same again."""
    newest = newest_run(tx, model)
    if newest is None or newest.state != RunState.TRAINED or newest.cut_digest != cut_digest:
        return None
    return int(newest.id) if releases.same(releases.find(tx, newest.release_id), release) else None


def taken_over(tx: Transaction, model: str, release: Release) -> int | None:
    """The model's newest run, if it was or is being trained from the same content as `release`, under another commit or name."""
    newest = newest_run(tx, model)
    if newest is None or newest.release_id == release.id:
        return None
    good = newest.state in (RunState.TRAINED, RunState.RUNNING, RunState.RETRYING)
    return int(newest.id) if good and releases.same(releases.find(tx, newest.release_id), release) else None


def newest_run(tx: Transaction, model: str) -> Any:
    """The one that was claimed last, passing over samples; None before the first."""
    claimed = run.c.started_at.is_not(None), run.c.sample.is_(None)
    query = select(run).where(run.c.model == model, *claimed).order_by(run.c.id.desc())
    return tx.execute(query.limit(1)).first()
