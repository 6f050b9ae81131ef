"""`python -m stack up`, from outside: what it starts, what it writes, and that nothing is left of it."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import signal
import stat
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

ROOT = Path(__file__).parents[2]
UP_S = 90.0
SOON_S = 30.0
ADDRESSES = ("api", "mlflow", "flower", "redis")
OURS = {"api", "watcher", "bridge", "trainer-standard"}
T = TypeVar("T")

pytestmark = pytest.mark.timeout(300)


class Up:
    """A started `python -m stack up` on a state and a configuration."""

    def __init__(self, directory: Path) -> None:
        self.state, self.config = directory / "state", directory / "headrace.toml"
        self.output = directory / "output"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> subprocess.Popen[bytes]:
        argv = [sys.executable, "-m", "stack", "up", "--config", str(self.config), "--state", str(self.state)]
        environment = {key: value for key, value in os.environ.items() if not key.startswith("HEADRACE_")}
        with self.output.open("ab") as output:
            self.process = subprocess.Popen(argv, cwd=ROOT, env=environment, stdout=output, stderr=output)
        return self.process

    def ready(self) -> dict[str, Any]:
        process = self.process or self.start()
        wait_for(
            lambda: process.poll() is not None or self.endpoints().get("supervisor") == process.pid, UP_S, self.said
        )
        assert process.poll() is None, self.said()
        return self.endpoints()

    def endpoints(self) -> dict[str, Any]:
        file = self.state / "endpoints.json"
        return dict(json.loads(file.read_text())) if file.exists() else {}

    def said(self) -> str:
        return self.output.read_text()

    def end(self, number: signal.Signals) -> int:
        assert self.process
        self.process.send_signal(number)
        return self.process.wait(timeout=60)


@pytest.fixture(scope="module")
def shared_up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """One stack for the tests that leave it running."""
    up = Up(tmp_path_factory.mktemp("up"))
    up.ready()
    yield up
    if up.process and up.process.poll() is None:
        up.end(signal.SIGTERM)


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Up]:
    up = Up(tmp_path)
    yield up
    if up.process and up.process.poll() is None:
        up.process.kill()
        up.process.wait()


def test_it_starts_without_a_configuration_and_says_where_everything_listens(shared_up: Up) -> None:
    told = shared_up.endpoints()
    assert OURS | {"valkey", "mlflow", "flower"} == set(told["pids"]) == set(told["logs"])
    assert all(alive(pid) for pid in told["pids"].values())
    assert all(Path(log).exists() for log in told["logs"].values())
    assert get(told["api"] + "/readyz")[0] == 200
    assert get(told["mlflow"] + "/health")[0] == 200
    assert shared_up.config.exists()
    assert f"wrote {shared_up.config}" in shared_up.said()
    assert told["api"] in shared_up.said()


def test_the_operators_token_opens_the_api_and_its_files_are_the_operators_alone(shared_up: Up) -> None:
    told = shared_up.endpoints()
    token = Path(told["token_file"]).read_text().strip()
    assert get(told["api"] + "/v1/models")[0] == 401
    assert get(told["api"] + "/v1/models", f"Bearer {token}")[0] == 200
    secret = [
        told["token_file"],
        told["flower_password_file"],
        shared_up.state / "settings.json",
        shared_up.state / "endpoints.json",
    ]
    assert all(stat.S_IMODE(Path(file).stat().st_mode) == 0o600 for file in secret)
    assert stat.S_IMODE(shared_up.state.stat().st_mode) == 0o700


def test_flower_asks_for_the_password_and_shows_the_workers(shared_up: Up) -> None:
    told = shared_up.endpoints()
    password = Path(told["flower_password_file"]).read_text().strip()
    basic = "Basic " + base64.b64encode(f"{told['flower_user']}:{password}".encode()).decode()
    assert get(told["flower"] + "/api/workers?refresh=1")[0] == 401
    workers = wait_for(lambda: json.loads(get(told["flower"] + "/api/workers?refresh=1", basic)[1]), SOON_S)
    assert {name.partition("@")[0] for name in workers} <= {"bridge", "trainer-standard"}


def test_the_client_finds_it_by_its_state(shared_up: Up) -> None:
    headrace = [Path(sys.executable).with_name("headrace"), "status", "--json"]
    environment = {"PATH": os.environ["PATH"], "HEADRACE_STATE": str(shared_up.state)}
    done = subprocess.run(headrace, env=environment, capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["models"] == []


def test_all_of_it_listens_on_loopback_alone(shared_up: Up) -> None:
    told = shared_up.endpoints()
    ports = {int(told[name].rpartition(":")[2]) for name in ADDRESSES}
    listening = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    addresses = {(words[1].split(":")[0], int(words[1].split(":")[1], 16)) for words in listening if words[3] == "0A"}
    assert {address for address, port in addresses if port in ports} == {"0100007F"}
    assert ports <= {port for _, port in addresses}


@pytest.mark.parametrize(
    "source", ["file:///etc", "/etc", "models:/m-1/../../etc", "mlflow-artifacts:/../../etc", "s3://b/x"]
)
def test_mlflow_takes_no_version_whose_files_lie_elsewhere(shared_up: Up, source: str) -> None:
    """Such a version would read the server's own files to whoever asks."""
    address = shared_up.endpoints()["mlflow"] + "/api/2.0/mlflow/"
    post(address + "registered-models/create", {"name": "foreign"})
    status, said = post(address + "model-versions/create", {"name": "foreign", "source": source})
    assert status == 400, said


