"""Models, versions and their files over REST, and who may change the champion."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from headrace.version import read

from shared.gates import Decision
from shared.ledger import releases, workers
from shared.manifest import Manifest
from tests.apis import FILES, Api, follow_alias, judge, register, serve, train
from tests.ledgers import CONFIG, adopt, grow, put_config


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Api]:
    with serve(tmp_path) as running:
        yield running


def serving(api: Api, directory: Path, number: int = 1) -> Manifest:
    manifest = register(api, train(api), number, directory / f"v{number}")
    judge(api, number, Decision.PROMOTE)
    follow_alias(api, number)
    return manifest


def test_a_version_tells_its_verdict_lineage_and_files(api: Api, tmp_path: Path) -> None:
    serving(api, tmp_path)
    manifest = serving(api, tmp_path, 2)
    told = api.get("/v1/models/delays/versions/2").json()
    cut = told["lineage"].pop("cut")
    assert cut["flights"]["upto"] == 2000
    assert told["lineage"].pop("cut_digest").startswith("sha256:")
    assert told == {
        "model": "delays", "version": 2, "state": "promoted", "champion": True, "run": 2, "digest": manifest.digest,
        "release": {"name": "v1.0.0", "commit": "a" * 40}, "registered_at": "2026-01-01T00:00:00Z", "metrics": {"auc": 0.7},
        "verdict": {"decision": "promote", "reasons": ["auc 0.7 is at least 0.6"], "champion": 1, "at": "2026-01-01T00:00:00Z"},
        "lineage": {"arrivals": [2]}, "mlflow": {"run_id": "r2", "model_id": "m-2"}, "requirements_file": "requirements.txt",
        "pin": None, "sample": None, "tidied_at": None, "files": [file.model_dump() for file in manifest.files],
    }  # fmt: skip
    assert api.get("/v1/models/delays/versions/champion").json()["version"] == 2
    assert read(told).digest == manifest.digest  # the client's own check
    assert api.get("/v1/runs/2").json()["version"] == 2


def test_versions_are_listed_newest_first(api: Api, tmp_path: Path) -> None:
    for number in (1, 2, 3):
        serving(api, tmp_path, number)
    first = api.get("/v1/models/delays/versions", limit=2).json()
    rest = api.get("/v1/models/delays/versions", limit=2, after=first["next"]).json()
    told = [(each["version"], each["champion"]) for each in first["items"] + rest["items"]]
    assert told == [(3, True), (2, False), (1, False)]
    assert rest["next"] is None


def test_every_file_of_a_version_arrives_as_it_was_stored(api: Api, tmp_path: Path) -> None:
    manifest = serving(api, tmp_path)
    for file in manifest.files:
        answer = api.get(f"/v1/models/delays/versions/champion/files/{file.path}")
        assert answer.content == FILES[file.path]
        assert hashlib.sha256(answer.content).hexdigest() == file.sha256
        assert answer.headers["Content-Type"] == "application/octet-stream"
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert api.get("/v1/models/delays/versions/1/files/other").status_code == 404
    assert api.get("/v1/models/delays/versions/1/files/MLmodel", token="submit").status_code == 403


def test_a_file_that_is_damaged_on_disk_never_arrives_whole(api: Api, tmp_path: Path) -> None:
    file = next(file for file in serving(api, tmp_path).files if file.path == "data/model/weights.bin")
    stored = next((tmp_path / "blobs").rglob(file.sha256))
    stored.chmod(0o600)
    stored.write_bytes(stored.read_bytes()[:-1] + b"x")
    answer = api.get("/v1/models/delays/versions/1/files/data/model/weights.bin")
    assert len(answer.content) < file.size_bytes


def test_a_model_tells_what_serves_what_runs_and_what_waits(api: Api, tmp_path: Path) -> None:
    manifest = serving(api, tmp_path)
    grow(api.ledger)
    told = api.get("/v1/models/delays").json()
    sentence = told.pop("sentence")
    assert told == {
        "name": "delays", "repository": "file:///nowhere/delays.git", "datasets": ["flights"], "compute_class": "standard",
        "release": {"name": "v1.0.0", "commit": "a" * 40, "seen_at": "2026-01-01T00:00:00Z"}, "release_error": None,
        "champion": {"version": 1, "digest": manifest.digest, "since": "2026-01-01T00:00:00Z"},
        "paused": None, "used": None, "waiting_run": 2, "running_run": None,
    }  # fmt: skip
    assert sentence.startswith("run 2 is due since")
    assert api.get("/v1/models").json() == {"items": [told | {"sentence": sentence}], "next": None}
    why = api.get("/v1/models/delays/why").json()
    assert (why["model"], why["waiting_run"], why["running_run"]) == ("delays", 2, None)
    assert why["sentences"][-1] == "Version 1 serves since 2026-01-01 00:00:00Z."


def test_a_model_whose_newest_release_was_refused_says_so(api: Api) -> None:
    assert api.get("/v1/models/delays").json()["sentence"] == "it has never been trained"
    adopt(api.ledger)
    with api.ledger.write() as tx:
        releases.refused(tx, "delays", "v1.1.0", "b" * 40, "train is missing")
    told = api.get("/v1/models/delays").json()
    assert (told["release"]["name"], told["release_error"]) == (
        "v1.0.0",
        "release v1.1.0 was refused: train is missing",
    )
    with api.ledger.write() as tx:
        releases.looked(tx, "delays", "the repository did not answer")
    assert api.get("/v1/models/delays").json()["release_error"] == "the repository did not answer"


def test_models_are_listed_by_name_page_by_page(api: Api) -> None:
    more = "".join(f'[models.{name}]\nrepository = "file:///nowhere/{name}.git"\n' for name in ("arrivals", "zones"))
    put_config(api.ledger, CONFIG + more)
    first = api.get("/v1/models", limit=2).json()
    rest = api.get("/v1/models", limit=2, after=first["next"]).json()
    assert [model["name"] for model in first["items"] + rest["items"]] == ["arrivals", "delays", "zones"]


def test_a_named_person_promotes_an_awaiting_version_and_only_such_a_one(api: Api, tmp_path: Path) -> None:
    register(api, train(api), 1, tmp_path / "v1")
    early = api.post("/v1/models/delays/promote", {"version": 1, "reason": "now"})
    assert early.status_code == 409
    assert "only an awaiting one" in early.json()["detail"]
    judge(api, 1, Decision.PROMOTE, automatic=False)
    answer = api.post("/v1/models/delays/promote", {"version": 1, "reason": "seen it"}, token="operate")
    assert (answer.status_code, answer.json()) == (202, {"model": "delays", "champion": 1})
    follow_alias(api, 1)
    notice = api.get("/v1/notices", types="version.promoted").json()["items"][0]
    assert (notice["data"]["actor"], notice["data"]["reasons"]) == ("operate", ["seen it"])


def test_a_rollback_goes_to_the_version_before(api: Api, tmp_path: Path) -> None:
    serving(api, tmp_path)
    serving(api, tmp_path, 2)
    answer = api.post("/v1/models/delays/rollback", {"reason": "late flights"})
    assert (answer.status_code, answer.json()) == (202, {"model": "delays", "champion": 1})
    again = api.post("/v1/models/delays/rollback", {"version": 1, "reason": "again"})
    assert again.status_code == 409  # the alias has not followed yet
    follow_alias(api, 1)
    assert api.get("/v1/models/delays").json()["champion"]["version"] == 1


def test_the_versions_of_a_model_that_was_taken_out_stay_readable(api: Api, tmp_path: Path) -> None:
    serving(api, tmp_path)
    put_config(api.ledger, '[datasets.reported]\nsource = { kind = "rest" }\n')
    assert api.get("/v1/models/delays").status_code == 404
    assert len(api.get("/v1/models/delays/versions").json()["items"]) == 1
    assert api.get("/v1/models/delays/versions/1/files/MLmodel").content == FILES["MLmodel"]


def test_status_tells_of_models_datasets_runs_deliveries_and_workers(api: Api, tmp_path: Path) -> None:
    serving(api, tmp_path)
    grow(api.ledger)
    with api.ledger.write() as tx:
        workers.seen(tx, "trainer@host:1", "standard", 2, 1)
    told = api.get("/v1/status").json()
    assert [model["name"] for model in told["models"]] == ["delays"]
    assert told["datasets"] == [
        {"name": "flights", "kind": "sql", "cursor": 2000, "rows": 2000, "looked_at": None, "error": None},
        {"name": "reported", "kind": "rest", "cursor": None, "rows": None, "looked_at": None, "error": None},
    ]
    assert told["runs"] == {"waiting": 1, "running": 0}
    assert told["deliveries"] == {"pending": 3, "failed": 0}
    assert told["rejections"] == {"count": 0, "last_reason": None, "last_at": None}
    worker = {"name": "trainer@host:1", "compute_class": "standard", "slots": 2, "busy": 1}
    assert told["workers"] == [worker | {"seen_at": "2026-01-01T00:00:00Z"}]
    assert told["unserved"] == []


def test_status_tells_which_compute_class_nobody_serves_and_how_to_start_a_worker(api: Api) -> None:
    adopt(api.ledger)
    grow(api.ledger)
    start = "HEADRACE_COMPUTE_CLASS=standard python -m services.trainer"
    assert api.get("/v1/status").json()["unserved"] == [{"compute_class": "standard", "due": 1, "start": start}]
