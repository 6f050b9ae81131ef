"""A small model of ten numeric columns: will a flight arrive more than a quarter of an hour late? All three contestants use these functions."""

from __future__ import annotations

import pandas
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss, log_loss, roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

LATE_MINUTES = 15
NUMBERS = [
    "month", "day", "dep_time", "sched_dep_time", "dep_delay", "sched_arr_time", "flight", "distance", "hour", "minute",
]  # fmt: skip


def train(job):
    rows = job.datasets["flights"].train
    with rows.connect() as connection:
        return fit(read(connection, rows.sql, rows.params))


def evaluate(job, model):
    rows = job.datasets["flights"].holdout
    with rows.connect() as connection:
        return judge(model, read(connection, rows.sql, rows.params))


def predict(model, frame):
    """The probability of a late arrival, for each row."""
    return model.predict_proba(frame[NUMBERS])[:, 1]


def read(connection, sql, params):
    """The flights that have arrived."""
    return pandas.read_sql(sql, connection, params=params).dropna(subset=["arr_delay", *NUMBERS])


def fit(frame):
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=200))
    return model.fit(frame[NUMBERS], frame["arr_delay"] > LATE_MINUTES)


def judge(model, frame):
    truth, chance = frame["arr_delay"] > LATE_MINUTES, predict(model, frame)
    return {
        "auc": roc_auc_score(truth, chance),
        "brier": brier_score_loss(truth, chance),
        "log_loss": log_loss(truth, chance),
    }
