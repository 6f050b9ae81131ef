"""The services: each a package that takes from the ledger or from outside, writes to the ledger, and knows nothing of the others."""
