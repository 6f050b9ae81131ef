"""The watcher: sees data grow and releases appear, and rings for the runs that become due.

What comes in: tables, git repositories, nudges in the ledger. What goes out: arrivals with their cursor, releases, and rung bells.
It never trains, never reads more of a table than its new rows, and never writes to a source.
"""
