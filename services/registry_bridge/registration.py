"""What MLflow is told about a trained run, and the forms and limits in which its REST calls take it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby
from pathlib import Path
from typing import Any

RUN_TAG = "headrace.run"
TOKEN_TAG = "headrace.token"
BUNDLE_TAG = "headrace.bundle"
SAMPLE_TAG = "headrace.sample"
MAX_TAG_CHARS = 5_000
MAX_PARAMETER_CHARS = 2_000
MAX_PARAMETERS = 100  # in one call, as the server has it
_MAX_METRICS = 800
_PART = r"(?!\.{1,2}(?:/|$))[A-Za-z0-9_. :-]+"
_KEY = re.compile(rf"{_PART}(?:/{_PART})*")

Pairs = list[dict[str, str]]


@dataclass(frozen=True, kw_only=True)
class Registration:
    """All that MLflow is told about a trained run.

    `sample` is how much of the data it was trained on, where that is a part of it only; such a version is never promoted.
    `token` is the fencing token of the claim that registers; `bundle` is the digest of what was trained: with the run's number it says whose a
    version is, also after a ledger was restored from a copy and gives a number twice; `cut` maps a dataset's name to its range (`rows`, where it is known,
    is their number); `history` holds `{"key", "value", "step", "timestamp_ms"}`.
    """

    model: str
    run: int
    token: int
    bundle: str
    release: str
    commit: str
    cut: Mapping[str, Mapping[str, Any]]
    cut_digest: str
    arrivals: Sequence[int]
    parameters: Mapping[str, object]
    metrics: Mapping[str, float]
    history: Sequence[Mapping[str, Any]]
    bundle_dir: Path
    composed_dir: Path
    started_at: datetime
    ended_at: datetime
    sample: str | None = None


@dataclass(frozen=True)
class Registered:
    version: int
    mlflow_run_id: str
    model_id: str


def tags(registration: Registration) -> Pairs:
    """On the MLflow run and on the version alike."""
    values = {
        RUN_TAG: registration.run,
        TOKEN_TAG: registration.token,
        BUNDLE_TAG: registration.bundle,
        "headrace.release": registration.release,
        "headrace.commit": registration.commit,
        "headrace.cut": json.dumps(registration.cut, sort_keys=True),
        "headrace.cut_digest": registration.cut_digest,
        "headrace.arrivals": _ranges(registration.arrivals),
        "mlflow.source.git.commit": registration.commit,
        "mlflow.user": "headrace",
    }
    values |= {SAMPLE_TAG: registration.sample} if registration.sample is not None else {}
    return pairs(values, MAX_TAG_CHARS)


def is_of(registration: Registration, noted: Iterable[Mapping[str, str]]) -> bool:
    """Whether what bears the run's number and these tags is of this run's training; what an older Headrace has made says no more than the number."""
    bundle = {tag["key"]: tag["value"] for tag in noted}.get(BUNDLE_TAG)
    return bundle is None or bundle == registration.bundle


def parameters(registration: Registration) -> Pairs:
    return pairs({_key(name): value for name, value in registration.parameters.items()}, MAX_PARAMETER_CHARS)


def batches(registration: Registration, model_id: str) -> Iterator[dict[str, list[Any]]]:
    """What `log-batch` takes, in as few calls as its limits allow. Logged twice, it is there once."""
    params, metrics = parameters(registration), _metrics(registration, model_id)
    while params or metrics:
        yield {"params": params[:MAX_PARAMETERS], "metrics": metrics[:_MAX_METRICS]}
        params, metrics = params[MAX_PARAMETERS:], metrics[_MAX_METRICS:]


def datasets(cut: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The cut as MLflow's dataset inputs; the digest is the first half of the range's SHA-256 (MLflow takes 36 characters)."""
    inputs = []
    for name, span in sorted(cut.items()):
        source = json.dumps(span, sort_keys=True)
        digest = hashlib.sha256(source.encode()).hexdigest()[:32]
        dataset = {"name": name, "digest": digest, "source_type": "headrace", "source": source}
        if span.get("rows") is not None:
            dataset["profile"] = json.dumps({"num_rows": span["rows"]})
        inputs.append({"dataset": dataset, "tags": [{"key": "mlflow.data.context", "value": "training"}]})
    return inputs


def pairs(values: Mapping[str, object], max_chars: int) -> Pairs:
    return [{"key": key, "value": str(value)[:max_chars]} for key, value in values.items()]


def milliseconds(moment: datetime) -> int:
    return int(moment.timestamp() * 1000)


def _metrics(registration: Registration, model_id: str) -> list[dict[str, Any]]:
    """The history as it was logged, then the final values: each at its own last step, so that MLflow shows it as the latest."""
    last: dict[str, int] = {}
    points: list[dict[str, Any]] = []
    for point in registration.history:
        key, step = _key(point["key"]), int(point["step"])
        last[key] = max(step, last.get(key, step))
        points.append({"key": key, "value": point["value"], "timestamp": int(point["timestamp_ms"]), "step": step})
    ended = max([milliseconds(registration.ended_at), *(point["timestamp"] for point in points)])
    for name, value in registration.metrics.items():
        key = _key(name)
        points.append({"key": key, "value": value, "timestamp": ended, "step": last.get(key, 0), "model_id": model_id})
    return points


def _key(name: str) -> str:
    """The name, if MLflow takes it; else its plain characters and a hash: no odd name of an author's may block a registration."""
    if _KEY.fullmatch(name) and len(name) <= 250 and name == name.strip():
        return name
    return re.sub(r"[^A-Za-z0-9_]", "_", name)[:200] + "_" + hashlib.sha256(name.encode()).hexdigest()[:8]


def _ranges(numbers: Sequence[int]) -> str:
    """`[3, 4, 5, 9]` as `3-5,9`: a run may cover thousands of arrivals."""
    steps = groupby(enumerate(sorted(set(numbers))), lambda pair: pair[1] - pair[0])
    spans = [[number for _, number in group] for _, group in steps]
    return ",".join(f"{span[0]}-{span[-1]}" if len(span) > 1 else str(span[0]) for span in spans)
