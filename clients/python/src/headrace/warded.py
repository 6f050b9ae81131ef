"""The owner's end of a warden: start a process whose whole tree ends with it, and with us."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

_WARDEN = Path(__file__).with_name("warden.py")
_START_S = 30.0
_KILL_S = 15.0  # longer than the warden's own patience with what it sweeps


@dataclass(frozen=True)
class Ending:
    """How the child ended: an exit code, or the signal that killed it, or neither: the warden itself was killed, so nobody knows."""

    code: int | None
    signal: int | None

    @property
    def ok(self) -> bool:
        return self.code == 0

    def __str__(self) -> str:
        if self.signal is not None:
            try:
                return f"killed by {signal.Signals(self.signal).name}"
            except ValueError:
                return f"killed by signal {self.signal}"
        return "lost with its warden" if self.code is None else f"exit code {self.code}"


@dataclass(frozen=True)
class Spent:
    """What a child and all that it started have used: CPU, the largest process's memory, bytes read from disk and written to it."""

    cpu_s: float
    memory_bytes: int
    read_bytes: int
    written_bytes: int


@dataclass(frozen=True)
class Confined:
    """What a child may do at most; `user` is the one that it becomes, which takes an owner who is root. `tasks`: processes and threads of that user;
    `cpus`: those that it may run on (Linux), none: all. `capability`: the one that it keeps where it is root, by its number."""

    open_files: int
    file_bytes: int
    tasks: int | None = None
    user: int | None = None
    cpus: tuple[int, ...] = ()
    capability: int | None = None

    def options(self) -> list[str]:
        limits = f"nofile={self.open_files},fsize={self.file_bytes}"
        limits += f",nproc={self.tasks}" if self.tasks is not None else ""
        cpus = ["--cpus", ",".join(map(str, self.cpus))] if self.cpus else []
        kept = ["--keep", str(self.capability)] if self.capability is not None else []
        return ["--limits", limits, *cpus, *kept, *(["--user", str(self.user)] if self.user is not None else [])]


class Process(Protocol):
    """A warden, as far as its owner knows it: `subprocess.Popen` is one."""

    pid: int
    stdin: IO[bytes] | None
    stdout: IO[bytes] | None

    def send_signal(self, sig: int) -> None: ...
    def kill(self) -> None: ...
    def wait(self) -> int: ...


class Warded:
    """A child under a warden. Every method may be called from any thread, and again after the end.

    When an `Ending` is known, nothing that the child started is left (on Linux). If this process dies, the same holds within a second.
    """

    def __init__(self, process: Process, log: Path) -> None:
        self._process = process
        self._log = log
        self._started = threading.Event()
        self._ended = threading.Event()
        self._telling = threading.Lock()
        self._pid = 0
        self._ending: Ending | None = None
        self._spent: Spent | None = None
        threading.Thread(target=self._listen, name=f"warded-{process.pid}", daemon=True).start()

    @classmethod
    def start(
        cls,
        argv: Sequence[str],
        *,
        log: Path,
        env: Mapping[str, str],
        cwd: Path | None = None,
        python: str | Path = sys.executable,
        confined: Confined | None = None,
        pass_fds: Sequence[int] = (),
    ) -> Warded:
        """Start `argv` with exactly the variables `env` and, besides the usual three, the descriptors `pass_fds`; its output is appended to `log`.

        `python` runs the warden, not the child. Raises `OSError` if no warden comes up; a child that can't be started ends with code 127
        and says why in the log.
        """
        where = ["--cwd", str(cwd)] if cwd is not None else []
        where += confined.options() if confined is not None else []
        command = [str(python), "-I", "-S", "-E", str(_WARDEN), "--log", str(log), *where, "--", *map(str, argv)]
        with log.open("ab") as output:  # where the warden's own trouble would be told
            pipe = subprocess.PIPE
            process = subprocess.Popen(
                command, stdin=pipe, stdout=pipe, stderr=output, env=dict(env), bufsize=0, pass_fds=pass_fds
            )
        return cls.of(process, log)

    @classmethod
    def of(cls, warden: Process, log: Path) -> Warded:
        """The child of a warden that has just been started. Raises `OSError` if that does not come up."""
        warded = cls(warden, log)
        if not warded._started.wait(_START_S) or warded._pid == 0:
            warded.kill()
            raise OSError(f"the warden did not start; {log} says why")
        return warded

    @property
    def pid(self) -> int:
        """The child's process id, also the id of its session and group."""
        return self._pid

    @property
    def warden(self) -> int:
        """The process id of the warden, from which all that the child starts descends."""
        return self._process.pid

    @property
    def spent(self) -> Spent | None:
        """Known with the ending; None before, and where the warden was killed."""
        return self._spent

    @property
    def log(self) -> Path:
        return self._log

    def poll(self) -> Ending | None:
        return self._ending

    def wait(self, timeout_s: float | None = None) -> Ending | None:
        """The ending, or None if the child still runs after `timeout_s`."""
        self._ended.wait(timeout_s)
        return self._ending

    def terminate(self, grace_s: float) -> Ending | None:
        """Ask the child's group to end; kill the tree after `grace_s`. Returns when all is gone."""
        self._tell(b"term\n")
        return self.wait(grace_s) or self.kill()

    def kill(self) -> Ending | None:
        """Kill the tree now. Returns when all is gone."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGCONT)  # a child of the same user may have stopped its warden
        self._tell(b"kill\n")
        if self.wait(_KILL_S) is None:
            self._process.kill()
        return self.wait(_KILL_S)

    def _tell(self, command: bytes) -> None:
        assert self._process.stdin is not None
        with self._telling, contextlib.suppress(BrokenPipeError):
            if not self._process.stdin.closed:
                self._process.stdin.write(command)

    def _listen(self) -> None:
        """The one reader of the warden's status lines, in its own thread, so that no method ever reads a pipe."""
        assert self._process.stdout is not None
        ending = Ending(None, None)
        for line in self._process.stdout:
            word, *numbers = line.split()
            number = numbers[0]
            if word == b"started":
                self._pid = int(number)
                self._started.set()
            elif word == b"used":
                cpu_ms, largest_kib, read_bytes, written_bytes = map(int, numbers)
                self._spent = Spent(cpu_ms / 1000, largest_kib * 1024, read_bytes, written_bytes)
            else:
                ending = Ending(int(number), None) if word == b"exit" else Ending(None, int(number))
        self._process.wait()
        if ending == Ending(None, None) and self._pid:  # no warden, no sweep: the group is all that we can still reach
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._pid, signal.SIGKILL)
            self._process.kill()
        self._ending = ending
        self._started.set()
        self._ended.set()
        self._process.stdout.close()
        assert self._process.stdin is not None
        with self._telling:
            self._process.stdin.close()
