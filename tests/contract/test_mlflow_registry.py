"""The registry against a real MLflow server: what a run leaves there, and that it is there exactly once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
from mlflow import MlflowClient

from services.registry_bridge.compose import compose
from services.registry_bridge.mlflow_registry import MlflowRegistry
from services.registry_bridge.registration import Registered, Registration, tags
from shared.errors import Fenced, Permanent, Refused, Unavailable
from shared.manifest import read_tree
from tests.faulty_proxy import Fault, FaultyProxy
from tests.servers import Server, free_port, start_mlflow

ROOT = Path(__file__).parents[2]
AT = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
LOCK = "numpy==2.4.6 \\\n    --hash=sha256:" + "ab" * 32 + "\n"
LARGE = bytes(range(256)) * 40_000  # in several parts, in and out
LOADER = """
    import json, pathlib, sys

    def _load_pyfunc(path):
        place = pathlib.Path(path)
        sys.path.insert(0, str(place / "source"))
        from author_model import Predictor
        return Predictor(**json.loads((place / "model" / "weights.json").read_text()))
"""
AUTHOR = """
    class Predictor:
        def __init__(self, weight):
            self.weight = weight
        def predict(self, frame):
            return frame["distance"] * self.weight
"""


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    place = tmp_path / "bundle"
    write(place, "model/weights.json", json.dumps({"weight": 2.5}))
    write(place, "source/author_model.py", AUTHOR)
    write(place, "code/headrace_loader.py", LOADER)
    write(place, "plots/roc.svg", "<svg xmlns='http://www.w3.org/2000/svg'/>")
    write(place, "log.txt", "epoch 1\n")
    write(place, "requirements.txt", LOCK)
    write(
        place,
        "signature.json",
        json.dumps({"inputs": [{"name": "distance", "type": "long"}], "outputs": [{"type": "double"}]}),
    )
    write(place, "input_example.json", json.dumps({"columns": ["distance"], "data": [[100]]}))
    return place


def write(place: Path, path: str, text: str) -> None:
    (place / path).parent.mkdir(parents=True, exist_ok=True)
    (place / path).write_text(dedent(text))


def composed(bundle: Path) -> Path:
    into = bundle.parent / "composed"
    compose(bundle, into, model="flight-delays", run=17, created_at=AT, python="3.11.7")
    return into


@pytest.fixture
def registration(bundle: Path) -> Registration:
    """Of a model of its own: the server is shared."""
    return Registration(
        model=f"flights-{uuid.uuid4().hex[:12]}",
        run=17,
        token=3,
        bundle="sha256:" + "b" * 64,
        release="v1.4.0",
        commit="c0ffee" * 6 + "beef",
        cut={
            "flights": {"table": "flights", "cursor": "id", "above": None, "upto": 27004, "rows": 27004},
            "weather": {"upto": 9, "rows": None},
        },
        cut_digest="sha256:" + "12" * 32,
        arrivals=[12, 13, 14, 20],
        parameters={"learning_rate": 0.1, "odd name!": "x" * 10_000, "../up": 1},
        metrics={"auc": 0.71, "rmse": 3.5},
        history=[
            {"key": "auc", "value": i / 2000, "step": i, "timestamp_ms": 1_700_000_000_000 + i} for i in range(1000)
        ],
        bundle_dir=bundle,
        composed_dir=composed(bundle),
        started_at=AT,
        ended_at=AT.replace(minute=5),
    )


@pytest.fixture
def client(mlflow_server: Server) -> MlflowClient:
    return MlflowClient(tracking_uri=mlflow_server.url, registry_uri=mlflow_server.url)


@pytest.fixture
def registry(mlflow_server: Server) -> MlflowRegistry:
    return MlflowRegistry(mlflow_server.url)


@pytest.fixture
def proxy(mlflow_server: Server) -> Iterator[FaultyProxy]:
    with FaultyProxy(mlflow_server.url) as between:
        yield between


@pytest.fixture(scope="module", params=["disk", "s3"])
def any_server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """MLflow with its artifacts on disk and on S3, which it alone reaches: the bridge and clients go through it."""
    if request.param == "disk":
        yield request.getfixturevalue("mlflow_server")
        return
    store = request.getfixturevalue("s3_server")
    server = start_mlflow(
        tmp_path_factory.mktemp("mlflow-s3"), artifacts=store.new_url("mlflow"), extra=store.environment
    )
    yield server
    server.stop()


def assert_there_once(client: MlflowClient, registration: Registration, registered: Registered) -> None:
    """One version, one MLflow run, one logged model: finished, and pointing at each other."""
    (version,) = client.search_model_versions(f"name = '{registration.model}'")
    experiment = client.get_experiment_by_name(registration.model)
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    (model,) = client.search_logged_models([experiment.experiment_id])
    assert registered == Registered(int(version.version), run.info.run_id, model.model_id)
    assert (version.run_id, version.source) == (run.info.run_id, f"models:/{model.model_id}")
    assert (run.info.status, str(model.status)) == ("FINISHED", "READY")
    assert [output.model_id for output in run.outputs.model_outputs] == [model.model_id]


def test_an_mlflow_run_holds_what_is_needed_to_judge_it(
    registry: MlflowRegistry, client: MlflowClient, registration: Registration
) -> None:
    registered = registry.register(registration)
    assert_there_once(client, registration, registered)
    run = client.get_run(registered.mlflow_run_id)
    assert (run.info.start_time, run.info.end_time) == (
        int(AT.timestamp() * 1000),
        int(AT.timestamp() * 1000) + 300_000,
    )
    assert run.data.metrics == {"auc": 0.71, "rmse": 3.5}, "the final value is the latest, not the last of the history"
    assert len(client.get_metric_history(registered.mlflow_run_id, "auc")) == 1001
    assert run.data.params["learning_rate"] == "0.1"
    assert len(run.data.params["odd_name__ddabd191"]) == 2000
    assert len(run.data.params) == 3
    expected = {
        "headrace.run": "17",
        "headrace.token": "3",
        "headrace.release": "v1.4.0",
        "headrace.commit": registration.commit,
        "headrace.cut": json.dumps(registration.cut, sort_keys=True),
        "headrace.cut_digest": registration.cut_digest,
        "headrace.arrivals": "12-14,20",
    }
    version = client.get_model_version(registration.model, str(registered.version))
    assert expected.items() <= run.data.tags.items()
    assert expected.items() <= version.tags.items()
    given = {one.dataset.name: one.dataset for one in run.inputs.dataset_inputs}
    assert json.loads(given["flights"].source) == registration.cut["flights"]
    assert {name: one.profile for name, one in given.items()} == {"flights": '{"num_rows": 27004}', "weather": None}
    assert {one.path for one in client.list_artifacts(registered.mlflow_run_id)} == {
        "plots",
        "log.txt",
        "requirements.txt",
    }
    assert {
        metric.key: metric.value for metric in client.get_logged_model(registered.model_id).metrics or []
    } == registration.metrics


def test_a_version_that_was_trained_on_a_sample_says_so(
    registry: MlflowRegistry, client: MlflowClient, registration: Registration
) -> None:
    registered = registry.register(replace(registration, sample="1%"))
    version = client.get_model_version(registration.model, str(registered.version))
    assert (
        version.tags["headrace.sample"] == client.get_run(registered.mlflow_run_id).data.tags["headrace.sample"] == "1%"
    )
    assert "headrace.sample" not in {tag["key"] for tag in tags(registration)}


def test_the_version_is_loaded_and_predicts_in_a_process_that_knows_nothing_of_us(
    any_server: Server, registration: Registration
) -> None:
    (registration.composed_dir / "data/model/more.bin").write_bytes(LARGE)
    registry = MlflowRegistry(any_server.url)
    registry.set_champion(registration.model, registry.register(registration).version)
    script = f"""
        import hashlib, mlflow, pandas
        model = mlflow.pyfunc.load_model("models:/{registration.model}@champion")
        print(model.predict(pandas.DataFrame({{"distance": [100, 200]}})).tolist(), model.input_example.to_dict("records"))
        try:
            model.predict(pandas.DataFrame({{"distance": ["far"]}}))
        except mlflow.MlflowException as refusal:
            print("refused:", "distance" in str(refusal))
        place = mlflow.artifacts.download_artifacts("models:/{registration.model}@champion")
        print(hashlib.sha256(open(place + "/data/model/more.bin", "rb").read()).hexdigest())
        print(open(mlflow.pyfunc.get_model_dependencies("models:/{registration.model}@champion")).read())
    """
    environment = {
        **os.environ,
        "MLFLOW_TRACKING_URI": any_server.url,
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    }
    ran = subprocess.run(
        [sys.executable, "-c", dedent(script)],
        env=environment,
        cwd="/",
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert (
        ran.stdout == f"[250.0, 500.0] [{{'distance': 100}}]\nrefused: True\n{sha256(LARGE).hexdigest()}\n{LOCK}\n"
    ), ran.stderr


def test_the_composed_directory_is_complete_and_the_same_each_time(bundle: Path) -> None:
    first = read_tree(composed(bundle))
    assert [file.path for file in first.files] == [
        "MLmodel",
        "code/headrace_loader.py",
        "conda.yaml",
        "data/model/weights.json",
        "data/source/author_model.py",
        "input_example.json",
        "python_env.yaml",
        "requirements.txt",
        "serving_input_example.json",
    ]
    assert read_tree(composed(bundle)).digest == first.digest
    assert (bundle.parent / "composed" / "requirements.txt").read_text() == LOCK


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("signature.json", '{"inputs": [{"name": "x", "type": "object"}]}'),
        ("signature.json", '{"inputs": 3}'),
        ("signature.json", '{"inputs": [{"type": "tensor", "dtype": "object", "shape": [-1]}]}'),
        ("signature.json", '{"inputs": [{"type": "tensor", "dtype": "float64", "shape": [-1, 2.5]}]}'),
        ("signature.json", '{"inputs": [{"type": "tensor", "dtype": "float64", "shape": []}]}'),
        ("input_example.json", '{"inputs": 3}'),
        ("signature.json", "[]"),
        ("input_example.json", '{"rows": []}'),
        ("input_example.json", "not json"),
    ],
)
def test_a_bundle_that_describes_itself_wrongly_is_refused(bundle: Path, file: str, content: str) -> None:
    (bundle / file).write_text(content)
    with pytest.raises(Refused, match="invalid_bundle"):
        composed(bundle)


MLMODEL = "artifact_path: file:///private\nflavors: {python_function: {loader_module: x}}\nrun_id: abc\nmodel_id: m-1\nmetadata: {mine: 1}\n"


@pytest.mark.filterwarnings("default")  # of MLflow's own
def test_a_registered_model_that_a_script_logged_is_loaded_by_its_own_flavours(
    mlflow_server: Server, registry: MlflowRegistry, registration: Registration, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow.sklearn
    from sklearn.dummy import DummyRegressor

    fitted = DummyRegressor(strategy="constant", constant=7.0).fit([[0]], [1])
    mlflow.sklearn.save_model(fitted, registration.bundle_dir / "model" / "mlflow", pip_requirements=[])
    composed(registration.bundle_dir)
    version = registry.register(registration).version
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server.url)
    for load in (mlflow.pyfunc.load_model, mlflow.sklearn.load_model):
        assert load(f"models:/{registration.model}/{version}").predict([[3]]).tolist() == [7.0]


def test_a_model_that_a_script_logged_ships_as_it_is_without_the_ids_of_its_store(bundle: Path) -> None:
    write(bundle, "model/mlflow/MLmodel", MLMODEL)
    write(bundle, "model/mlflow/model.pkl", "a pickle")
    place = composed(bundle)
    assert sorted(path.name for path in place.iterdir()) == ["MLmodel", "model.pkl"]
    described = (place / "MLmodel").read_text()
    assert "loader_module: x" in described
    assert "headrace.run: '17'" in described
    assert "mine: 1" in described
    assert not [word for word in ("private", "abc", "m-1") if word in described]
    digest = read_tree(place).digest
    assert read_tree(composed(bundle)).digest == digest


@pytest.mark.parametrize(
    "text",
    [
        "flavors: {sklearn: {}}",
        "- a",
        "flavors: [",
        "",
        "!!python/object:os.system {}",
        "flavors: 3",
        "metadata: 3\n" + MLMODEL,
    ],
)
def test_a_logged_model_that_is_not_as_mlflow_writes_it_is_refused(bundle: Path, text: str) -> None:
    write(
        bundle,
        "model/mlflow/MLmodel",
        text.replace("metadata: {mine: 1}\n", "") if text.startswith("metadata") else text,
    )
    with pytest.raises(Refused, match="invalid_bundle"):
        composed(bundle)


@pytest.mark.parametrize("name", ["%2e%2e%2fx", "..\\x"])
def test_a_file_name_that_means_another_place_is_not_uploaded(
    proxy: FaultyProxy, registration: Registration, name: str
) -> None:
    (registration.bundle_dir / "plots" / name).write_text("x")
    with pytest.raises(Refused, match="invalid_bundle"):
        MlflowRegistry(proxy.url).register(registration)
    assert not [request for request in proxy.requests if request.startswith("PUT")]


def test_a_link_is_not_followed_out_of_the_bundle(registry: MlflowRegistry, registration: Registration) -> None:
    (registration.bundle_dir / "plots" / "roc.png").symlink_to("/etc/passwd")
    with pytest.raises(Refused, match="link"):
        registry.register(registration)


def test_nothing_of_the_authors_is_imported_or_unpickled(mlflow_server: Server, bundle: Path, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    write(bundle, "source/author_model.py", f"open({str(canary)!r}, 'w')")
    write(bundle, "code/headrace_loader.py", f"open({str(canary)!r}, 'w')")
    (bundle / "model" / "model.pkl").write_bytes(b"cposix\nsystem\n(S'touch " + str(canary).encode() + b"'\ntR.")
    script = f"""
        import sys
        seen = []
        from pathlib import Path
        from datetime import datetime, UTC
        from services.registry_bridge.compose import compose
        from services.registry_bridge.mlflow_registry import MlflowRegistry
        from services.registry_bridge.registration import Registration
        sys.addaudithook(lambda event, arguments: seen.append(event) if event.startswith(("pickle.", "marshal.loads", "exec")) else None)
        bundle, into, at = Path({str(bundle)!r}), Path({str(tmp_path / "into")!r}), datetime.now(UTC)
        compose(bundle, into, model="evil", run=1, created_at=at, python="3.11.7")
        MlflowRegistry({mlflow_server.url!r}).register(Registration(model="evil-{uuid.uuid4().hex[:8]}", run=1, token=1, bundle="sha256:b", release="v1",
            commit="0" * 40, cut={{}}, cut_digest="", arrivals=[], parameters={{}}, metrics={{}}, history=[], bundle_dir=bundle,
            composed_dir=into, started_at=at, ended_at=at))
        print("seen:", [event for event in seen if event.startswith("pickle.")], "author_model" in sys.modules)
    """
    ran = subprocess.run(
        [sys.executable, "-c", dedent(script)], cwd=ROOT, capture_output=True, text=True, timeout=90, check=False
    )
    assert ran.stdout == "seen: [] False\n", ran.stderr
    assert not canary.exists()


def test_registering_again_gives_the_same_version_and_makes_nothing(
    registry: MlflowRegistry, proxy: FaultyProxy, client: MlflowClient, registration: Registration
) -> None:
    first = registry.register(registration)
    assert MlflowRegistry(proxy.url).register(replace(registration, token=4)) == first
    assert len(proxy.requests) == 3, proxy.requests
    assert_there_once(client, registration, first)


def test_a_lost_reply_to_the_creation_of_the_version_leaves_one_version(
    proxy: FaultyProxy, client: MlflowClient, registration: Registration
) -> None:
    registry = MlflowRegistry(proxy.url)
    registry.register(replace(registration, run=16))
    proxy.fail_path("model-versions/create", Fault.DROP_REPLY)
    with pytest.raises(Unavailable):
        registry.register(registration)
    assert registry.register(registration).version == 2
    assert len(client.search_model_versions(f"name = '{registration.model}'")) == 2


def test_whatever_call_is_the_last_before_a_crash_the_next_try_ends_with_one_version(
    proxy: FaultyProxy, registry: MlflowRegistry, client: MlflowClient, registration: Registration
) -> None:
    small = registration.bundle_dir.parent / "small"
    write(small, "MLmodel", "")
    registration = replace(registration, history=[], composed_dir=small)
    MlflowRegistry(proxy.url).register(registration)
    calls = len(proxy.requests)
    for call in range(1, calls + 1):
        fresh = replace(registration, model=f"{registration.model}-{call}")
        proxy.fail(call, Fault.REFUSE_REQUEST if call == 1 else Fault.DROP_REPLY)
        with pytest.raises(Unavailable):
            MlflowRegistry(proxy.url).register(fresh)
        assert_there_once(client, fresh, registry.register(replace(fresh, token=4)))


def test_a_claim_that_is_overtaken_makes_nothing_more(
    registry: MlflowRegistry, client: MlflowClient, registration: Registration
) -> None:
    def lost() -> None:
        raise Fenced("a newer claim owns the run")

    with pytest.raises(Fenced):
        registry.register(registration, fence=lost)
    assert client.get_experiment_by_name(registration.model) is None


def test_an_older_claim_does_not_go_on_with_what_a_newer_one_has_begun(
    proxy: FaultyProxy, registry: MlflowRegistry, registration: Registration
) -> None:
    proxy.fail_path("log-inputs", Fault.REFUSE_REQUEST)
    with pytest.raises(Unavailable):
        MlflowRegistry(proxy.url).register(replace(registration, token=9))
    with pytest.raises(Fenced, match="newer claim"):
        registry.register(registration)


@pytest.mark.parametrize("overtaken_at", [2, 3, 4], ids=["making its run", "making its model", "making its version"])
def test_two_claims_that_race_past_their_fences_leave_one_version(
    registry: MlflowRegistry, client: MlflowClient, registration: Registration, overtaken_at: int
) -> None:
    """The older claim stands still just after its fence has let it through; the newer one does all its work meanwhile."""
    passed, winners = [], []

    def fence() -> None:
        passed.append(len(passed) + 1)
        if len(passed) == overtaken_at:
            winners.append(registry.register(replace(registration, token=4)))

    assert registry.register(registration, fence=fence) == winners[0]
    (version,) = client.search_model_versions(f"name = '{registration.model}'")
    experiment = client.get_experiment_by_name(registration.model)
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert winners[0] == Registered(int(version.version), run.info.run_id, version.source.removeprefix("models:/"))


def test_eight_runs_of_one_model_registered_at_once_are_eight_versions(
    registry: MlflowRegistry, client: MlflowClient, registration: Registration
) -> None:
    with ThreadPoolExecutor(8) as pool:
        runs = [replace(registration, run=run, history=[]) for run in range(1, 9)]
        registered = list(pool.map(lambda one: until_available(lambda: registry.register(one)), runs))
    assert sorted(one.version for one in registered) == list(range(1, 9))
    assert len(client.search_model_versions(f"name = '{registration.model}'")) == 8


def until_available(action: Callable[[], Registered]) -> Registered:
    for _ in range(10):
        try:
            return action()
        except Unavailable:
            continue
    raise AssertionError("never available in ten tries")


def test_the_alias_is_moved_once_and_back(proxy: FaultyProxy, registration: Registration) -> None:
    registry = MlflowRegistry(proxy.url)
    assert registry.champion(registration.model) is None
    for run in (1, 2):
        registry.register(replace(registration, run=run))
    assert registry.champion(registration.model) is None
    for version in (1, 2, 2, 1):
        registry.set_champion(registration.model, version)
        assert registry.champion(registration.model) == version
    assert proxy.requests.count("POST /api/2.0/mlflow/registered-models/alias") == 3
    with pytest.raises(Permanent):
        registry.set_champion(registration.model, 99)


def test_every_call_goes_over_one_open_connection(proxy: FaultyProxy, registration: Registration) -> None:
    registry = MlflowRegistry(proxy.url)
    registry.set_champion(registration.model, registry.register(registration).version)
    assert proxy.connections == 1
    assert len([request for request in proxy.requests if not request.startswith("PUT")]) <= 18, proxy.requests


@pytest.mark.parametrize("name", ["a/../b", "x' OR name != '", "", "Ａ"])
def test_a_name_that_is_none_goes_nowhere(registry: MlflowRegistry, registration: Registration, name: str) -> None:
    for action in (
        lambda: registry.register(replace(registration, model=name)),
        lambda: registry.set_champion(name, 1),
    ):
        with pytest.raises(Refused):
            action()


def test_an_mlflow_that_is_away_is_unavailable() -> None:
    with pytest.raises(Unavailable, match="did not answer"):
        MlflowRegistry(f"http://127.0.0.1:{free_port()}").champion("flights")


@pytest.mark.parametrize(
    ("status", "body", "error"),
    [
        (500, b"oops", Unavailable),
        (503, b'{"error_code": "TEMPORARILY_UNAVAILABLE", "message": "locked"}', Unavailable),
        (429, b"{}", Unavailable),
        (403, b"Invalid Host header", Unavailable),
        (302, b"", Unavailable),
        (200, b"<html>please log in</html>", Unavailable),
        (404, b"<html>not found</html>", Unavailable),
        (400, b'{"error_code": "BAD_REQUEST", "message": "UNIQUE constraint failed"}', Unavailable),
        (400, b'{"error_code": "INVALID_PARAMETER_VALUE", "message": "no"}', Permanent),
    ],
)
def test_each_strange_answer_is_told_as_what_it_is(status: int, body: bytes, error: type[Exception]) -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("location", "http://127.0.0.1:9/")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        with pytest.raises(error):
            MlflowRegistry(f"http://127.0.0.1:{server.server_address[1]}").champion("flights")


def test_a_version_that_is_removed_leaves_no_files_and_the_others_whole(
    registry: MlflowRegistry, client: MlflowClient, registration: Registration
) -> None:
    gone, kept = registry.register(registration), registry.register(replace(registration, run=18))
    registry.set_champion(registration.model, kept.version)
    for _ in range(2):
        registry.remove(registration.model, gone.version, gone.mlflow_run_id, gone.model_id)
    (left,) = client.search_model_versions(f"name = '{registration.model}'")
    assert (int(left.version), registry.champion(registration.model)) == (kept.version, kept.version)
    assert client.get_run(gone.mlflow_run_id).info.lifecycle_stage == "deleted"
    assert client.list_artifacts(gone.mlflow_run_id) == []
    assert client.list_artifacts(kept.mlflow_run_id) != []
    assert client.list_logged_model_artifacts(kept.model_id) != []
    (model,) = client.search_logged_models([client.get_experiment_by_name(registration.model).experiment_id])
    assert model.model_id == kept.model_id


def test_neither_the_champion_nor_another_run_s_version_is_removed(
    registry: MlflowRegistry, client: MlflowClient, registration: Registration
) -> None:
    there = registry.register(registration)
    with pytest.raises(Refused, match="not of other"):
        registry.remove(registration.model, there.version, "other", there.model_id)
    registry.set_champion(registration.model, there.version)
    with pytest.raises(Refused, match="champion"):
        registry.remove(registration.model, there.version, there.mlflow_run_id, there.model_id)
    assert_there_once(client, registration, there)


def test_whatever_call_is_the_last_before_a_crash_the_next_removal_finishes_it(
    proxy: FaultyProxy,
    registry: MlflowRegistry,
    client: MlflowClient,
    registration: Registration,
    mlflow_server: Server,
) -> None:
    small = registration.bundle_dir.parent / "small"
    write(small, "MLmodel", "")
    registration = replace(registration, history=[], composed_dir=small)
    there = registry.register(registration)
    MlflowRegistry(proxy.url).remove(registration.model, there.version, there.mlflow_run_id, there.model_id)
    for call in range(1, len(proxy.requests) + 1):
        fresh = replace(registration, model=f"{registration.model}-{call}")
        there = registry.register(fresh)
        proxy.fail(call, Fault.DROP_REPLY)
        with pytest.raises(Unavailable):
            MlflowRegistry(proxy.url).remove(fresh.model, there.version, there.mlflow_run_id, there.model_id)
        registry.remove(fresh.model, there.version, there.mlflow_run_id, there.model_id)
        assert client.search_model_versions(f"name = '{fresh.model}'") == []
        assert client.list_artifacts(there.mlflow_run_id) == []
        assert client.get_run(there.mlflow_run_id).info.lifecycle_stage == "deleted"
