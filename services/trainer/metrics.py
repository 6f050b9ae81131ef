"""What counts as a metric: a finite number under a short name. Anything else could pass a gate for good."""

from __future__ import annotations

import json
from pathlib import Path

from headrace.outcome import check_metrics

from shared.errors import Refused

MAX_BYTES = 50_000_000


def check(value: object) -> dict[str, float]:
    """The metrics as they are; raises `Refused` (`invalid_metric`)."""
    try:
        return check_metrics(value)
    except ValueError as error:
        raise Refused(str(error)) from error


def read(path: Path) -> dict[str, float]:
    """Those of a bundle's metrics.json; raises `Refused`."""
    try:
        with path.open("rb") as stream:
            return check(json.loads(stream.read(MAX_BYTES))["metrics"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise Refused(f"invalid_metric: metrics.json cannot be read ({error})") from error
