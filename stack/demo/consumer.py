"""The consumer of the demo: the example service as a process in an environment of its own, and callers who never stop asking."""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit

from headrace.warded import Warded
from uv import find_uv_bin

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "consumer"
CLIENT = ROOT / "clients" / "python" / "src"


class Consumer:
    """A copy of the example service under `place`; `build` makes its environment from the model's own locked requirements."""

    def __init__(self, place: Path, cache: Path) -> None:
        self.place = place
        self.models_toml = place / "models.toml"
        self.log = place / "service.log"
        self._cache = cache
        self._process: Warded | None = None
        shutil.copytree(EXAMPLE, place, ignore=shutil.ignore_patterns("__pycache__", "models", ".venv"))

    def build(self, model_repository: Path) -> None:
        uv, environment = find_uv_bin(), {**os.environ, "UV_CACHE_DIR": str(self._cache)}
        locked, python = self.place / "requirements.txt", self.place / ".venv" / "bin" / "python"
        steps = [
            [uv, "export", "--no-config", "--frozen", "--no-dev", "--no-emit-project", "--quiet", "--project", str(model_repository), "--output-file", str(locked)],
            [uv, "venv", "--no-config", "--quiet", "--python", sys.executable, str(self.place / ".venv")],
            [uv, "pip", "sync", "--no-config", "--quiet", "--require-hashes", "--python", str(python), str(locked)],
        ]  # fmt: skip
        for step in steps:
            subprocess.run(step, check=True, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)

    def start(self, port: int, api: str, token: str, secret: str) -> None:
        environment = {
            "PATH": "/usr/bin:/bin",
            "HOME": str(self.place),
            "PYTHONPATH": str(CLIENT),
            "PYTHONUNBUFFERED": "1",
            "HEADRACE_URL": api,
            "HEADRACE_TOKEN": token,
            "HEADRACE_HOOK_SECRET": secret,
        }
        argv = [str(self.place / ".venv" / "bin" / "python"), "service.py", "--port", str(port)]
        self._process = Warded.start(argv, log=self.log, cwd=self.place, env=environment)

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate(3.0)

    def diff(self) -> str:
        """The newest one-line change of models.toml, as the service printed it."""
        found = re.findall(r"models\.toml:\n(- .*\n\+ .*)\n", self.log.read_text() if self.log.exists() else "")
        return found[-1] if found else ""


class Callers:
    """Asks for predictions without a pause; knows when each version first answered, and what failed once the first model was there."""

    def __init__(self, url: str, row: dict[str, object]) -> None:
        self._address = urlsplit(url).netloc
        self._body = json.dumps({"rows": [row]}).encode()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="callers", daemon=True)
        self.first_answers: dict[int, float] = {}  # version → wall time
        self.version: int | None = None
        self.answered = 0
        self.failures: list[str] = []

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        connection = http.client.HTTPConnection(self._address, timeout=10)
        while not self._stop.wait(0.01):
            try:
                connection.request("POST", "/predict", self._body, {"Content-Type": "application/json"})
                answer = connection.getresponse()
                self._note(answer.status, answer.read())
            except (OSError, http.client.HTTPException) as error:
                connection.close()
                if self.version is not None:
                    self.failures.append(repr(error))
        connection.close()

    def _note(self, status: int, body: bytes) -> None:
        if status == 200:
            version = int(json.loads(body)["version"])
            self.answered += 1
            if version != self.version:
                self.first_answers.setdefault(version, time.time())
                self.version = version
        elif self.version is not None:
            self.failures.append(f"{status}: {body[:200]!r}")
