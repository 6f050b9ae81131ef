"""MLflow's registry as the bridge uses it: one version per Headrace run, and the alias that mirrors the ledger's champion.

MLflow has no idempotent create and no compare-and-set. So the run is looked up by its tag before anything is made, what a crash has
left is taken up, and the version is made last: where one exists, everything under it is complete. Should two claims have raced after
all, the lowest version number stays and whoever sees the others deletes them.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from services.registry_bridge.mlflow_rest import Answered, MlflowRest
from services.registry_bridge.registration import (
    MAX_PARAMETERS,
    RUN_TAG,
    TOKEN_TAG,
    Registered,
    Registration,
    batches,
    datasets,
    is_of,
    milliseconds,
    parameters,
    tags,
)
from shared.errors import Fenced, Permanent, Refused, Unavailable
from shared.manifest import check_path
from shared.points import Point, point
from shared.values import NAME

CHAMPION = "champion"
_NAME = re.compile(NAME)
_SOURCE = re.compile(r"models:/(m-[0-9a-f]{32})")
_MISSING, _EXISTS, _INVALID = "RESOURCE_DOES_NOT_EXIST", "RESOURCE_ALREADY_EXISTS", "INVALID_PARAMETER_VALUE"


def _point(what: str) -> Point:
    return point(f"mlflow {what}", __name__)


_CREATE_EXPERIMENT, _CREATE_RUN, _TAKE_UP, _END_RUN, _DELETE_RUN = (
    _point(what) for what in ("create experiment", "create run", "take up run", "end run", "delete run")
)
_LOG_BATCH, _LOG_INPUTS, _UPLOAD, _DELETE_FILES = (
    _point(what) for what in ("log batch", "log inputs", "upload file", "delete files")
)
_CREATE_MODEL, _SHOW_MODEL, _READY_MODEL, _DELETE_MODEL = (
    _point(what) for what in ("create model", "show model", "model ready", "delete model")
)
_CREATE_REGISTERED, _CREATE_VERSION, _DELETE_VERSION, _SET_ALIAS = (
    _point(what) for what in ("create registered model", "create version", "delete version", "set alias")
)


def unfenced() -> None:
    """The fence of a caller that has none."""


class MlflowRegistry:
    """Keeps one connection open; safe to use from several threads."""

    def __init__(self, url: str) -> None:
        self._mlflow = MlflowRest(url)

    def register(self, registration: Registration, *, fence: Callable[[], None] = unfenced) -> Registered:
        """Log and register the run; repeated, or resumed after a crash, it answers with the version that is there.

        `fence` is called before each thing that is made; it raises `Fenced` when the claim is no longer ours. Raises `Unavailable`
        when MLflow does not answer (try again) and `Permanent` when it refuses.
        """
        _check_name(registration.model)
        experiment = self._experiment(registration.model, fence)
        left = self._runs(experiment, registration)
        if left and (known := self._settle(registration)):
            return known
        unfinished = next((run for run in left if run["info"]["lifecycle_stage"] == "active"), None)
        if unfinished:
            self._take_up(unfinished, registration)
        run = unfinished or self._create_run(experiment, registration, fence)
        logged = (unfinished and self._left_model(unfinished)) or self._create_model(run, registration, fence)
        self._log(run, logged, registration)
        self._upload(run, logged, registration, fence)
        fence()
        self._create_version(registration, run, logged)
        return self._settle(registration, mine=run) or _hidden(registration)

    def champion(self, model: str) -> int | None:
        """The version that the alias names now."""
        _check_name(model)
        try:
            found = self._mlflow.get("registered-models/alias", name=model, alias=CHAMPION)
        except Answered as refusal:
            # to MLflow an unknown model is missing, but an unknown alias an invalid parameter like any other
            if refusal.code == _MISSING or (
                refusal.code == _INVALID and "alias" in refusal.message and "not found" in refusal.message
            ):
                return None
            raise
        return int(found["model_version"]["version"])

    def set_champion(self, model: str, version: int) -> None:
        """Point the alias at the version, unless it does so already. The order of moves is the ledger's affair."""
        if self.champion(model) != version:
            self._mlflow.post(
                _SET_ALIAS, "registered-models/alias", {"name": model, "alias": CHAMPION, "version": str(version)}
            )

    def remove(self, model: str, version: int, mlflow_run: str, model_id: str) -> None:
        """Delete the version, its files and those of its run, and mark run and logged model as deleted. What is gone already is fine.

        Raises `Refused` for the version that the alias names, and for one that is not of this MLflow run.
        """
        if self.champion(model) == version:
            raise Refused(f"version {version} of {model} is MLflow's {CHAMPION}; it is not taken")
        found = self._found("model-versions/get", "model_version", name=model, version=str(version))
        if found and found["run_id"] != mlflow_run:
            raise Refused(f"version {version} of {model} in MLflow is of run {found['run_id']}, not of {mlflow_run}")
        roots = self._roots(mlflow_run, model_id)
        if found:
            self._deleted(
                lambda: self._mlflow.delete(
                    _DELETE_VERSION, "model-versions/delete", {"name": model, "version": str(version)}
                )
            )
        for root in roots:
            self._mlflow.clear(_DELETE_FILES, root)
        self._deleted(lambda: self._mlflow.delete(_DELETE_MODEL, f"logged-models/{model_id}", {"model_id": model_id}))
        self._deleted(lambda: self._mlflow.post(_DELETE_RUN, "runs/delete", {"run_id": mlflow_run}))

    def _roots(self, mlflow_run: str, model_id: str) -> list[str]:
        """Where the artifacts lie of what is still there. The run knows its place after it was marked, its model does not: the run goes last."""
        run = self._found("runs/get", "run", run_id=mlflow_run)
        logged = self._found(f"logged-models/{model_id}", "model")
        return [str(one["info"]["artifact_uri"]) for one in (logged, run) if one]

    def _found(self, path: str, key: str, **query: str) -> dict[str, Any] | None:
        try:
            return dict(self._mlflow.get(path, **query)[key])
        except Answered as refusal:
            if refusal.code == _MISSING:
                return None
            raise

    @staticmethod
    def _deleted(delete: Callable[[], object]) -> None:
        try:
            delete()
        except Answered as refusal:
            if refusal.code != _MISSING:
                raise

    def _experiment(self, model: str, fence: Callable[[], None]) -> str:
        """Its id, asked for each time: once MLflow's store was replaced, a remembered id is another model's."""
        try:
            return str(
                self._mlflow.get("experiments/get-by-name", experiment_name=model)["experiment"]["experiment_id"]
            )
        except Answered as refusal:
            if refusal.code != _MISSING:
                raise
        fence()
        try:
            return str(self._mlflow.post(_CREATE_EXPERIMENT, "experiments/create", {"name": model})["experiment_id"])
        except Answered as refusal:
            if refusal.code == _EXISTS:
                raise Unavailable(f"another registration has just made the experiment {model}; try again") from refusal
            raise

    def _runs(self, experiment: str, registration: Registration) -> list[dict[str, Any]]:
        """The MLflow runs of this run, the oldest first; deleted ones too, for their version may be there."""
        body = {
            "experiment_ids": [experiment],
            "filter": f"tags.`{RUN_TAG}` = '{registration.run}'",
            "run_view_type": "ALL",
            "order_by": ["attributes.start_time ASC", "attributes.run_id ASC"],
            "max_results": 100,
        }
        found = self._mlflow.search("runs/search", body).get("runs", [])
        return [run for run in found if is_of(registration, run["data"].get("tags", []))]

    def _create_run(self, experiment: str, registration: Registration, fence: Callable[[], None]) -> dict[str, Any]:
        fence()
        body = {
            "experiment_id": experiment,
            "run_name": f"run {registration.run}",
            "start_time": milliseconds(registration.started_at),
            "tags": tags(registration),
        }
        return dict(self._mlflow.post(_CREATE_RUN, "runs/create", body)["run"])

    def _take_up(self, run: dict[str, Any], registration: Registration) -> None:
        """Put our token on what an older claim has left; what bears a newer one is not ours to touch."""
        noted = {tag["key"]: tag["value"] for tag in run["data"].get("tags", [])}
        newest = noted.get(TOKEN_TAG, "")
        if newest.isdecimal() and int(newest) > registration.token:
            raise Fenced(
                f"run {registration.run} is registered by a newer claim ({newest}); this one is {registration.token}"
            )
        self._mlflow.post(_TAKE_UP, "runs/log-batch", {"run_id": run["info"]["run_id"], "tags": tags(registration)})

    def _left_model(self, run: dict[str, Any]) -> dict[str, Any] | None:
        """The logged model that an earlier crash has left under this MLflow run."""
        body = {
            "experiment_ids": [run["info"]["experiment_id"]],
            "filter": f"source_run_id = '{run['info']['run_id']}'",
            "max_results": 1,
        }
        found = self._mlflow.search("logged-models/search", body).get("models", [])
        if found and not run.get("outputs", {}).get("model_outputs"):
            self._show_model(run, found[0]["info"])
        return dict(found[0]["info"]) if found else None

    def _create_model(
        self, run: dict[str, Any], registration: Registration, fence: Callable[[], None]
    ) -> dict[str, Any]:
        fence()
        body = {
            "experiment_id": run["info"]["experiment_id"],
            "name": registration.model.replace(".", "-"),  # a dot is for the names of registered models only
            "source_run_id": run["info"]["run_id"],
            "params": parameters(registration)[:MAX_PARAMETERS],
            "tags": [{"key": RUN_TAG, "value": str(registration.run)}],
        }
        logged = dict(self._mlflow.post(_CREATE_MODEL, "logged-models", body)["model"]["info"])
        self._show_model(run, logged)
        return logged

    def _show_model(self, run: dict[str, Any], logged: dict[str, Any]) -> None:
        """On the run's page; the one call that MLflow does not take twice."""
        outputs = [{"model_id": logged["model_id"], "step": 0}]
        self._mlflow.post(_SHOW_MODEL, "runs/outputs", {"run_id": run["info"]["run_id"], "models": outputs})

    def _log(self, run: dict[str, Any], logged: dict[str, Any], registration: Registration) -> None:
        run_id = run["info"]["run_id"]
        for batch in batches(registration, logged["model_id"]):
            self._mlflow.post(_LOG_BATCH, "runs/log-batch", {"run_id": run_id, **batch})
        if inputs := datasets(registration.cut):
            self._mlflow.post(_LOG_INPUTS, "runs/log-inputs", {"run_id": run_id, "datasets": inputs})

    def _upload(
        self, run: dict[str, Any], logged: dict[str, Any], registration: Registration, fence: Callable[[], None]
    ) -> None:
        bundle, composed = registration.bundle_dir, registration.composed_dir
        single = [name for name in ("log.txt", "requirements.txt") if (bundle / name).is_file()]
        for path in [*_files(bundle, "plots"), *single]:
            fence()
            self._mlflow.upload(_UPLOAD, run["info"]["artifact_uri"], path, bundle / path)
        for path in _files(composed):
            fence()
            self._mlflow.upload(_UPLOAD, logged["artifact_uri"], path, composed / path)
        model_id, ended = logged["model_id"], milliseconds(registration.ended_at)
        self._mlflow.patch(
            _READY_MODEL, f"logged-models/{model_id}", {"model_id": model_id, "status": "LOGGED_MODEL_READY"}
        )
        self._mlflow.post(
            _END_RUN, "runs/update", {"run_id": run["info"]["run_id"], "status": "FINISHED", "end_time": ended}
        )

    def _create_version(self, registration: Registration, run: dict[str, Any], logged: dict[str, Any]) -> None:
        body = {
            "name": registration.model,
            "source": f"models:/{logged['model_id']}",
            "model_id": logged["model_id"],
            "run_id": run["info"]["run_id"],
            "tags": tags(registration),
        }
        try:
            self._mlflow.post(_CREATE_VERSION, "model-versions/create", body)
        except Answered as refusal:
            if refusal.code != _MISSING:
                raise
            self._create_registered_model(registration.model)
            self._mlflow.post(_CREATE_VERSION, "model-versions/create", body)

    def _create_registered_model(self, model: str) -> None:
        try:
            self._mlflow.post(_CREATE_REGISTERED, "registered-models/create", {"name": model})
        except Answered as refusal:
            if refusal.code != _EXISTS:
                raise

    def _settle(self, registration: Registration, mine: dict[str, Any] | None = None) -> Registered | None:
        """The one version of this run. What a race has made beside it is deleted, and `mine` with it, if that lost."""
        wanted = f"name = '{registration.model}' and tags.`{RUN_TAG}` = '{registration.run}'"
        bearing = self._mlflow.get("model-versions/search", filter=wanted, max_results="100").get("model_versions", [])
        found = [version for version in bearing if is_of(registration, version.get("tags", []))]
        if not found:
            return None
        kept, *surplus = sorted(found, key=lambda version: int(version["version"]))
        for version in surplus:
            self._mlflow.delete(
                _DELETE_VERSION, "model-versions/delete", {"name": registration.model, "version": version["version"]}
            )
        if mine and mine["info"]["run_id"] != kept["run_id"]:
            self._mlflow.post(_DELETE_RUN, "runs/delete", {"run_id": mine["info"]["run_id"]})
        source = _SOURCE.fullmatch(kept["source"])
        if not source:
            raise Permanent(
                f"version {kept['version']} of {registration.model} in MLflow is not ours: {kept['source'][:200]}"
            )
        return Registered(int(kept["version"]), kept["run_id"], source[1])


def _hidden(registration: Registration) -> Registered:
    raise Unavailable(
        f"MLflow made a version of {registration.model} for run {registration.run} but does not show it yet"
    )


def _files(root: Path, below: str = "") -> list[str]:
    """The relative paths of the plain files under `root/below`, each checked before it becomes a part of a URL."""
    paths = []
    for file in sorted((root / below).rglob("*")):
        path = file.relative_to(root).as_posix()
        if file.is_symlink() or not (file.is_file() or file.is_dir()):
            raise Refused(f"invalid_bundle: {path} is a link or a device; a bundle holds plain files only")
        if file.is_file():
            try:
                check_path(path)
            except ValueError as error:
                raise Refused(f"invalid_bundle: {error}") from error
            paths.append(path)
    return paths


def _check_name(model: str) -> None:
    if not _NAME.fullmatch(model):
        raise Refused(f"{model[:80]!r} is no model's name (lower-case letters, digits, . _ -)")
