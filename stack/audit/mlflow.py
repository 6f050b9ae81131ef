"""MLflow held against the ledger: one version for each run (I6), every mark of one that is known (I5), and the alias on the champion (I7)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from services.registry_bridge.mlflow_registry import CHAMPION
from services.registry_bridge.mlflow_rest import Answered, MlflowRest
from services.registry_bridge.registration import RUN_TAG, TOKEN_TAG
from shared.audit import Sheet
from shared.ledger import Ledger
from shared.ledger.audit import mirror
from shared.ledger.audit.mirror import Registered

PAGE = 200
_MISSING = "RESOURCE_DOES_NOT_EXIST"
_ORPHAN = "was the ledger restored from an older copy? If nobody uses it delete it in MLflow, else keep it and go on from there"


@dataclass
class MlflowAudit:
    ledger: Ledger
    mlflow: MlflowRest
    sheet: Sheet

    def run(self) -> None:
        """Each model of the ledger with its versions, runs and alias; and models of MLflow that bear our marks though the ledger knows none such."""
        with self.ledger.read() as tx:
            known = mirror.models(tx)
        for name in ("versions in MLflow", "runs in MLflow"):
            self.sheet.looked("I6", name, 0)
        self.sheet.looked("I7", "aliases", 0)
        for page in self._registered_models():
            self._aliases(page, set(known))
            for name in [one["name"] for one in page if one["name"] not in known]:
                self._versions(name)
        for name in known:
            self._versions(name)
            self._runs(name)

    def _registered_models(self) -> Iterator[list[dict[str, Any]]]:
        yield from self._get("registered-models/search", "registered_models", order_by="name ASC")

    def _aliases(self, page: Sequence[dict[str, Any]], known: set[str]) -> None:
        """MLflow was asked before: what the ledger has decided since makes the comparison void, and the second look sees to it."""
        aliases = {
            one["name"]: [int(alias["version"]) for alias in one.get("aliases", []) if alias["alias"] == CHAMPION]
            for one in page
            if one["name"] in known
        }
        with self.ledger.read() as tx:
            champions = mirror.champions(tx, aliases)
        for model, (number, _) in champions.items():
            self.sheet.looked("I7", "aliases")
            found = aliases[model][0] if aliases[model] else None
            if found != number:
                self.sheet.violated(
                    "I7",
                    "alias",
                    f"MLflow's alias {CHAMPION!r} of {model} names {_version(found)}, but {_version(number)} is champion in the ledger",
                    "the bridge puts it right within a minute; if it does not, look at its log; if there is no champion, delete the alias",
                    model=model,
                    mlflow=found,
                    ledger=number,
                )

    def _versions(self, model: str) -> None:
        """Both in the order of their numbers, side by side."""
        above = 0
        wanted = {"filter": f"name = '{_quoted(model)}'", "order_by": "version_number ASC"}
        for page in self._get("model-versions/search", "model_versions", **wanted):
            runs = self._known(page)
            for one in page:
                self._version(model, one, runs)
            numbers = {int(one["version"]): one["run_id"] for one in page}
            upto = max(numbers, default=above)
            self._missing(model, above, upto, numbers)
            above = upto
            self.sheet.looked("I6", "versions in MLflow", len(page))
        self._missing(model, above, None, {})

    def _known(self, page: Sequence[dict[str, Any]]) -> dict[int, Registered]:
        """The ledger is asked after MLflow, so that what was there then is known here."""
        with self.ledger.read() as tx:
            return mirror.of_runs(tx, {run for one in page if (run := _marks(one)[0]) is not None})

    def _version(self, model: str, one: dict[str, Any], runs: dict[int, Registered]) -> None:
        number, (run, token) = int(one["version"]), _marks(one)
        if run is None:
            self.sheet.looked("I6", "versions in MLflow that are not ours")
            return
        found = runs.get(run)
        named = f"version {number} of {model} in MLflow (run {run}, token {token})"
        ids: dict[str, int | str | None] = {"model": model, "version": number, "run": run}
        if found is None:
            self.sheet.violated("I6", "unknown_run", f"{named}: the ledger knows no run {run}", _ORPHAN, **ids)
        elif found.number is None and not found.moving:
            why = "has not been trained" if not found.trained else "has no version in the ledger"
            self.sheet.violated("I6", "orphan", f"{named}: run {run} {why}", _ORPHAN, **ids)
        elif found.number is not None and (found.number != number or found.model != model):
            do = f"keep version {found.number}, which the ledger names, and delete this one in MLflow"
            self.sheet.violated(
                "I6",
                "second_version",
                f"{named}: run {run} is version {found.number} of {found.model} in the ledger",
                do,
                **ids,
            )
        elif found.number is not None and found.mlflow_run != one["run_id"] and not found.removed:
            what = f"{named}: it is of MLflow run {one['run_id']}, and in the ledger of {found.mlflow_run}"
            self.sheet.violated(
                "I6", "other_run", what, "MLflow's database was replaced or edited: restore it from its copy", **ids
            )
        if found is not None:
            self._token(named, token, found, **ids)

    def _token(self, named: str, token: int | None, found: Registered, **ids: int | str | None) -> None:
        if token is None or not 1 <= token <= found.registrations:
            what = f"{named}: the ledger knows of {found.registrations} registrations of run {found.run}, none has this token"
            self.sheet.violated(
                "I5",
                "registration_token",
                what,
                "was the ledger restored from an older copy? Keep both, and look which is right",
                **ids,
            )

    def _missing(self, model: str, above: int, upto: int | None, numbers: dict[int, str]) -> None:
        """Versions of the ledger that were not among those of MLflow; each is asked for by name before it is told."""
        while True:
            with self.ledger.read() as tx:
                rows = mirror.numbered(tx, model, above, upto, PAGE)
            for row in rows:
                if row.number not in numbers and not self._has(model, row):
                    self.sheet.violated(
                        "I6",
                        "not_in_mlflow",
                        f"version {row.number} of {model} (run {row.run_id}) is not in MLflow",
                        "restore MLflow's database from its copy, or `headrace retrain` the model and promote the new version; its files are still in the blob store",
                        model=model,
                        version=row.number,
                        run=row.run_id,
                    )
            if len(rows) < PAGE:
                return
            above = rows[-1].number

    def _has(self, model: str, row: Any) -> bool:
        """Whether MLflow has it after all, or is not to have it any more."""
        try:
            self.mlflow.get("model-versions/get", name=model, version=str(row.number))
        except Answered as refusal:
            if refusal.code != _MISSING:
                raise
            with self.ledger.read() as tx:
                return mirror.of_runs(tx, [row.run_id])[row.run_id].removed
        return True

    def _runs(self, model: str) -> None:
        """MLflow's runs that bear our mark: each of a known run, and the one that its version names."""
        try:
            experiment = self.mlflow.get("experiments/get-by-name", experiment_name=model)["experiment"][
                "experiment_id"
            ]
        except Answered as refusal:
            if refusal.code != _MISSING:
                raise
            return
        token = ""
        while True:
            body = {"experiment_ids": [experiment], "filter": f"tags.`{RUN_TAG}` LIKE '%'", "max_results": PAGE}
            found = self.mlflow.search("runs/search", body | ({"page_token": token} if token else {}))
            page = [
                {"run_id": one["info"]["run_id"], "tags": one["data"].get("tags", [])} for one in found.get("runs", [])
            ]
            runs = self._known(page)
            for one in page:
                self._run(model, one, runs)
            self.sheet.looked("I6", "runs in MLflow", len(page))
            if not (token := found.get("next_page_token", "")):
                return

    def _run(self, model: str, one: dict[str, Any], runs: dict[int, Registered]) -> None:
        run, token = _marks(one)
        if run is None:
            return
        found, named = runs.get(run), f"MLflow run {one['run_id']} of {model} (run {run}, token {token})"
        ids: dict[str, int | str | None] = {"model": model, "run": run, "mlflow_run": one["run_id"]}
        if found is None:
            self.sheet.violated("I6", "unknown_run", f"{named}: the ledger knows no run {run}", _ORPHAN, **ids)
            return
        if found.number is None and not found.moving:
            self.sheet.violated(
                "I6", "orphan", f"{named}: run {run} has no version, and nobody registers it", _ORPHAN, **ids
            )
        elif found.number is not None and found.mlflow_run != one["run_id"]:
            do = f"version {found.number} names MLflow run {found.mlflow_run}: delete this one there"
            self.sheet.violated("I6", "second_run", f"{named}: it is a second MLflow run of the same run", do, **ids)
        self._token(named, token, found, **ids)

    def _get(self, path: str, key: str, **query: str) -> Iterator[list[dict[str, Any]]]:
        token: dict[str, str] = {}
        while True:
            found = self.mlflow.get(path, max_results=str(PAGE), **query, **token)
            yield list(found.get(key, []))
            if not found.get("next_page_token"):
                return
            token = {"page_token": found["next_page_token"]}


def _marks(one: dict[str, Any]) -> tuple[int | None, int | None]:
    """Run and token that a version or an MLflow run bears; None for what is missing or no number."""
    tags = {tag["key"]: tag["value"] for tag in one.get("tags", [])}
    run, token = (tags.get(name, "") for name in (RUN_TAG, TOKEN_TAG))
    return int(run) if run.isdecimal() and len(run) < 19 else None, int(token) if token.isdecimal() and len(
        token
    ) < 10 else None


def _quoted(model: str) -> str:
    return model.replace("'", "")


def _version(number: int | None) -> str:
    return f"version {number}" if number is not None else "no version"
