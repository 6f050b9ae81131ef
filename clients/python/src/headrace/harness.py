"""The script that runs inside a model's environment: train or evaluate, and leave files. Standard library only, Python 3.9 and later.

Started by path:  python -I harness.py JOB.json   (stdin /dev/null, stdout and stderr are the run's log)
or forked by      python -I harness.py --parent …     (harness_parent.py), which has imported what an earlier job did

JOB.json
    action          "train" or "evaluate"
    run, model      names, for the author's eyes
    source_roots    directories that the author's packages are imported from, those that exist
    train, evaluate, predict, load      entry points "module:function", or null
    command, evaluate_command           a program and its arguments in the place of `train`, of `evaluate`, or null: `harness_command.py`
    checkout, export                    for these: the repository's files; whether they find rows as CSV files
    loader          path of loader.py
    output          where the bundle is left: model/, metrics.json, parameters.json, plots/, signature.json, input_example.json
    scratch         for events.jsonl, result.json, and work/ for the author
    model_dir       evaluate: the saved model
    parameters      handed to the author as job.parameters
    resume          a checkpoint to go on from, or null (its form: harness_checkpoint.py)
    datasets        name → {"kind": "sql", "table", "cursor", "url_variable", "url", "train": ROWS|null, "holdout": ROWS|null}
                    or {"kind": "rest" | "stream", "train", "holdout"}; ROWS: table, cursor, above, upto, newest, time_column, since, rows

scratch/events.jsonl, a line each, as it happens
    {"event": "phase", "name": "import"|"train"|"save"|"load"|"evaluate", "t": monotonic seconds}
    {"event": "metric", "key", "value", "step"}     {"event": "progress", "fraction": 0 to 1, "note"}
    {"event": "listens"}    from here on the code is told to stop, and comes to an end by itself

scratch/result.json, at the end, whole or not at all
    {"ok": true, "metrics": {…}|null, "seconds": {phase: s}, "imported": [modules, not the author's, that were not there]|null}   exit code 0
    {"ok": false, "kind": "author_error"|"invalid_metric"|"bad_output"|"disk_limit"|"out_of_memory"|"infrastructure"|"stopped", "message", "traceback"}            exit code 1
    (of a command the traceback is the end of its output)

A trained model is saved, loaded back, and it is the loaded one that is evaluated: what is judged is what ships.
"""

from __future__ import annotations

import copy
import errno
import importlib.util
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_FRAMES = 8
_LIBRARIES_OWN = ("KMP_",)  # variables that scikit-learn sets when it is imported
_DISK = {
    errno.EFBIG: "disk_limit",
    errno.ENOSPC: "infrastructure",
}  # the first is the model's own bound, the second the worker's disk


