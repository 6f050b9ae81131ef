"""What repositories offer, asked once for all the models that share one."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass

from shared.errors import HeadraceError

Ask = Callable[[], Mapping[str, str]]


@dataclass(frozen=True)
class Answer:
    """`refs` as `Mirror.remote_refs` gives them, or why there are none; when it was asked for and when it came, in monotonic seconds."""

    asked_at: float
    came_at: float
    refs: Mapping[str, str] | None
    error: HeadraceError | None = None

    def read(self) -> Mapping[str, str]:
        """Raises what the question has raised."""
        if self.refs is None:
            assert self.error is not None
            raise self.error.with_traceback(None)
        return self.refs


class Refs:
    """The newest answer of each repository. For any number of threads: who comes while one asks waits, and shares its answer."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._asking: dict[Hashable, threading.Lock] = {}
        self._known: dict[Hashable, Answer] = {}

    def look(self, repository: Hashable, ask: Ask, since: float) -> Answer:
        """The answer, if it was asked for after `since`; else a new one. A failure is an answer too: a server that is away is not asked by
        one model after the other, each with the patience of all."""
        with self._lock:
            asking = self._asking.setdefault(repository, threading.Lock())
        with asking:
            known = self._known.get(repository)
            if known is None or known.asked_at <= since:
                known = self._known[repository] = _asked(ask)
            return known


def _asked(ask: Ask) -> Answer:
    asked_at = time.monotonic()
    try:
        refs = ask()
    except HeadraceError as error:
        return Answer(asked_at, time.monotonic(), None, error)
    return Answer(asked_at, time.monotonic(), refs)
