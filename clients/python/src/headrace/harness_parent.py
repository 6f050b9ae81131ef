"""A warm parent: a process of a model's environment that has imported what an earlier job did, and forks one harness for each job.

Started by path:  python -I harness.py --parent DESCRIPTOR MODULES.json   with one thread to each numeric library (OMP_NUM_THREADS=1 …), and
with a long variable HEADRACE_FORK, in the place of which /proc/PID/environ shows a fork's HEADRACE_RUN_ID and HOME

DESCRIPTOR is the end of a socket that keeps messages apart, and tells JSON:
owner    {"variables": {…}}           first, before anything is imported: what a library may go by, and /proc/PID/environ is not to show
parent   {"ready": true}              or {"unfit": why}, and the end: what has threads, for one, cannot be forked
owner    {"job": path, "options": {…}, "variables": {…}}    with two descriptors: the owner's commands, and what the warden says
parent   {"warden": pid}              of the fork. It is the warden of another fork, which is the harness
The end of the socket is the parent's end; forks are killed by the end of their own descriptors.

Only modules of the environment and the standard library are imported here, so that no author's code runs in what others are forked from.
Of each job only its own fork knows; a fork has a session, a log, variables, CPUs and random numbers of its own, as if it had been executed.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import os
import re
import signal
import socket
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

_SAME = ("harness_job", "harness_save", "harness_example", "harness_data", "harness_checkpoint", "loader", "warden")
_MOST_BYTES = 1_000_000
_ROOM, _SHOWN = "HEADRACE_FORK", ("HEADRACE_RUN_ID", "HOME")
_PR_SET_DUMPABLE = 4
_FORKED_WELL = {
    "jemalloc_bg_thd"
}  # pyarrow's: jemalloc holds its locks over a fork, and does without the thread in the child
_THREADS = {
    "libgomp|libomp|libiomp": ("OMP", ("omp_set_num_threads",)),
    "openblas": (
        "OPENBLAS",
        tuple(f"{scipy}openblas_set_num_threads{wide}" for scipy in ("scipy_", "") for wide in ("64_", "_64", "")),
    ),
    "libmkl_rt": ("MKL", ("MKL_Set_Num_Threads",)),
    "libblis": ("BLIS", ("bli_thread_set_num_threads",)),
}
"""By the name of a shared library: whose variable it goes by, and what raises its number of threads."""


def serve(
    descriptor: str,
    modules: str,
    prepare: Callable[[], None],
    carry_out: Callable[..., None],
    load: Callable[[str, Path], Any],
) -> None:
    """Be the parent until its owner goes. `prepare` sets variables before anything is imported, `carry_out` does a job in a fork and ends it; `load` makes a module of a file."""
    connection, board = socket.socket(fileno=int(descriptor)), Board()
    os.environ.update(json.loads(connection.recv(_MOST_BYTES))["variables"])
    prepare()
    before = dict(os.environ)
    for name in json.loads(Path(modules).read_text(encoding="utf-8")):
        try:
            importlib.import_module(name)
        except Exception as error:  # noqa: BLE001 - whatever it raises: an attempt could import it, so something differs here
            connection.send(json.dumps({"unfit": f"{name} cannot be imported in it: {error!r}"[:500]}).encode())
            return
    added = {name: value for name, value in os.environ.items() if before.get(name) != value}  # by libraries
    here = Path(__file__).parent
    _, *_, warden = (load(f"headrace_{name}", here / f"{name}.py") for name in _SAME)
    if why := _unfit():
        connection.send(json.dumps({"unfit": why}).encode())
        return
    ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0)  # a fork of the same user may not look into the others' parent
    sys.stdout.flush()
    sys.stderr.flush()
    gc.collect()
    gc.freeze()  # or the first collection in each fork would copy what all of them share
    connection.send(json.dumps({"ready": True}).encode())
    known = frozenset(sys.modules)
    while True:
        message, descriptors, _, _ = socket.recv_fds(connection, _MOST_BYTES, 2)
        if not message:
            return
        asked = json.loads(message)
        try:
            warden_pid = os.fork()
        except OSError as error:
            for number in descriptors:
                os.close(number)
            connection.send(json.dumps({"error": str(error)}).encode())
            continue
        if warden_pid == 0:
            connection.close()
            board.show(asked["variables"])
            asked["variables"] = {**added, **asked["variables"]}
            _guard(warden, asked, descriptors, lambda job: carry_out(job, known))
        for number in descriptors:
            os.close(number)
        connection.send(json.dumps({"warden": warden_pid}).encode())
        _reap(warden_pid)


class Board:
    """Where /proc/PID/environ shows whose a fork is, as it does of a process that was executed: in the room of a variable that is there for it."""

    def __init__(self) -> None:
        getenv = ctypes.CDLL(None).getenv
        getenv.restype = ctypes.c_void_p
        self._address = getenv(_ROOM.encode())
        self._size = len(os.environ.pop(_ROOM, ""))
        self.show({})

    def show(self, variables: dict[str, str]) -> None:
        told = b"".join(f"\0{name}={variables[name]}".encode() for name in _SHOWN if name in variables)
        if self._address and len(told) < self._size:
            ctypes.memset(self._address, 0, self._size)
            ctypes.memmove(self._address, told, len(told))


def _unfit() -> str | None:
    threads = []
    for number in os.listdir("/proc/self/task"):
        if int(number) != os.getpid():
            threads.append(Path(f"/proc/self/task/{number}/comm").read_text().strip())
    others = sorted(set(threads) - _FORKED_WELL)
    children = Path(f"/proc/self/task/{os.getpid()}/children")  # not every kernel has it
    if children.exists() and children.read_text().strip():
        return "its imports have started processes, which all forks would share"
    return f"its imports have started threads, which no fork would have: {', '.join(others)}" if others else None


def _reap(newest: int) -> None:
    """Those that have ended, but for the one whose number the owner has just been told: it must stay that one's for now."""
    while True:
        try:
            found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return
        if found is None or found.si_pid == newest:
            return
        os.waitpid(found.si_pid, 0)


