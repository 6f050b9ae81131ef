"""How an attempt ends other than well."""

from __future__ import annotations

from shared.errors import HeadraceError, Permanent, Transient
from shared.ledger.attempts import Failure

_MEND = "mend the code and tag a new release; `headrace logs` has the whole output"
ADVICE = {
    "author_error": _MEND,
    "invalid_metric": "return finite numbers under plain names from evaluate(), and log no others",
    "bad_output": "return the model from train(), or save plain files into job.output",
    "bad_exit": _MEND,
    "out_of_memory": "train on fewer rows or smaller batches, or choose a compute_class with more memory",
    "killed": "look into the log of the machine for what killed it",
    "time_limit": "raise time_limit in headrace.toml or make the training shorter",
    "no_output": "raise limits.silence of the model in headrace.toml, or print or call job.progress more often",
    "configuration": "set what is missing where the worker runs, and `headrace retry`",
    "repository": "see that the worker reaches the repository; `headrace why` has the watcher's last look at it",
    "environment": "mend the requirements and tag a new release",
    "infrastructure": "look at the worker's own log, its disk and its memory",
    "refused": _MEND,
}
"""What a person can do, by the kind of a failure, where whoever met it knew nothing better."""


class AttemptFailed(HeadraceError):
    """The attempt has failed for a reason that a person can read."""

    def __init__(self, kind: str, message: str, advice: str = "", *, transient: bool = False) -> None:
        super().__init__(message)
        self.failure = Failure(kind, message, advice or ADVICE.get(kind, ""), transient)


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
