"""The one tree of errors.

HeadraceError
├── Transient            trying again later may help: a server that is away, a connection that broke
│   └── Unavailable      a server that we need did not answer
│       └── Undone       the database took a transaction back, or lost it before its commit: the same again may succeed at once
└── Permanent            trying again cannot help; the message says what to do instead
    ├── ConfigurationError   headrace.toml or a setting
    ├── Refused              a request, a declaration or a file that breaks a rule
    ├── NotFound             no such model, run, version, arrival
    │   └── Gone                 it was there, and the janitor has taken it away
    ├── Conflict             the thing is in a state that does not allow this
    └── Fenced               a newer claim owns the run: stop, and write nothing
"""

from __future__ import annotations


class HeadraceError(Exception):
    """An error whose message tells the person what is wrong and what to do."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class Transient(HeadraceError):
    """Trying again later may help."""


class Unavailable(Transient):
    """A server that we need did not answer."""


class Undone(Unavailable):
    """A transaction of which nothing was written, and which may be tried again at once."""


class Permanent(HeadraceError):
    """Trying again cannot help."""


class ConfigurationError(Permanent):
    """The operator's file or a setting is wrong; `line` is 1-based where it is known."""

    def __init__(self, message: str, *, file: str | None = None, line: int | None = None) -> None:
        where = f"{file}:{line}: " if file and line else f"{file}: " if file else ""
        super().__init__(where + message)
        self.file = file
        self.line = line


class Refused(Permanent):
    """A request, a declaration or a file that breaks a rule."""


class NotFound(Permanent):
    """No such thing."""


class Gone(NotFound):
    """It was there, and the janitor has taken it away."""


class Conflict(Permanent):
    """The thing is in a state that does not allow this."""


class Fenced(Permanent):
    """A newer claim owns the run."""
