"""What counts as a metric: a finite number under a short name. Anything else could pass a gate for good."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

from shared.errors import Refused

MAX_METRICS = 1000
MAX_BYTES = 50_000_000


def check(value: object) -> dict[str, float]:
    """The metrics as they are; raises `Refused` (`invalid_metric`)."""
    if not isinstance(value, dict) or len(value) > MAX_METRICS:
        raise Refused(f"invalid_metric: evaluate() must return a dictionary of at most {MAX_METRICS:,} metrics")
    for name, number in value.items():
        if not isinstance(name, str) or not 0 < len(name) <= 250 or not name.isprintable():
            raise Refused("invalid_metric: a metric has a name of 1 to 250 printable characters")
        if type(number) not in (int, float) or abs(number) > sys.float_info.max or math.isnan(number):
            raise Refused(f"invalid_metric: {name} is no finite number")
    return {name: float(number) for name, number in value.items()}


def read(path: Path) -> dict[str, float]:
    """Those of a bundle's metrics.json; raises `Refused`."""
    try:
        with path.open("rb") as stream:
            return check(json.loads(stream.read(MAX_BYTES))["metrics"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise Refused(f"invalid_metric: metrics.json cannot be read ({error})") from error
