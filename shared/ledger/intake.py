"""Reports of many threads in one commit: those that come while one is being written are written together by the next (group commit)."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import structlog

from shared.errors import HeadraceError, Unavailable
from shared.ledger import arrivals
from shared.ledger.arrivals import Receipt
from shared.ledger.reports import Sent
from shared.ledger.session import Ledger, repeats

MOST = 100  # reports in one commit: the locks that it holds, and the time that the first of them waits for the last
log = structlog.get_logger()


_Answer = Receipt | Exception


@dataclass(eq=False)
class _Waiting:
    sent: Sent
    answer: _Answer | None = None


class Intake:
    """Takes reports for one process. Whoever comes while nobody writes does so at once, for all who wait; there is no thread of its own."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._waiting: deque[_Waiting] = deque()
        self._writing = False
        self._turn = threading.Condition()

    def take(self, sent: Sent) -> Receipt:
        """As `arrivals.receive`, and committed when it returns; raises what becomes of this report alone, or of the commit."""
        mine = _Waiting(sent)
        with self._turn:
            self._waiting.append(mine)
        while mine.answer is None:
            if batch := self._next(mine):
                self._write(batch)
        if isinstance(mine.answer, Exception):
            raise mine.answer
        return mine.answer

    def _next(self, mine: _Waiting) -> list[_Waiting]:
        """What this thread is to write, its turn having come; nothing when another has answered it meanwhile."""
        with self._turn:
            self._turn.wait_for(lambda: mine.answer is not None or not self._writing)
            if mine.answer is not None:
                return []
            self._writing = True
            return [self._waiting.popleft() for _ in range(min(MOST, len(self._waiting)))]

    def _write(self, batch: Sequence[_Waiting]) -> None:
        """Whatever becomes of this thread: each in the batch gets an answer, and the next has the turn."""
        answers: Sequence[_Answer] = [Unavailable("the report was not taken; send it again")] * len(batch)
        try:
            answers = self._answers([one.sent for one in batch])
        finally:
            with self._turn:
                for one, answer in zip(batch, answers, strict=True):
                    one.answer = answer
                self._writing = False
                self._turn.notify_all()

    def _answers(self, sent: Sequence[Sent]) -> Sequence[_Answer]:
        try:
            return self._commit(sent)
        except HeadraceError as error:
            return [error] * len(sent)
        except Exception as error:
            if len(sent) == 1:
                return [error]
            log.exception("reports.taken_singly", reports=len(sent))  # a defect that one has met is not the others'
            return [answer for one in sent for answer in self._answers([one])]

    @repeats
    def _commit(self, sent: Sequence[Sent]) -> Sequence[_Answer]:
        with self._ledger.write() as tx:
            return arrivals.receive_all(tx, sent)