def test_mlflow_runs_no_jobs(shared_up: Up) -> None:
    """The routes of its job server ask for no password."""
    jobs = f"{shared_up.endpoints()['mlflow']}/ajax-api/3.0/jobs/"
    assert post(jobs, {"job_name": "os.system", "params": {}})[0] >= 400
    assert json.loads(post(f"{jobs}search", {})[1]) == {"jobs": []}


def test_no_process_of_it_listens_anywhere_else(shared_up: Up) -> None:
    """By the sockets that its processes hold, on whatever port: nothing is reached from outside, and nothing listens that nobody knows of."""
    held = set()
    for pid in family_of(shared_up.endpoints()["pids"].values()):
        for path in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                held |= set(re.findall(r"socket:\[(\d+)\]", os.readlink(path)))
    listening = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == "0A" and words[9] in held:
                listening.add((words[1].split(":")[0], int(words[1].split(":")[1], 16)))
    told = shared_up.endpoints()
    assert {address for address, _ in listening} == {"0100007F"}
    assert {port for _, port in listening} == {int(told[name].rpartition(":")[2]) for name in ADDRESSES}


def test_no_secret_stands_on_a_command_line(shared_up: Up) -> None:
    told = shared_up.endpoints()
    redis = re.findall(r"redis://:([^@]+)@", (shared_up.state / "settings.json").read_text())
    secrets = [
        *redis,
        Path(told["flower_password_file"]).read_text().strip(),
        Path(told["token_file"]).read_text().strip(),
    ]
    lines = "\n".join(Path(f"/proc/{pid}/cmdline").read_text() for pid in family_of(told["pids"].values()))
    assert "valkey-server" in lines
    assert len(secrets) == 3
    assert not any(secret in lines for secret in secrets)


def test_a_second_one_on_the_same_state_is_refused_and_disturbs_nothing(shared_up: Up) -> None:
    before = shared_up.endpoints()
    second = Up(shared_up.config.parent)
    second.output = shared_up.output.with_name("second")
    assert second.start().wait(timeout=30) == 1
    assert f"pid {before['supervisor']}" in second.said()
    assert "choose another STATE" in second.said()
    assert shared_up.endpoints() == before
    assert get(before["api"] + "/readyz")[0] == 200


@pytest.mark.parametrize("name", ["valkey", "watcher", "trainer-standard"])
def test_what_is_killed_is_started_again(shared_up: Up, name: str) -> None:
    before = shared_up.endpoints()
    os.kill(before["pids"][name], signal.SIGKILL)
    wait_for(
        lambda: shared_up.endpoints()["pids"].get(name) not in (None, before["pids"][name]), SOON_S, shared_up.said
    )
    after = shared_up.endpoints()
    assert alive(after["pids"][name])
    assert (after["api"], after["redis"]) == (before["api"], before["redis"])
    assert f"{name} ended (killed by SIGKILL)" in shared_up.said()


