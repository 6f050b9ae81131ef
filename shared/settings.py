"""What a process is told about its surroundings: one file or the environment, read here and nowhere else.

A file named by HEADRACE_SETTINGS (JSON, mode 0600) holds the settings; a variable HEADRACE_<NAME> overrides one.
Secrets do not stay where a child of the same user could read them: `hide` blanks in the C environment what looks like one, so that
/proc/PID/environ no longer shows it (Python's own copy stays, which boto3 reads too), and closes this process's memory to others of its user.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import socket
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from shared.errors import ConfigurationError

FILE = "HEADRACE_SETTINGS"
_SECRET = re.compile(r"_URLS?$|_URI$|_DSN$|_SECRET|_PASSWORD|_TOKEN|_KEY|_CREDENTIAL|_AUTH", re.IGNORECASE)
_HOLDS_PASSWORD = re.compile(r"://[^/@\s]*:[^/@\s]+@")
_PR_SET_DUMPABLE = 4


class Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    state_dir: Path = Field(
        description="where this process keeps its own files: mirrors, checkouts, environments, scratch"
    )
    ledger_url: str = Field(description="SQLAlchemy URL of the ledger")
    redis_url: str = Field(description="URL of the Celery broker")
    mlflow_url: str = Field(default="http://127.0.0.1:5000", description="MLflow's tracking server")
    blobs_url: str = Field(description="where bundles are kept: file:///… or s3://bucket/prefix")
    logs_url: str = Field(description="where run logs are kept: file:///… or s3://bucket/prefix")
    api_host: str = Field(default="127.0.0.1")
    api_port: int = Field(default=8080, ge=0, le=65535)
    index_url: str | None = Field(
        default=None, description="the package index that models are installed from; uv's default without it"
    )
    extra_index_urls: str | None = Field(
        default=None,
        description="further package indexes, asked before that one, in this order: URLs with a comma or a space between",
    )
    python_downloads: bool = Field(
        default=False,
        description="whether uv fetches a Python that a model asks for and this machine has not",
    )
    constraints: Path | None = Field(
        default=None,
        description="a file of constraints (numpy<3, one a line) that hold for the packages of every model",
    )
    lease_s: float = Field(
        default=30.0, gt=0, description="seconds after which a silent worker's run may be claimed by another"
    )
    heartbeat_s: float = Field(
        default=10.0, gt=0, description="seconds between two heartbeats; at most a third of the lease"
    )
    look_s: float = Field(default=3.0, gt=0, description="seconds between two looks of a free worker into the ledger")
    patience_s: float = Field(
        default=60.0,
        ge=0,
        description="seconds that a process waits at its start for a ledger that comes up or is migrated",
    )
    compute_class: str = Field(default="standard", description="the compute class that this trainer serves")
    slots: int = Field(default=1, ge=1, description="runs that this trainer takes at once")
    grace_s: float = Field(
        default=5.0,
        ge=1,
        le=3600,
        description="seconds that a training which keeps checkpoints has to come to its next one when it must stop; what stops this process must wait for longer",
    )
    gpus: str | None = Field(
        default=None,
        description="the GPUs that this trainer hands out, as CUDA_VISIBLE_DEVICES names them: 0,1; all that it sees without it",
    )
    warm_parents: int | None = Field(
        default=None,
        ge=0,
        description="processes with a model's imports done that this trainer keeps at most, for attempts to be forks of; 0: none; without it two a slot, and none for attempts with GPUs",
    )
    child_uids: str | None = Field(
        default=None,
        pattern=r"^[1-9][0-9]{3,9}(-[1-9][0-9]{3,9})?$",
        description="user ids such as 200000-200031 that nobody else has: a trainer that runs as root gives each model's code one of them",
    )
    api_requests_per_s: float = Field(
        default=100.0,
        ge=0,
        description="requests a second that one token may make, in bursts of ten times that; 0: any",
    )
    process: str = Field(default="headrace", description="the name of this process in logs and leases")

    @property
    def worker(self) -> str:
        """A name for this very process: no two live processes share it."""
        return f"{self.process}@{socket.gethostname()}:{os.getpid()}"

    def announce_ready(self) -> None:
        """Tell the supervisor that this process has verified what it needs: a file with its pid."""
        ready = self.state_dir / "ready"
        ready.mkdir(parents=True, exist_ok=True)
        draft = ready / f".{self.process}.{os.getpid()}"
        draft.write_text(str(os.getpid()))
        draft.replace(ready / self.process)


def load(environ: Mapping[str, str] | None = None) -> Settings:
    """The settings of this process; raises `ConfigurationError` naming every one that is wrong."""
    environ = os.environ if environ is None else environ
    values: dict[str, Any] = {}
    if path := environ.get(FILE):
        try:
            values = json.loads(Path(path).read_text())
        except (OSError, ValueError) as error:
            raise ConfigurationError(
                f"the settings cannot be read ({error}); {FILE} must name a JSON file", file=path
            ) from error
    for name in Settings.model_fields:
        if (value := environ.get(f"HEADRACE_{name.upper()}")) is not None:
            values[name] = value
    try:
        settings = Settings.model_validate(values)
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
        raise ConfigurationError(f"settings: {wrong} (set HEADRACE_<NAME> or the key in the file of {FILE})") from error
    if settings.heartbeat_s * 3 > settings.lease_s:
        raise ConfigurationError(
            f"heartbeat_s = {settings.heartbeat_s} is too long for lease_s = {settings.lease_s}: at most a third of it"
        )
    if environ is os.environ:
        hide()
    return settings


def hide(also: Iterable[str] = ()) -> None:
    """Blank what looks like a secret, by its name or for a password in it, and `also`, for readers of /proc; a child gets what it is handed."""
    _hide([name for name, value in os.environ.items() if _SECRET.search(name) or _HOLDS_PASSWORD.search(value)])
    _hide(also)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def resolve(reference: str) -> str:
    """The value behind `env:NAME`, or the text itself; raises `ConfigurationError` naming a variable that is not set."""
    if not reference.startswith("env:"):
        return reference
    value = variable(name := reference.removeprefix("env:"))
    if value is None:
        raise ConfigurationError(
            f"the variable {name} is not set: start this process with it (the configuration says {reference!r})"
        )
    _hide([name])
    return value


def variable(name: str) -> str | None:
    """The value of one variable of the environment; what looks like a secret is blanked for readers of /proc from now on."""
    value = os.environ.get(name)
    if value is not None and _SECRET.search(name):
        _hide([name])
    return value


def _hide(names: Iterable[str]) -> None:
    """Overwrite values where the C library keeps them; `os.environ`, Python's own copy, still knows them."""
    getenv = ctypes.CDLL(None).getenv
    getenv.restype = ctypes.c_void_p
    for name in names:
        if address := getenv(name.encode()):
            ctypes.memset(address, ord("x"), len(ctypes.string_at(address)))
