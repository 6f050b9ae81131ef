"""The ledger: the one truth about arrivals, releases, runs, versions, champions and what was told to whom.

What comes in: transitions, each a named function in the file of its noun that takes an open transaction. What goes out: rows, and a change
that every process can wait for (`Ledger.watch`). It never talks to Redis, MLflow or a source: a transaction holds no I/O but its own.
"""

from shared.ledger.session import Ledger, Transaction, repeats

__all__ = ["Ledger", "Transaction", "repeats"]
