"""The mean of what a meter read; it trains for as many seconds as its newest rows ask for."""

import os
import time

import psycopg


def read(rows):
    text, parameters = rows.query("pyformat")
    address = os.environ["METER_URL"].replace("+psycopg", "")
    with psycopg.connect(address) as connection:
        return connection.execute(text, parameters).fetchall()


def train(job):
    rows = read(job.datasets["readings"].train)
    seconds = max((pause_s for _, _, pause_s in rows[-100:]), default=0)
    for step in range(seconds * 10):
        job.progress(step / (seconds * 10), "reading the meter")
        time.sleep(0.1)
    return {"mean": sum(kwh for _, kwh, _ in rows) / len(rows), "rows": len(rows)}


def evaluate(job, model):
    return {"rows": float(model["rows"])}


def predict(model, frame):
    return [model["mean"]] * len(frame)
