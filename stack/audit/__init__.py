"""`python -m stack audit`: ledger, MLflow, blob store and Redis of a live system held against the invariants I1 to I10; it reads only.

`audit(settings)` is the same for whoever is in a process already. Exit code: 0 clean, 1 violations, 2 something could not be looked at.
"""

from stack.audit.command import main
from stack.audit.look import audit
from stack.audit.report import Report

__all__ = ["Report", "audit", "main"]