class Harness:
    """One job, from its file to its result."""

    def __init__(self, job: dict[str, Any], known: Iterable[str] = ()) -> None:
        """`known`: modules that were there before."""
        here = Path(__file__).parent
        self._job = job
        self._loader = load("headrace_loader", Path(job["loader"]))
        self._jobs = load("headrace_harness_job", here / "harness_job.py")
        self._saving = load("headrace_harness_save", here / "harness_save.py")
        self._examples = load("headrace_harness_example", here / "harness_example.py")
        data = load("headrace_harness_data", here / "harness_data.py")
        datasets = {name: data.Dataset(name, described) for name, described in job["datasets"].items()}
        self._checkpoints = load("headrace_harness_checkpoint", here / "harness_checkpoint.py")
        self._author = self._jobs.TrainingJob(job, datasets, self._checkpoints)
        self._commands: Any = None
        if job.get("command") or job.get("evaluate_command"):  # what it needs takes time to import
            needs = [
                load(f"headrace_harness_{name}", here / f"harness_{name}.py")
                for name in ("export", "mlflow", "collect", "command")
            ]
            self._commands = needs[-1].Commands(job, self._author, self._jobs.check_metric, *needs[:-1])
        self._seconds: dict[str, float] = {}
        self._known, self._environ = frozenset(known), dict(os.environ)
        self._installed = tuple(os.path.join(entry, "") for entry in sys.path)  # before the author's own

    def run(self) -> dict[str, Any]:
        """The result. Never raises for what the author's code does."""
        try:
            metrics = self._train() if self._job["action"] == "train" else self._evaluate(self._job["model_dir"])
        except self._jobs.InvalidMetric as error:
            return _failed("invalid_metric", str(error), error)
        except self._saving.CannotSave as error:
            return _failed("bad_output", str(error), error.__cause__)
        except self._checkpoints.Stopped as stopped:
            return _failed("stopped", str(stopped), None)
        except SystemExit as error:
            return _failed(
                "author_error", f"the code called sys.exit({error.code!r}); return from the function instead", error
            )
        except MemoryError as error:
            return _failed("out_of_memory", _describe(error), error)
        except OSError as error:
            return _failed(_DISK.get(error.errno or 0, "author_error"), _describe(error), error)
        except Exception as error:  # noqa: BLE001 - the edge: whatever the author's code raises becomes the result
            if self._commands is not None and isinstance(error, self._commands.errors):
                return {**_failed(error.kind, str(error), error.__cause__), "traceback": error.tail}
            graphics = type(error).__name__ == "OutOfMemoryError"  # torch's, of a GPU
            return _failed("out_of_memory" if graphics else "author_error", _describe(error), error)
        return {"ok": True, "metrics": metrics, "seconds": self._seconds, "imported": self._imported()}

    def _imported(self) -> list[str] | None:
        """What came from the environment or the standard library, in the order in which it was asked for; None where variables were set meanwhile,
        which libraries may have gone by when they were imported."""
        changed = {name for name, value in os.environ.items() if self._environ.get(name) != value}
        if any(not name.startswith(_LIBRARIES_OWN) for name in changed | (self._environ.keys() - os.environ.keys())):
            return None
        found = []
        for name, module in list(sys.modules.items()):
            origin = getattr(getattr(module, "__spec__", None), "origin", None)
            if name not in self._known and isinstance(origin, str) and origin.startswith(self._installed):
                found.append(name)
        return [name for name in found if not name.startswith("headrace_")]

    def _train(self) -> dict[str, float] | None:
        if self._job.get("command"):
            return self._train_by_command()
        train = self._import("train")
        with self._phase("train"):
            model = train(self._author)
        with self._phase("save"):
            self._saving.save(model, self._author.output, self._job["predict"], self._job.get("load"))
            del model
            loaded = self._load_back()
            example = self._examples.Example.of(self._author.example)
            if example is not None:
                self._write_example(loaded, example)
        return self._finish(self._judge_watched(loaded))

    def _train_by_command(self) -> dict[str, float] | None:
        with self._phase("train"):
            described, reported = self._commands.train()
            reported = None if reported is None else self._jobs.check_metrics(reported)
        with self._phase("save"):
            shipped_alone = described["format"] == "mlflow"  # loaded as a consumer does it: without the repository
            entries = (None, None) if shipped_alone else (self._job["predict"], self._job["load"])
            self._saving.describe(self._author.output, described, *entries)
            if not shipped_alone:
                self._import(None)
            loaded = self._load_back()
        self._import("evaluate")
        if self._job["evaluate"] is None and self._job["evaluate_command"] is None:
            return self._finish(reported)
        for name, value in (reported or {}).items():
            self._author.log_metric(name, value)
        return self._finish(self._judge(loaded) if shipped_alone else self._judge_watched(loaded))

    def _finish(self, metrics: dict[str, float] | None) -> dict[str, float] | None:
        self._author.write_logged(metrics or {})
        return metrics

    def _load_back(self) -> Any:
        try:
            return self._loader.load(self._author.output)
        except MemoryError:
            raise
        except Exception as error:
            raise self._saving.cannot_load(self._author.output, error) from error

    def _judge_watched(self, loaded: Any) -> dict[str, float] | None:
        """Judge, and make an example of what `predict` is given meanwhile, unless the author has given one."""
        seen: list[Any] = []

        def take(given: Any) -> None:
            if not seen and self._author.example is None:
                seen.extend(filter(None, [self._tried(lambda: self._examples.Example.of(given))]))

        with self._examples.watched(loaded.model, self._job["predict"], take):
            metrics = self._judge(loaded)
        if seen:
            self._tried(lambda: self._write_example(loaded, seen[0].needed(loaded.predict)))
        return metrics

    def _write_example(self, loaded: Any, example: Any) -> None:
        example.write(self._author.output.parent, loaded.predict(copy.deepcopy(example.rows)))
        self._saving.amend(self._author.output, takes=example.takes)

    def _tried(self, make: Callable[[], Any]) -> Any:
        """What an example needs and may fail without harm: the model is judged all the same."""
        try:
            return make()
        except Exception as error:  # noqa: BLE001 - whatever the author's types do
            print(f"headrace: no input example was made: {_describe(error)}", file=sys.stderr)

    def _evaluate(self, model_dir: str) -> dict[str, float] | None:
        if self._job.get("evaluate_command"):
            return self._judge(None, Path(model_dir))
        self._import("evaluate")
        with self._phase("load"):
            loaded = self._loader.load(model_dir)
        return self._judge(loaded)

    def _judge(self, loaded: Any, model_dir: Path | None = None) -> dict[str, float] | None:
        if self._job["evaluate"] is None and not self._job.get("evaluate_command"):
            return None
        with self._phase("evaluate"):
            if self._job["evaluate"] is None:
                found = self._commands.evaluate(model_dir or self._author.output)
            else:
                found = self._loader.find(self._job["evaluate"])(self._author, loaded.model)
            checked: dict[str, float] = self._jobs.check_metrics(found)
            return checked

    def _import(self, entry: str | None) -> Any:
        with self._phase("import"):
            self._loader.put_on_path([Path(root) for root in self._job["source_roots"]])
            return self._loader.find(self._job[entry]) if entry and self._job[entry] else None

    @contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        began = time.monotonic()
        self._author.tell("phase", name=name, t=began)
        yield
        self._seconds[name] = round(time.monotonic() - began, 4)


