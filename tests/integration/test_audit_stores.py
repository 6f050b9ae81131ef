"""MLflow, blob store, Redis and processes held against a ledger: real servers, in which each kind of fault is planted and told; and the command."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from services.registry_bridge.mlflow_rest import MlflowRest
from shared.audit import Violation
from shared.blobs import Blobs, DiskBlobs, make_blobs, store_tree
from shared.clock import SystemClock
from shared.gates import Decision, Verdict
from shared.ledger import Ledger, attempts, deliveries, planning, versions
from shared.manifest import read_tree
from shared.points import Point
from shared.settings import Settings
from stack.audit import Report, audit
from tests import audited, ledgers
from tests.forks import Forks
from tests.ledgers import CONFIG, HandClock
from tests.redis_server import Valkey, start_valkey
from tests.s3_server import S3Server
from tests.servers import Server, free_port, start_mlflow

PLANTED = Point("a hand that is not ours")


@dataclass
class Live:
    """A ledger with what it speaks of in real stores: model `name` has version 1, which serves, and 2, which was rejected."""

    ledger: Ledger
    settings: Settings
    mlflow: MlflowRest
    blobs: Blobs
    name: str
    place: Path
    experiment: str = ""

    def train(self, decision: Decision) -> int:
        """A run with its bundle, its version here and in MLflow, and its verdict; the number."""
        with self.ledger.write() as tx:
            run = planning.ask(tx, self.name, "somebody asks", again=True)
        claimed = ledgers.claim(self.ledger, run)
        assert claimed is not None
        ledgers.finish(self.ledger, claimed, self.store(f"bundle {run}"))
        with self.ledger.write() as tx:
            token = versions.begin_registration(tx, run, timedelta(minutes=5))
        number, mlflow_run = self.register(run, token)
        digest = self.store(f"version {run}")
        with self.ledger.write() as tx:
            versions.registered(tx, run, number, digest, mlflow_run, f"m-{run}")
            row, champion = versions.find(tx, self.name, number), versions.champion(tx, self.name)
        with self.ledger.write() as tx:
            versions.decide(tx, row, champion, Verdict(decision, ("auc: passes",)), "sha256:h", automatic=True)
        self.follow()
        return number

    def follow(self) -> None:
        with self.ledger.write() as tx:
            intended = versions.claim_intent(tx, self.name, timedelta(minutes=1))
        if intended is not None:
            self.alias(intended.number)
            with self.ledger.write() as tx:
                versions.served(tx, intended)

    def alias(self, number: int) -> None:
        self.mlflow.post(
            PLANTED, "registered-models/alias", {"name": self.name, "alias": "champion", "version": str(number)}
        )

    def register(self, run: int, token: int | None, name: str = "") -> tuple[int, str]:
        """A version in MLflow as the bridge leaves one; its number and its MLflow run."""
        tags = [{"key": "headrace.run", "value": str(run)}, {"key": "headrace.token", "value": str(token)}]
        made = self.mlflow.post(PLANTED, "runs/create", {"experiment_id": self.experiment, "tags": tags})["run"][
            "info"
        ]["run_id"]
        model = {"experiment_id": self.experiment, "name": "model", "source_run_id": made}
        logged = self.mlflow.post(PLANTED, "logged-models", model)["model"]["info"]["model_id"]
        body = {
            "name": name or self.name,
            "source": f"models:/{logged}",
            "model_id": logged,
            "run_id": made,
            "tags": tags,
        }
        found = self.mlflow.post(PLANTED, "model-versions/create", body)["model_version"]
        return int(found["version"]), made

    def store(self, text: str) -> str:
        root = self.place / text
        root.mkdir(parents=True)
        (root / "weights").write_text(text)
        (root / "same.py").write_text("the same in each")
        manifest = read_tree(root)
        store_tree(self.blobs, root, manifest)
        self.blobs.put_bytes(manifest.canonical())
        return manifest.digest

    def plant(self, statement: str) -> None:
        """Behind the back of the transitions."""
        with self.ledger.engine.begin() as connection:
            connection.exec_driver_sql(statement)

    def digest(self, number: int) -> str:
        with self.ledger.read() as tx:
            return str(versions.find(tx, self.name, number).digest).removeprefix("sha256:")

    def look(self, *, deep: bool = False) -> Report:
        with self.ledger.write() as tx:
            for one in deliveries.claim_due(tx, timedelta(seconds=30), 100):
                deliveries.delivered(tx, one.id, 204)
        return audit(self.settings, deep=deep, pause_s=0)

    def told(self, invariant: str, *, deep: bool = False) -> list[Violation]:
        report = self.look(deep=deep)
        assert not report.unread
        return report.of(invariant)


@pytest.fixture(scope="module")
def mlflow_alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server without other tests' models, which would be told: no ledger of ours knows them."""
    server = start_mlflow(tmp_path_factory.mktemp("mlflow"))
    yield server
    server.stop()


