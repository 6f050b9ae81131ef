"""The client of Headrace: for those who write models and for those who run them.

In: the address of a stack and a token, a signed webhook, a models.toml. Out: answers, notices, verified model files.
Never: a dependency beyond the standard library (the command line's `rich` apart), or anything done at import.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from headrace.connection import Connection, Problem, connect
    from headrace.training import TrainingJob

__version__ = "0.1.0"
__all__ = ["Connection", "Problem", "TrainingJob", "connect"]

_HOMES = {
    "Connection": "headrace.connection",
    "Problem": "headrace.connection",
    "connect": "headrace.connection",
    "TrainingJob": "headrace.training",
}


def __getattr__(name: str) -> object:
    # Found when first asked for: `headrace --help` and a webhook's check need no HTTP client.
    if name not in _HOMES:
        raise AttributeError(f"module 'headrace' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
