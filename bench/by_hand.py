"""The same work by one script: read, train, evaluate, log to MLflow, register, alias, post a signed webhook. Runs in an environment of its own.

python -I by_hand.py JOB.json once     does it, and ends
python -I by_hand.py JOB.json warm     imports everything, then does it for each line on stdin

Each time a line on stdout: [[step, wall time of its end], …]; the first is the start. The end of stdin ends it, whatever it does.
"""

import time

BEGAN = time.time()

import base64  # noqa: E402
import hashlib  # noqa: E402
import hmac  # noqa: E402
import json  # noqa: E402
import os  # noqa: E402
import sqlite3  # noqa: E402
import sys  # noqa: E402
import threading  # noqa: E402
import urllib.request  # noqa: E402
import uuid  # noqa: E402
from collections.abc import Callable  # noqa: E402
from contextlib import closing  # noqa: E402
from pathlib import Path  # noqa: E402
from queue import SimpleQueue  # noqa: E402
from typing import Any, TextIO  # noqa: E402

Job = dict[str, Any]
Marks = list[tuple[str, float]]

BOUNDARY = "SELECT id FROM flights ORDER BY id DESC LIMIT 1 OFFSET :holdout"
TRAIN = "SELECT * FROM flights WHERE id <= :boundary ORDER BY id"
HELD = "SELECT * FROM flights WHERE id > :boundary ORDER BY id"


def main(path: str, manner: str) -> None:
    job = json.loads(Path(path).read_text())
    told, sys.stdout = sys.stdout, sys.stderr  # MLflow talks there too
    work = make_work(job)
    pokes = listen()
    imported = [("start", BEGAN), ("import", time.time())]
    if manner == "once":
        tell(told, work(imported))
        return
    tell(told, imported)
    while True:
        pokes.get()
        tell(told, work([("start", time.time())]))


def listen() -> SimpleQueue[str]:
    """Lines of stdin. MLflow's client goes on asking for minutes when its server is gone; a benchmark that was killed must not leave it."""
    pokes: SimpleQueue[str] = SimpleQueue()

    def read() -> None:
        for line in sys.stdin:
            pokes.put(line)
        os._exit(0)

    threading.Thread(target=read, daemon=True).start()
    return pokes


def tell(told: TextIO, marks: Marks) -> None:
    print(json.dumps(marks), file=told, flush=True)


def make_work(job: Job) -> Callable[[Marks], Marks]:
    sys.path.insert(0, job["source"])
    import late
    import mlflow
    import mlflow.sklearn
    import pandas
    import sklearn

    # Given, since to infer them would take MLflow seconds.
    requirements = [f"pandas=={pandas.__version__}", f"scikit-learn=={sklearn.__version__}"]

    def work(marks: Marks) -> Marks:
        def mark(name: str) -> None:
            marks.append((name, time.time()))

        with closing(sqlite3.connect(job["database"])) as connection:
            boundary = {"boundary": connection.execute(BOUNDARY, {"holdout": job["holdout"]}).fetchone()[0]}
            frame = late.read(connection, TRAIN, boundary)
            model = late.fit(frame)
            mark("train")
            metrics = late.judge(model, late.read(connection, HELD, boundary))
            mark("evaluate")
        version = log_and_register(model, metrics, frame)
        mark("registered")
        mlflow.MlflowClient().set_registered_model_alias(job["name"], "champion", str(version))
        mark("alias")
        post(job, version, metrics)
        mark("posted")
        return marks

    def log_and_register(model: Any, metrics: dict[str, float], frame: Any) -> int:
        mlflow.set_tracking_uri(job["mlflow"])
        mlflow.set_experiment(job["name"])
        example = frame[late.NUMBERS]
        with mlflow.start_run():
            mlflow.log_params({"rows": len(frame), "columns": len(late.NUMBERS)})
            mlflow.log_metrics(metrics)
            logged = mlflow.sklearn.log_model(
                model,
                name="model",
                signature=mlflow.models.infer_signature(example, model.predict(example.head())),
                pip_requirements=requirements,
                serialization_format="cloudpickle",
            )
        source = f"models:/{logged.model_id}"
        return int(mlflow.register_model(source, job["name"], await_registration_for=0).version)

    return work


def post(job: Job, version: int, metrics: dict[str, float]) -> None:
    """A CloudEvent with a Standard Webhooks signature."""
    data = {"model": job["name"], "version": version, "metrics": metrics}
    moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    event: dict[str, Any] = {
        "specversion": "1.0",
        "id": str(uuid.uuid4()),
        "source": "by-hand",
        "type": "version.promoted",
    }
    event |= {"subject": job["name"], "time": moment, "sequence": str(version), "data": data}
    body, delivery, stamp = json.dumps(event).encode(), str(uuid.uuid4()), str(int(time.time()))
    key = base64.b64decode(job["secret"].removeprefix("whsec_"))
    signature = hmac.new(key, f"{delivery}.{stamp}.".encode() + body, hashlib.sha256).digest()
    request = urllib.request.Request(job["hook"], body, method="POST")
    request.add_header("Content-Type", "application/cloudevents+json")
    request.add_header("webhook-id", delivery)
    request.add_header("webhook-timestamp", stamp)
    request.add_header("webhook-signature", f"v1,{base64.b64encode(signature).decode()}")
    with urllib.request.urlopen(request, timeout=10):
        pass


if __name__ == "__main__":
    main(*sys.argv[1:])