@pytest.fixture(scope="module")
def valkey_alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    server = start_valkey(tmp_path_factory.mktemp("valkey"))
    yield server
    server.stop()


@pytest.fixture(params=["disk", "s3"])
def blobs_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "disk":
        return (tmp_path / "blobs").as_uri()
    server: S3Server = request.getfixturevalue("s3")
    return server.new_url("blobs")


@pytest.fixture
def live(ledger_file: Path, mlflow_alone: Server, valkey_alone: Valkey, tmp_path: Path) -> Iterator[Live]:
    yield from make_live(ledger_file, mlflow_alone, valkey_alone, tmp_path, (tmp_path / "blobs").as_uri())


def make_live(
    ledger_file: Path, mlflow_alone: Server, valkey_alone: Valkey, tmp_path: Path, blobs_url: str
) -> Iterator[Live]:
    name = f"audited-{uuid.uuid4().hex[:10]}"
    settings = Settings(
        state_dir=tmp_path / "state",
        ledger_url=f"sqlite:///{ledger_file}",
        redis_url=valkey_alone.url,
        mlflow_url=mlflow_alone.url,
        blobs_url=blobs_url,
        logs_url=(tmp_path / "logs").as_uri(),
    )
    clock = HandClock(SystemClock().now() - timedelta(hours=1))
    ledger = Ledger(settings.ledger_url, clock)
    mlflow = MlflowRest(mlflow_alone.url)
    live = Live(ledger, settings, mlflow, make_blobs(blobs_url), name, tmp_path / "trees")
    ledgers.put_config(ledger, CONFIG.replace("delays", name))
    live.experiment = mlflow.post(PLANTED, "experiments/create", {"name": name})["experiment_id"]
    mlflow.post(PLANTED, "registered-models/create", {"name": name})
    ledgers.adopt(ledger, name)
    ledgers.grow(ledger)
    live.train(Decision.PROMOTE)
    live.train(Decision.REJECT)
    ledger.go_by(SystemClock())
    audited.attend(ledger)
    yield live
    ledger.close()
    mlflow.delete(PLANTED, "registered-models/delete", {"name": name})


def only(found: list[Violation]) -> Violation:
    assert len(found) == 1, [one.what for one in found]
    assert len(found[0].do) > 20
    return found[0]


def test_stores_that_agree_with_the_ledger_are_clean_and_were_looked_at(live: Live) -> None:
    report = live.look(deep=True)
    assert (report.exit_code, report.violations, report.unread) == (0, [], ())
    assert report.looked("I6") == {
        "versions": 2, "trained runs without a version yet": 0, "versions in MLflow": 2, "runs in MLflow": 2,
    }  # fmt: skip
    assert report.looked("I7")["aliases"] == 1
    assert report.looked("blobs") == {"manifests": 4, "files": 5}


def test_an_alias_that_somebody_moved_is_told(live: Live) -> None:
    live.alias(2)
    told = only(live.told("I7"))
    assert (told.kind, told.ids) == ("alias", {"model": live.name, "mlflow": 2, "ledger": 1})


def test_a_version_that_mlflow_has_lost_is_told_unless_it_was_tidied(live: Live) -> None:
    live.mlflow.delete(PLANTED, "model-versions/delete", {"name": live.name, "version": "2"})
    told = only(live.told("I6"))
    assert (told.kind, told.ids["version"]) == ("not_in_mlflow", 2)
    live.plant("UPDATE version SET tidied_at = registered_at WHERE number = 2")
    assert not live.told("I6")


def test_a_second_version_of_a_run_is_told_with_its_mlflow_run(live: Live) -> None:
    number, _ = live.register(1, 1)
    told = {one.kind: one for one in live.told("I6")}
    assert set(told) == {"second_version", "second_run"}
    assert told["second_version"].ids == {"model": live.name, "version": number, "run": 1}


def test_versions_of_runs_that_the_ledger_does_not_know_are_told_also_under_an_unknown_name(live: Live) -> None:
    stranger = f"{live.name}-gone"
    live.mlflow.post(PLANTED, "registered-models/create", {"name": stranger})
    try:
        live.register(77, 1)
        live.register(78, 1, name=stranger)
        told = [one for one in live.told("I6") if "version" in one.ids]
        assert {(one.kind, one.ids["model"], one.ids["run"]) for one in told} >= {
            ("unknown_run", live.name, 77),
            ("unknown_run", stranger, 78),
        }
    finally:
        live.mlflow.delete(PLANTED, "registered-models/delete", {"name": stranger})


