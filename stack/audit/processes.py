"""No process of a dead attempt lives on (I9): found on this machine by the variables that a child of ours carries."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

from shared.audit import Sheet
from shared.ledger import Ledger
from shared.ledger.audit import mirror

MARK = b"HEADRACE_RUN_ID="
GRACE = timedelta(seconds=30)
"""Between the end that the ledger knows and that of the last process: a warden kills within a second or two."""
_SCRATCH = re.compile(rb"/scratch/(?:score-\d+-for-)?(\d{1,18})-(\d{1,9})(?:/|$)")


def audit_processes(ledger: Ledger, state: Path, sheet: Sheet, proc: Path = Path("/proc")) -> None:
    """Children of workers with this state directory only: another stack on the machine numbers its runs alike."""
    found = list(_children(proc, bytes(state)))
    sheet.looked("I9", "processes of attempts", len(found))
    with ledger.read() as tx:
        ended, now = mirror.attempts_of(tx, {run for _, run, _ in found}), tx.now
    for pid, run, token in found:
        if (run, token) not in ended:
            why = "which the ledger does not know"
        elif (end := ended[run, token]) is not None and end < now - GRACE:
            why = f"which ended at {end:%Y-%m-%d %H:%M:%S}Z"
        else:
            continue
        what = f"process {pid} belongs to attempt {token} of run {run}, {why}"
        do = "`kill -9` it; is its trainer stopped (state T)? Else its log says why the warden did not see to it"
        sheet.violated("I9", "process", what, do, pid=pid, run=run, attempt=token)


def _children(proc: Path, state: bytes) -> Iterator[tuple[int, int, int]]:
    """Pid, run and token; what cannot be read belongs to somebody else."""
    for path in proc.glob("[0-9]*/environ"):
        try:
            variables = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if any(one.startswith(MARK) for one in variables):
            places = (found for one in variables if state in one and (found := _SCRATCH.search(one)))
            if (place := next(places, None)) is not None:
                yield int(path.parent.name), int(place[1]), int(place[2])
