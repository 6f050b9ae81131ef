"""A real S3 server for the tests: rclone over a directory, on loopback, with a key, restarted on its own port."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

from tests.servers import free_port

START_S = 20.0
BUCKET = "headrace-test"
_numbers = count(1)


@dataclass
class S3Server:
    """Objects are plain files `directory/data/BUCKET/KEY`; what a test does to them there is the fault that it plays.

    rclone remembers what lies there: restart it after an alteration (with `--dir-cache-time 0s` it hangs on objects of some megabytes).
    """

    directory: Path
    port: int
    process: subprocess.Popen[bytes]
    bucket: str = BUCKET
    key: str = "TESTKEY"
    secret: str = field(default="test-secret", repr=False)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def environment(self) -> Mapping[str, str]:
        """What boto3 needs to reach it, by its own variables."""
        return {
            "AWS_ACCESS_KEY_ID": self.key,
            "AWS_SECRET_ACCESS_KEY": self.secret,
            "AWS_ENDPOINT_URL_S3": self.url,
            "AWS_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        }

    def new_url(self, name: str = "test") -> str:
        """The URL of a place of one's own in the bucket."""
        clean = re.sub(r"[^a-z0-9]+", "-", name.lower())[:60]
        return f"s3://{self.bucket}/{clean}-{os.getpid()}-{next(_numbers)}"

    def files(self, url: str) -> Path:
        """Where the objects below the `s3://` URL lie as files."""
        return self.directory / "data" / url.removeprefix("s3://")

    def stop(self) -> None:
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        self._end(signal.SIGKILL)

    def start(self) -> None:
        """Come back on the same port with every object that was stored; uploads in parts that were under way are gone."""
        self.process = _start(self.directory, self.port, self.key, self.secret)

    def restart(self) -> None:
        self.stop()
        self.start()

    def _end(self, number: signal.Signals) -> None:
        if self.process.poll() is None:
            os.kill(self.process.pid, number)
        self.process.wait(timeout=15)


def start_s3(directory: Path, port: int | None = None) -> S3Server:
    (directory / "data" / BUCKET).mkdir(parents=True, exist_ok=True)
    port = port or free_port()
    return S3Server(directory, port, _start(directory, port, S3Server.key, "test-secret"))


def _start(directory: Path, port: int, key: str, secret: str) -> subprocess.Popen[bytes]:
    binary = shutil.which("rclone", path=str(Path(sys.executable).parent)) or "rclone"
    argv = [binary, "serve", "s3", "--addr", f"127.0.0.1:{port}", "--config", os.devnull, str(directory / "data")]
    environment = {"PATH": os.defpath, "HOME": str(directory), "RCLONE_AUTH_KEY": f'"{key},{secret}"'}
    with (directory / "rclone.log").open("ab") as log:
        process = subprocess.Popen(argv, env=environment, stdout=log, stderr=log, start_new_session=True)
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.02)  # the condition's own pace
        else:
            return process
    process.kill()
    process.wait()
    raise RuntimeError("rclone did not come up:\n" + (directory / "rclone.log").read_text(errors="replace")[-2000:])
