"""What one repetition gave, and the steps that it is split into."""

from __future__ import annotations

from dataclasses import dataclass

STEPS = {
    "noticed": "commit, arrival noticed",
    "due": "due",
    "claimed": "rung, claimed",
    "prepare": "checkout and environment",
    "start": "process start (and end)",
    "import": "imports",
    "train": "read and train",
    "save": "save, load back",
    "evaluate": "evaluate",
    "champion": "wait for the champion's score",
    "bundle": "bundle",
    "finish": "rest of the attempt",
    "registered": "log and register in MLflow",
    "judged": "judged",
    "alias": "alias",
    "delivered": "webhook",
}


@dataclass(frozen=True)
class Measured:
    """Seconds from before the commit to the receipt of the webhook, and of the steps between, which add up to it.

    `beside` are seconds of what went on at the same time.
    """

    total_s: float
    steps: dict[str, float]
    beside: dict[str, float]
