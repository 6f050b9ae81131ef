"""Will a flight arrive more than a quarter of an hour late? Judged from what is known when it leaves the gate."""

from __future__ import annotations

import pandas
from sklearn.compose import make_column_transformer
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import brier_score_loss, log_loss, roc_auc_score, roc_curve
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OrdinalEncoder

LATE_MINUTES = 15
CATEGORIES = ["carrier", "origin", "dest"]
NUMBERS = ["dep_delay", "sched_dep_time", "distance"]


def train(job):
    """Fit on every flight up to the holdout; flights without an arrival (cancelled, diverted) are left out."""
    frame = read(job.datasets["flights"].train)
    job.log_parameter("flights", len(frame))
    encoder = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1)
    classifier = HistGradientBoostingClassifier(max_iter=80, learning_rate=0.1, max_leaf_nodes=31, random_state=0)
    model = make_pipeline(make_column_transformer((encoder, CATEGORIES), remainder="passthrough"), classifier)
    job.progress(0.2, f"fitting {len(frame):,} flights")
    model.fit(frame[CATEGORIES + NUMBERS], is_late(frame))
    print(f"fitted on {len(frame):,} flights")
    return model


def evaluate(job, model):
    """The same rows for candidate and champion; returns the metrics that the gates look at."""
    frame = read(job.datasets["flights"].holdout)
    truth, chance = is_late(frame), predict(model, frame)
    job.log_artifact("roc.svg", draw_roc(*roc_curve(truth, chance)[:2]))
    return {
        "auc": roc_auc_score(truth, chance),
        "brier": brier_score_loss(truth, chance),
        "log_loss": log_loss(truth, chance),
        "late_share": float(truth.mean()),
    }


def predict(model, frame):
    """The probability of a late arrival, for each row."""
    return model.predict_proba(frame[CATEGORIES + NUMBERS])[:, 1]


def read(rows):
    """The flights of a row range that have arrived."""
    with rows.connect() as connection:
        frame = pandas.read_sql(rows.sql, connection, params=rows.params)
    return frame.dropna(subset=["arr_delay"])


def is_late(frame):
    return frame["arr_delay"] > LATE_MINUTES


def draw_roc(false_positives, true_positives):
    """The ROC curve as an SVG of 320 by 320, thinned to some 100 points."""
    step = max(1, len(false_positives) // 100)
    points = " ".join(
        f"{20 + 280 * x:.1f},{300 - 280 * y:.1f}" for x, y in zip(false_positives[::step], true_positives[::step], strict=True)
    )
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 320 320" font-family="sans-serif" font-size="12">'
        '<rect x="20" y="20" width="280" height="280" fill="white" stroke="#888"/>'
        '<line x1="20" y1="300" x2="300" y2="20" stroke="#bbb" stroke-dasharray="4"/>'
        f'<polyline points="{points} 300,20" fill="none" stroke="#0a6" stroke-width="2"/>'
        '<text x="110" y="316">false positives</text></svg>'
    ).encode()
