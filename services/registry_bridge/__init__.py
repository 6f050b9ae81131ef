"""From a trained run to the people who run its model.

In: trained runs with their bundles (the ledger, the blob store). Out: an MLflow version, its verdict, the alias, signed webhooks.
Never: importing or unpickling a file of an author's, or deciding who is champion anywhere but in the ledger.
"""