def test_a_version_of_a_run_that_was_not_trained_is_an_orphan_and_one_that_is_being_registered_is_not(
    live: Live,
) -> None:
    with live.ledger.write() as tx:
        run = planning.ask(tx, live.name, "somebody asks", again=True)
    live.register(run, 1)
    assert {one.kind for one in live.told("I6")} == {"orphan"}
    claimed = ledgers.claim(live.ledger, run)
    assert claimed is not None
    ledgers.finish(live.ledger, claimed, live.store("the third"))
    with live.ledger.write() as tx:
        assert versions.begin_registration(tx, run, timedelta(minutes=5)) == 1
    assert not live.told("I6")


def test_a_token_that_the_ledger_never_gave_is_told(live: Live) -> None:
    live.plant("UPDATE run SET registrations = 0 WHERE id = 2")
    assert {(one.kind, one.ids["run"]) for one in live.told("I5")} == {("registration_token", 2)}


def test_versions_of_other_people_are_none_of_ours(live: Live) -> None:
    run = live.mlflow.post(PLANTED, "runs/create", {"experiment_id": live.experiment})["run"]["info"]["run_id"]
    model = {"experiment_id": live.experiment, "name": "by-hand", "source_run_id": run}
    logged = live.mlflow.post(PLANTED, "logged-models", model)["model"]["info"]["model_id"]
    body = {"name": live.name, "source": f"models:/{logged}", "model_id": logged, "run_id": run}
    live.mlflow.post(PLANTED, "model-versions/create", body)
    report = live.look()
    assert not report.violations
    assert report.looked("I6")["versions in MLflow that are not ours"] == 1


def test_files_that_are_missing_cut_or_damaged_are_told_with_whose_they_are(
    ledger_file: Path, mlflow_alone: Server, valkey_alone: Valkey, tmp_path: Path, blobs_url: str
) -> None:
    making = make_live(ledger_file, mlflow_alone, valkey_alone, tmp_path, blobs_url)
    live = next(making)
    assert not live.told("blobs", deep=True)
    files = {file.path: file for file in read_tree(live.place / "version 1").files}
    live.blobs.remove(files["weights"].sha256)
    told = only(live.told("blobs"))
    assert (told.kind, told.ids["run"], told.ids["sha256"]) == ("file", 1, files["weights"].sha256)
    live.blobs.put_bytes(b"version 1")
    assert not live.told("blobs")
    live.blobs.remove(live.digest(2))
    told = only(live.told("blobs"))
    assert (told.kind, told.ids["run"]) == ("manifest", 2)
    next(making, None)


def test_a_file_of_another_size_is_told_and_one_with_other_bytes_when_it_is_read(live: Live, tmp_path: Path) -> None:
    assert isinstance(live.blobs, DiskBlobs)
    sha256 = read_tree(live.place / "bundle 2").files[-1].sha256
    path = tmp_path / "blobs" / sha256[:2] / sha256[2:4] / sha256
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    assert "bytes, not" in only(live.told("blobs")).what
    path.write_bytes(whole[:-1] + b"?")
    assert not live.told("blobs")
    assert "damaged" in only(live.told("blobs", deep=True)).what


def test_a_blob_store_is_read_without_a_trace(live: Live, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "blobs" / "tmp")
    live.look(deep=True)
    assert not (tmp_path / "blobs" / "tmp").exists()


def test_a_storm_in_redis_is_told_and_a_few_messages_are_not(live: Live, valkey_alone: Valkey) -> None:
    for _ in range(30):
        valkey_alone.command("RPUSH", "train.standard", "ring")
    try:
        assert not live.told("I9")
        for _ in range(100):
            valkey_alone.command("RPUSH", "train.standard", "ring")
        told = only(live.told("I9"))
        assert (told.kind, told.ids) == ("storm", {"queue": "train.standard"})
    finally:
        valkey_alone.command("DEL", "train.standard")


def test_very_many_keys_in_redis_are_told(live: Live, valkey_alone: Valkey) -> None:
    made = [f"left-{number}" for number in range(1200)]
    valkey_alone.command("MSET", *(word for key in made for word in (key, "x")))
    try:
        assert only(live.told("I9")).kind == "keys"
    finally:
        valkey_alone.command("DEL", *made)