def load(name: str, path: Path) -> Any:
    """A module from a file: -I keeps our directory off the path, where its names would meet the author's."""
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _describe(error: BaseException) -> str:
    if isinstance(error, ModuleNotFoundError) and error.name:
        missing = error.name.partition(".")[0]
        return f"there is no module {missing!r} in the environment; add what provides it to the dependencies and run `uv lock`"
    return "".join(traceback.format_exception_only(type(error), error)).strip()[-2000:]


def _failed(kind: str, message: str, error: BaseException | None) -> dict[str, Any]:
    """The last frames of the author's own; the whole traceback goes to the log."""
    ours = {
        __file__,
        *(getattr(module, "__file__", None) for name, module in sys.modules.items() if name.startswith("headrace_")),
    }
    frames: list[Any] = []
    if error is not None:
        traceback.print_exception(type(error), error, error.__traceback__)
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename not in ours]
    kept = "".join(traceback.format_list([frame for frame in frames if not frame.filename.startswith("<")][-_FRAMES:]))
    return {"ok": False, "kind": kind, "message": message, "traceback": kept[-6000:]}


def sleep_while_waiting() -> None:
    """OpenMP's threads spin while they wait for each other. On two busy cores a fit of 225,000 rows took 1.9 to 22 s so, 1.4 to 2.6 s without.
    OpenBLAS's spin after they are made, too: 0.1 s of each CPU. To be called before the libraries are loaded."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "12")  # 2 to the power of so many cycles


def main(path: str, known: Iterable[str]) -> int:
    job = json.loads(Path(path).read_text(encoding="utf-8"))
    sleep_while_waiting()
    result = Harness(job, known).run()
    draft = Path(job["scratch"]) / "result.json.draft"
    draft.write_text(json.dumps(result), encoding="utf-8")
    draft.replace(draft.with_suffix(""))
    return 0 if result["ok"] else 1


def carry_out(path: str, known: Iterable[str] = ()) -> None:
    """Do the job and end the process."""
    try:
        code = main(path, known)
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError as full:
        if full.errno != errno.ENOSPC:
            raise
        os._exit(120)  # as Python itself ends where its output cannot be written: no fault of the author's
    os._exit(code)  # the result is written: a thread that the author left must not hold the slot


if __name__ == "__main__":
    if sys.argv[1] == "--parent":
        parent = load("headrace_harness_parent", Path(__file__).with_name("harness_parent.py"))
        parent.serve(*sys.argv[2:], sleep_while_waiting, carry_out, load)
    else:
        carry_out(sys.argv[1])