def _guard(warden: Any, asked: dict[str, Any], descriptors: list[int], carry_out: Callable[[str], None]) -> None:
    """Be the warden of one job, and end."""
    try:
        for place, number in enumerate([*descriptors, os.open(asked["options"]["--log"], os.O_WRONLY | os.O_APPEND)]):
            warden.redirect(number, place)
        warden.guard(lambda started: _be(warden, asked, started, carry_out))
    except BaseException:  # noqa: BLE001 - the edge of a process: nothing may come back into the parent's loop
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def _be(warden: Any, asked: dict[str, Any], started: int, carry_out: Callable[[str], None]) -> None:
    """Be the harness of one job, as a process that was executed would be."""
    try:
        warden.confine(asked["options"])
        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 1)
        signal.set_wakeup_fd(-1)
        for number, handler in (
            (signal.SIGINT, signal.default_int_handler), (signal.SIGPIPE, signal.SIG_IGN),
            (signal.SIGTERM, signal.SIG_DFL), (signal.SIGCHLD, signal.SIG_DFL),
        ):  # fmt: skip
            signal.signal(number, handler)
        os.environ.clear()
        os.environ.update(asked["variables"])
        sys.argv = [sys.argv[0], asked["job"]]
        os.close(started)
        _refresh()
        carry_out(asked["job"])
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    except BaseException:  # noqa: BLE001 - as Python ends with what nobody caught
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)


def _refresh() -> None:
    """What libraries have made of the variables, the directories and the chance that the parent had."""
    tempfile.tempdir = None
    if "matplotlib" in sys.modules:
        for name in ("get_configdir", "get_cachedir"):
            getattr(sys.modules["matplotlib"], name).cache_clear()
    if "numpy.random" in sys.modules:
        sys.modules["numpy.random"].seed()
    _raise_threads()


def _raise_threads() -> None:
    """As many as the variables of this job say, else one for each CPU: those libraries have read 1 when they were loaded."""
    with open("/proc/self/maps") as stream:
        mapped = {line.rstrip("\n").split(maxsplit=5)[-1] for line in stream if ".so" in line}
    for path in sorted(mapped):
        for pattern, (family, functions) in _THREADS.items():
            if re.search(pattern, path.rpartition("/")[2]):
                library, number = ctypes.CDLL(path), _threads(family)
                for name in functions:
                    if number > 1 and hasattr(library, name):
                        getattr(library, name)(number)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(_threads("OMP"))
    if "numexpr" in sys.modules:
        sys.modules["numexpr"].set_num_threads(min(_threads("NUMEXPR"), 64))  # more it refuses
    if "numba" in sys.modules:
        sys.modules["numba"].config.reload_config()


def _threads(family: str) -> int:
    for name in (f"{family}_NUM_THREADS", "OMP_NUM_THREADS"):
        if os.environ.get(name, "").isdigit():
            return int(os.environ[name])
    return len(os.sched_getaffinity(0))
