"""The trainer: claims runs of its compute class and trains each in its own environment.

In: the doorbell `headrace.train` (a run's id) or a look into the ledger. Out: a bundle in the blob store, a log, scores, and the run's new state.
It never imports a model's code, never talks to MLflow, and writes nothing once its claim is no longer the newest.
"""
