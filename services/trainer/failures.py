"""How an attempt ends other than well."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from headrace.outcome import ADVICE, RunFailed

from shared.errors import HeadraceError, Permanent, Transient
from shared.ledger.attempts import Failure


class AttemptFailed(HeadraceError):
    """The attempt has failed for a reason that a person can read."""

    def __init__(self, kind: str, message: str, advice: str = "", *, transient: bool = False) -> None:
        super().__init__(message)
        self.failure = Failure(kind, message, advice or ADVICE.get(kind, ""), transient)


@contextmanager
def explained() -> Iterator[None]:
    """What the client package says of a failure, as that of an attempt."""
    try:
        yield
    except RunFailed as error:
        raise AttemptFailed(error.kind, error.message, error.advice, transient=error.transient) from error


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
            return Failure("infrastructure", error.message, ADVICE["infrastructure"], transient=True)
        case Permanent():
            return Failure("refused", error.message, ADVICE["refused"])
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