def test_a_process_of_an_attempt_that_has_ended_is_told_and_one_of_another_stack_is_not(live: Live) -> None:
    scratch = live.settings.state_dir / "trainer" / "scratch"
    children = [
        subprocess.Popen(["sleep", "60"], env={"HEADRACE_RUN_ID": "2", "HOME": f"{place}/2-1/home"})
        for place in (scratch, "/elsewhere/trainer/scratch")
    ]
    try:
        told = only(live.told("I9"))
        assert told.ids == {"pid": children[0].pid, "run": 2, "attempt": 1}
    finally:
        for child in children:
            child.kill()
            child.wait()


def test_a_process_of_the_attempt_that_goes_on_is_no_violation(live: Live) -> None:
    with live.ledger.write() as tx:
        run = planning.ask(tx, live.name, "somebody asks", again=True)
        assert attempts.claim(tx, run, "w1", timedelta(minutes=1)) is not None
    home = live.settings.state_dir / "trainer" / "scratch" / f"{run}-1" / "home"
    child = subprocess.Popen(["sleep", "60"], env={"HEADRACE_RUN_ID": str(run), "HOME": str(home)})
    try:
        assert not live.told("I9")
    finally:
        child.kill()
        child.wait()


# The command.


@dataclass(frozen=True)
class Done:
    returncode: int
    stdout: str
    stderr: str


@pytest.fixture(scope="module")
def forks() -> Iterator[Forks]:
    forks = Forks("stack.audit.command")
    yield forks
    forks.stop()


Command = Callable[..., Done]


@pytest.fixture
def command(forks: Forks, tmp_path: Path) -> Command:
    """`python -m stack audit`, and what it said."""

    def command(settings: Settings, *words: str, **changed: str) -> Done:
        told = {f"HEADRACE_{key.upper()}": str(value) for key, value in settings.model_dump(exclude_none=True).items()}
        kept = {key: value for key, value in os.environ.items() if not key.startswith("HEADRACE_")}
        said, cried = (tmp_path / f"{name}-{len(list(tmp_path.iterdir()))}" for name in ("stdout", "stderr"))
        argv = ["stack", "audit", "--pause", "0", *words]
        code = forks.start(argv, kept | told | changed, said, cried).wait(60)
        return Done(code, said.read_text(), cried.read_text())

    return command


def test_the_command_says_what_it_looked_at_and_exits_with_0(live: Live, command: Command) -> None:
    live.look()
    done = command(live.settings)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 versions in MLflow" in done.stdout
    assert "All is as it must be" in done.stdout
    assert command(live.settings, "--quiet").stdout == ""


def test_the_command_exits_with_1_and_names_each_violation_and_what_to_do(live: Live, command: Command) -> None:
    live.look()
    live.alias(2)
    done = command(live.settings)
    assert done.returncode == 1
    assert f"of {live.name} names version 2, but version 1 is champion" in done.stdout
    assert "→ the bridge puts it right within a minute" in done.stdout
    report: dict[str, Any] = json.loads(command(live.settings, "--json").stdout)
    violated = [one for one in report["invariants"] if one["state"] == "violated"]
    assert [(one["name"], one["violations"][0]["kind"]) for one in violated] == [("I7", "alias")]


@pytest.mark.parametrize(
    ("variable", "what"),
    [("HEADRACE_MLFLOW_URL", "MLflow"), ("HEADRACE_REDIS_URL", "Redis"), ("HEADRACE_BLOBS_URL", "the blob store")],
)
def test_the_command_exits_with_2_where_a_server_is_away_and_says_which(
    live: Live, command: Command, variable: str, what: str
) -> None:
    live.look()
    kind = {"MLflow": "http", "Redis": "redis"}.get(what)
    done = command(
        live.settings, **{variable: f"{kind}://127.0.0.1:{free_port()}" if kind else "file:///nowhere/blobs"}
    )
    assert done.returncode == 2, done.stdout
    assert f"not looked at: {what}" in done.stdout


def test_without_a_ledger_the_command_exits_with_2_and_makes_none(live: Live, command: Command, tmp_path: Path) -> None:
    nowhere = tmp_path / "other.db"
    done = command(live.settings, HEADRACE_LEDGER_URL=f"sqlite:///{nowhere}")
    assert done.returncode == 2
    assert "there is no ledger" in done.stdout
    assert not nowhere.exists()


def test_a_ledger_of_another_schema_is_not_judged(live: Live, command: Command) -> None:
    live.plant("UPDATE alembic_version SET version_num = 'future'")
    done = command(live.settings)
    assert done.returncode == 2
    assert "schema future" in done.stdout


def test_an_audit_writes_nothing_into_the_ledger(live: Live, command: Command) -> None:
    live.look()
    changes = live.ledger.watch()
    changes.poll()
    assert command(live.settings, "--deep").returncode == 0
    assert not changes.poll()
    changes.close()
