"""The invariants I1 to I8 and I10 as far as the ledger alone tells, for `stack.audit`: it reads page by page, and writes nothing.

Each check takes the ledger and a sheet to write on. It judges within one transaction what belongs together, and leaves alone what has only just begun.
"""

from collections.abc import Callable

from shared.audit import Sheet
from shared.ledger.audit import arrivals, news, runs, standstill, versions
from shared.ledger.audit.integrity import integrity
from shared.ledger.session import Ledger

CHECKS: tuple[Callable[[Ledger, Sheet], None], ...] = (
    integrity,
    arrivals.cursors,
    arrivals.reports,
    runs.places,
    runs.claims,
    runs.fates,
    versions.states,
    versions.promotions,
    news.numbers,
    news.tidings,
    standstill.standstill,
)
