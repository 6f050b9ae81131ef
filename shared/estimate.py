"""How long a run that trains will still take (pure)."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

ENOUGH = 0.05
"""Before so much is done, a fraction says nothing: what comes first (an environment, the first epoch) is not like the rest."""


def left_s(elapsed_s: float, progress: float | None, past_s: Sequence[float]) -> float | None:
    """By its own progress where there is some, else by how long the model's last runs took; None where neither is known.

    One that goes on from a checkpoint is to be asked without its progress, which was not made in the time that has passed.
    """
    if progress is not None and progress >= ENOUGH:
        return elapsed_s * (1 - progress) / progress
    return max(0.0, median(past_s) - elapsed_s) if past_s else None
