"""A model of clicks that knows no more than how far they were reported."""


def train(job):
    return {"upto": float(job.datasets["clicks"].train.upto or 0)}


def evaluate(job, model):
    return dict(model)


def predict(model, frame):
    return [model["upto"]] * len(frame)
