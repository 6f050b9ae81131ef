"""How an attempt ends other than well."""

from __future__ import annotations

from shared.errors import HeadraceError, Permanent, Transient
from shared.ledger.attempts import Failure


class AttemptFailed(HeadraceError):
    """The attempt has failed for a reason that a person can read."""

    def __init__(self, kind: str, message: str, advice: str = "", *, transient: bool = False) -> None:
        super().__init__(message)
        self.failure = Failure(kind, message, advice, transient)


class Stopped(HeadraceError):
    """The attempt must stop: its claim is lost, a person cancelled it, or the worker leaves."""


class Lost(Stopped):
    """A newer claim owns the run: write nothing more."""


class Cancelled(Stopped):
    """A person wants the run to stop."""


class Leaving(Stopped):
    """The worker shuts down: the run is handed back."""


def classify(error: Exception) -> Failure:
    """The failure that an exception at the edge of an attempt stands for; what we do not know is our own fault, so it is tried again."""
    match error:
        case AttemptFailed():
            return error.failure
        case Transient():
            return Failure("infrastructure", error.message, transient=True)
        case Permanent():
            return Failure("refused", error.message)
        case OSError():
            return Failure(
                "infrastructure",
                f"{error.strerror or error}: {error.filename or ''}".rstrip(": "),
                "look at the worker's disk and memory",
                transient=True,
            )
        case _:
            return Failure(
                "infrastructure",
                f"{type(error).__name__}: {error}",
                "the worker's own log has the traceback",
                transient=True,
            )
