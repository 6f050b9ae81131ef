"""Will a flight arrive more than a quarter of an hour late? Judged from what is known before it departs."""

import contextlib

import pandas
from sklearn.compose import make_column_transformer
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import brier_score_loss, log_loss, roc_auc_score, roc_curve
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OrdinalEncoder

from flight_delays.plots import draw_roc

LATE_MINUTES = 15
CATEGORIES = ["carrier", "origin", "dest"]
# No month, no day: trees know nothing of a season that they have not seen yet, and the flights that a model is judged on are always newer.
NUMBERS = ["hour", "minute", "distance"]


def train(job):
    """Fit on every flight up to the holdout; flights without an arrival (cancelled, diverted) are left out."""
    job.progress(0.0, "reading flights")
    frame = read(job.datasets["flights"].train)
    features, late = frame[CATEGORIES + NUMBERS], is_late(frame)
    job.log_parameter("flights", len(frame))
    job.log_example(features)
    job.progress(0.3, f"fitting {len(frame):,} flights")
    encode = make_column_transformer(
        (OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1), CATEGORIES), remainder="passthrough"
    )
    grow = HistGradientBoostingClassifier(
        max_iter=job.parameters["iterations"], learning_rate=job.parameters["learning_rate"], random_state=0
    )
    model = make_pipeline(encode, grow)
    model.fit(features, late)
    job.progress(0.9, "looking back at the fit")
    log_fit(job, model, features[:5000], late[:5000])
    print(f"fitted on {len(frame):,} flights, {late.mean():.1%} of them late")
    return model


def evaluate(job, model):
    """The same rows for candidate and champion; the gates look at what is returned."""
    frame = read(job.datasets["flights"].holdout)
    late, chance = is_late(frame), predict(model, frame)
    job.log_artifact("roc.svg", draw_roc(*roc_curve(late, chance)[:2]))
    return {
        "auc": roc_auc_score(late, chance),
        "brier": brier_score_loss(late, chance),
        "log_loss": log_loss(late, chance),
        "late_share": late.mean(),
    }


def predict(model, frame):
    """The probability of a late arrival, for each row."""
    return model.predict_proba(frame[CATEGORIES + NUMBERS])[:, 1]


def read(rows):
    with contextlib.closing(rows.connect()) as connection:
        frame = pandas.read_sql(rows.sql, connection, params=rows.params)
    return frame.dropna(subset=["arr_delay"])


def is_late(frame):
    return frame["arr_delay"] > LATE_MINUTES


def log_fit(job, model, features, late):
    """How the loss fell, tree by tree, on some of the flights that it was fitted to."""
    encode, grow = model[0], model[-1]
    for step, chances in enumerate(grow.staged_predict_proba(encode.transform(features)), start=1):
        if step % 10 == 0:
            job.log_metric("train_log_loss", log_loss(late, chances[:, 1]), step=step)
