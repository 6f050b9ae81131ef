"""The owner's end of a warm parent: a process of a model's environment with its imports done, of which a job's harness is a fork.

What the two say to each other stands in `harness_parent.py`. Linux only.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import threading
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO

from headrace.job import HARNESS, LANGUAGE
from headrace.warded import Confined, Warded

_ANSWER_S = 30.0
_MOST_BYTES = 1_000_000
_ROOM_BYTES = 4096


class Unfit(Exception):
    """Nothing can be forked of it; the message says why."""


class WarmParent:
    """Started by `start`, and of use when `ready` says so. Its methods may be called from any thread.

    Forks end with the parent, and the parent with its owner.
    """

    def __init__(self, process: Warded, connection: socket.socket) -> None:
        self._process, self._connection = process, connection
        self._asking = threading.Lock()

    @classmethod
    def start(
        cls,
        python: Path,
        modules: Sequence[str],
        variables: Mapping[str, str],
        place: Path,
        confined: Confined,
        single: Sequence[str],
    ) -> WarmParent:
        """A parent that imports `modules` in their order, with `variables` to go by, of which `single` are told 1. Its own files are in `place`.

        Raises `OSError`.
        """
        (place / "modules.json").write_text(json.dumps(list(modules)))
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs, ExitStack() as undone:
            undone.callback(ours.close)
            argv = [str(python), "-I", str(HARNESS), "--parent", str(theirs.fileno()), str(place / "modules.json")]
            env = {**dict.fromkeys(single, "1"), "LANG": LANGUAGE}
            room = {"HEADRACE_FORK": "x" * _ROOM_BYTES}
            log = place / "parent.log"
            process = Warded.start(
                argv, log=log, env=env | room, cwd=Path("/"), confined=confined, pass_fds=[theirs.fileno()]
            )
            undone.callback(process.kill)
            ours.send(json.dumps({"variables": {**variables, **env}}).encode())
            undone.pop_all()
        return cls(process, ours)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def ready(self, timeout_s: float) -> bool:
        """Whether its imports are done. To be asked until it is. Raises `Unfit`."""
        if not _readable(self._connection.fileno(), timeout_s):
            return False
        with suppress(OSError):
            answer = json.loads(self._connection.recv(_MOST_BYTES) or b"null")
            if answer and "unfit" in answer:
                raise Unfit(str(answer["unfit"]))
            if answer:
                return True
        ending = self._process.wait(_ANSWER_S)
        said = self._process.log.read_text(errors="replace").strip().splitlines()[-1:]
        raise Unfit(f"it ended while it imported ({ending}): {''.join(said)[:500]}")

    def fork(self, job: Path, *, log: Path, env: Mapping[str, str], cwd: Path, cpus: Sequence[int] = ()) -> Warded:
        """The harness on a job file, with exactly the variables `env`, under a warden of its own. Raises `OSError`, after which the parent is of no use."""
        log.touch(mode=0o600)
        options = {"--log": str(log), "--cwd": str(cwd)} | ({"--cpus": ",".join(map(str, cpus))} if cpus else {})
        asked = json.dumps({"job": str(job), "options": options, "variables": dict(env)}).encode()
        try:
            return Warded.of(self._ask(asked), log)
        except (ValueError, KeyError) as error:  # closed meanwhile, or it could not fork
            raise OSError(f"a warm parent has not forked: {error}") from error

    def _ask(self, asked: bytes) -> _Fork:
        commands, statuses = os.pipe(), os.pipe()
        ours = commands[1], statuses[0]
        try:
            with self._asking:
                try:
                    socket.send_fds(self._connection, [asked], [commands[0], statuses[1]])
                finally:
                    os.close(commands[0])
                    os.close(statuses[1])
                if not _readable(self._connection.fileno(), _ANSWER_S):
                    raise TimeoutError("a warm parent does not answer")
                said = self._connection.recv(_MOST_BYTES)
                if not said:
                    raise ConnectionResetError("a warm parent is gone")
                pid = int(json.loads(said)["warden"])
                return _Fork(pid, os.pidfd_open(pid), *ours, self)  # nobody has reaped it yet
        except BaseException:
            for descriptor in ours:
                os.close(descriptor)
            raise

    def close(self) -> None:
        """End it, and what is left of its forks."""
        self._process.kill()
        self._connection.close()


def _readable(descriptor: int, timeout_s: float | None = None) -> bool:
    """Whether it has something, or its end, to tell."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(None if timeout_s is None else timeout_s * 1000))


class _Fork:
    """The warden of one job: a fork of the parent, and not our child. Killing it takes the parent: what it has left is below that one."""

    def __init__(self, pid: int, handle: int, commands: int, statuses: int, parent: WarmParent) -> None:
        self.pid = pid
        self.stdin: IO[bytes] | None = os.fdopen(commands, "wb", 0)
        self.stdout: IO[bytes] | None = os.fdopen(statuses, "rb", 0)
        self._handle, self._parent = handle, parent
        self._closed = False

    def send_signal(self, sig: int) -> None:
        if not self._closed:
            signal.pidfd_send_signal(self._handle, sig)

    def kill(self) -> None:
        self._parent.close()

    def wait(self) -> int:
        """Until it has ended; its exit code is its parent's to know."""
        _readable(self._handle)
        self._closed = True
        os.close(self._handle)
        return 0
