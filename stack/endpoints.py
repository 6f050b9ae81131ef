"""STATE/endpoints.json: where a running stack listens. It is there when all is healthy, and gone when the stack is."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

from stack.state import write_private

FILE = "endpoints.json"


@dataclass(frozen=True)
class Endpoints:
    """Addresses, the files with the secrets, and per process its pid and log. `supervisor` is the pid to stop it all by."""

    api: str
    mlflow: str
    flower: str
    redis: str
    token_file: str
    flower_user: str
    flower_password_file: str
    pids: dict[str, int]
    logs: dict[str, str]
    supervisor: int
    started_at: str

    @property
    def token(self) -> str:
        return Path(self.token_file).read_text(encoding="utf-8").strip()

    @property
    def started(self) -> datetime:
        return datetime.fromisoformat(self.started_at)


def write(endpoints: Endpoints, state: Path) -> None:
    """At once: a reader sees the old file, the new one or none, never half."""
    write_private(state / FILE, json.dumps(asdict(endpoints), indent=2) + "\n")


def remove(state: Path) -> None:
    (state / FILE).unlink(missing_ok=True)


def find(state: Path) -> Endpoints | None:
    """Of the stack on that directory; None when none has said that it is ready."""
    try:
        return Endpoints(**json.loads((state / FILE).read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
