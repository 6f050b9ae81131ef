"""The directory that a stack lives in: its lock, its ports, its secrets; readable by its owner alone."""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import socket
import threading
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

from shared.errors import ConfigurationError, Conflict

HOST = "127.0.0.1"
_UNFIT = set("?#%\"'\\\n\r")  # they mean something else in a database URL or in Valkey's file


class StateDirectory:
    """Paths under one directory, made when first asked for."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        if unfit := _UNFIT & set(str(self.root)):
            raise ConfigurationError(
                f"the state cannot live in {str(self.root)!r}: choose a path without {' '.join(sorted(unfit))}"
            )

    def folder(self, *parts: str) -> Path:
        folder = self.root.joinpath(*parts)
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        return folder

    def ready_file(self, process: str) -> Path:
        """Where a process of ours leaves its pid when it has verified what it needs."""
        return self.folder("ready") / process

    def lock(self) -> int:
        """Take the directory for this process, until it ends or closes the descriptor; raises `Conflict` naming who has it."""
        descriptor = os.open(self.folder() / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 32).decode().strip() or "unknown"
            os.close(descriptor)
            raise Conflict(
                f"a stack runs on {self.root} already (pid {holder}); stop it first, or choose another STATE=…"
            ) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        return descriptor

    def secret(self, name: str) -> Path:
        """The file of that name with a random secret, made at first use and kept."""
        path = self.folder() / name
        if not path.exists():
            write_private(path, secrets.token_urlsafe(18) + "\n")
        return path

    def ports(self, configured: Mapping[str, int | None]) -> dict[str, int]:
        """A port for each name: the configured one, else the one of last time if it is free, else any free one."""
        path = self.folder() / "ports.json"
        kept = _read_ports(path)
        with ExitStack() as held:  # all at once, so that no two get the same
            ports = {name: _hold(held, f"{name}_port", port) for name, port in configured.items() if port is not None}
            for name in configured.keys() - ports.keys():
                ports[name] = _hold_any(held, kept.get(name, 0))
        write_private(path, json.dumps(ports))
        return ports


def write_private(path: Path, text: str) -> None:
    """Write the whole file or nothing, readable by its owner alone; of two threads the later one's stays."""
    draft = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}")
    with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    draft.replace(path)


def _read_ports(path: Path) -> dict[str, int]:
    try:
        kept = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return {name: port for name, port in kept.items() if isinstance(port, int)} if isinstance(kept, dict) else {}


def _hold(held: ExitStack, name: str, port: int) -> int:
    try:
        return _bind(held, port)
    except OSError as error:
        advice = f"free it, or choose another {name} under [stack]"
        raise ConfigurationError(f"port {port} cannot be had ({error.strerror}): {advice}") from error


def _hold_any(held: ExitStack, preferred: int) -> int:
    try:
        return _bind(held, preferred)
    except (OSError, OverflowError):
        return _bind(held, 0)


def _bind(held: ExitStack, port: int) -> int:
    listener = held.enter_context(socket.socket())
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the servers do: TIME_WAIT does not count
    listener.bind((HOST, port))
    listener.listen(1)  # two that only bind may share a port
    return int(listener.getsockname()[1])