def test_a_wrong_configuration_is_told_with_its_line_and_a_right_one_starts_its_trainer(shared_up: Up) -> None:
    shared_up.config.write_text("[compute_classes.gpu]\nslots = 1\nslotz = 2\n")
    wait_for(lambda: f"{shared_up.config}:3:" in shared_up.said(), SOON_S, shared_up.said)
    assert "trainer-gpu" not in shared_up.endpoints()["pids"]
    shared_up.config.write_text("[compute_classes.standard]\n[compute_classes.gpu]\nslots = 1\n")
    wait_for(lambda: "trainer-gpu" in shared_up.endpoints()["pids"], SOON_S, shared_up.said)


def test_what_does_not_come_up_is_told_with_the_end_of_its_log_and_all_is_stopped(up: Up) -> None:
    (up.state / "redis").mkdir(parents=True)
    (up.state / "redis" / "appendonlydir").write_text("in the way")
    assert up.start().wait(timeout=UP_S) == 1
    assert re.search(r"(?m)^valkey ended \(exit code 1\).*valkey\.log", up.said())
    assert re.search(r"(?m)^  \| .*append-only dir", up.said())
    assert not (up.state / "endpoints.json").exists()
    assert not [pid for pid in everyone() if str(up.state) in command(pid)]


def test_a_taken_port_is_refused_by_its_key_before_anything_starts(up: Up, shared_up: Up) -> None:
    port = shared_up.endpoints()["api"].rpartition(":")[2]
    up.config.write_text(f"[stack]\napi_port = {port}\n")
    assert up.start().wait(timeout=30) == 1
    assert f"port {port} cannot be had" in up.said()
    assert "api_port under [stack]" in up.said()
    assert "is up" not in up.said()


def test_nothing_outlives_a_killed_supervisor_and_the_next_one_takes_over_and_stops_cleanly(shared_up: Up) -> None:
    """The last one, for it ends the stack of all."""
    up, first = shared_up, shared_up.endpoints()
    token = Path(first["token_file"]).read_text()
    processes = family_of(first["pids"].values())
    assert len(processes) >= 2 * len(first["pids"]), "a warden for each"
    up.end(signal.SIGKILL)
    wait_for(lambda: not any(alive(pid) for pid in processes), SOON_S)

    up.start()
    second = up.ready()
    assert {name: second[name] for name in ADDRESSES} == {name: first[name] for name in ADDRESSES}
    assert Path(second["token_file"]).read_text() == token
    assert get(second["api"] + "/v1/models", f"Bearer {token.strip()}")[0] == 200
    processes = family_of(second["pids"].values())
    assert up.end(signal.SIGTERM) == 0
    assert not any(alive(pid) for pid in processes)
    assert not (up.state / "endpoints.json").exists()


def post(url: str, body: object) -> tuple[int, str]:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def get(url: str, authorization: str | None = None) -> tuple[int, str]:
    request = urllib.request.Request(url, headers={"Authorization": authorization} if authorization else {})
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def wait_for(condition: Callable[[], T], limit_s: float, said: Callable[[], str] = str) -> T:
    deadline = time.monotonic() + limit_s
    while not (found := condition()):
        assert time.monotonic() < deadline, f"waited in vain; it said:\n{said()}"
        time.sleep(0.05)
    return found


def alive(pid: int) -> bool:
    """Whether the process runs; one that only waits to be reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] not in "ZX"
    except OSError:
        return False


def family_of(pids: Any) -> list[int]:
    """These processes with their wardens and all that the wardens are above."""
    parents = {pid: parent(pid) for pid in everyone()}
    family = {parents[pid] for pid in pids}
    while more := {pid for pid, above in parents.items() if above in family} - family:
        family |= more
    return sorted(family)


def everyone() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()[1])
    except OSError:
        return 0


def command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return ""
