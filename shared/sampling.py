"""A sample: how much of a cut a run trains on that is only to show what a model will look like; its version is never promoted (pure)."""

from __future__ import annotations

import math
import re
from decimal import Decimal
from typing import Annotated

from pydantic import AfterValidator, Field

from shared.values import format_share, parse_share

PATTERN = r"[0-9]{1,3}(\.[0-9]{1,3})?%|[1-9][0-9]{0,9}"
OF_UNKNOWN = 1_000
"""So many rows are a share of data whose size nobody knows."""


def check(text: str) -> str:
    """`"1%"` (above 0, at most 50%) or `"20000"`, a number of rows, in its shortest spelling. Raises `ValueError`."""
    if not re.fullmatch(PATTERN, text):
        raise ValueError('a sample is a share of the rows ("1%") or a number of them ("20000")')
    return format_share(parse_share(text)) if text.endswith("%") else text


Sample = Annotated[
    str,
    AfterValidator(check),
    Field(pattern=f"^({PATTERN})$", title="share of the rows or number of them", examples=["1%", "20000"]),
]


def rows(sample: str, of: int | None) -> int:
    """How many of so many rows (None: nobody knows) it is: at least one, and not more than there are."""
    share: Decimal | None = parse_share(sample) if sample.endswith("%") else None
    if of is None:
        return OF_UNKNOWN if share is not None else int(sample)
    return max(1, min(of, math.ceil(of * share) if share is not None else int(sample)))


def describe(sample: str) -> str:
    """`a sample of 1% of the rows`, `a sample of 20,000 rows`."""
    return f"a sample of {sample} of the rows" if sample.endswith("%") else f"a sample of {int(sample):,} rows"
