"""The warden: a small process that owns a child's whole tree and outlives its owner just long enough to kill it.

Started by path, standard library only:  python -I -S -E warden.py --log FILE [--cwd DIR] [--user UID] [--cpus N,…] [--limits NAME=N,…] [--keep N] -- ARGV…

stdin    the owner's commands, a line each: `term` (SIGTERM to the child's group), `kill` (kill the tree now).
         The end of stdin means that the owner died: kill the tree now.
stdout   `started PID`, then, when the child has ended and nothing that it started is left, `exit CODE` or `signal N`; before that
         `used MS KB READ WRITTEN`: milliseconds of CPU, the largest process in KiB, bytes read from disk and written to it, of them all.
         A child that cannot be started says why in the log and is `exit 127`.
SIGTERM  to the warden: `term`, and `kill` 5 s later.

The child has its own session, the warden's environment, stdin from /dev/null, stdout and stderr appended to FILE: nobody has to drain a pipe.
What it was given to hand on, the warden forgets: /proc/PID/environ of it shows no value but the run's number.

--limits  confines the child: `nofile`, `fsize` (bytes) and `nproc` are limits of the kernel's; it leaves no core, gains no rights by what it executes,
          has none of root's capabilities even as root, and is the first to go when the machine's memory is out.
--keep    is the number of the one capability that root's child keeps.
--cpus    are those that it may run on (Linux).
--user    makes it that user, in a group of the same number and no other.
On Linux the warden is a subreaper, so that a descendant that called setsid, twice even, is found and killed; elsewhere the child's group is.

The owner's end is `headrace.warded`.
"""

from __future__ import annotations

# Every import counts: a run waits for this start. `signal` and `subprocess` would add 8 ms (measured), hence `_signal`.
import _signal  # type: ignore[import-not-found, unused-ignore]
import os
import select
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_GRACE_S = 5.0  # between the SIGTERM that reached the warden and the end of the tree
_SWEEP_S = 10.0  # a process in uninterruptible sleep must not keep the ending from the owner for longer
_PR_SET_DUMPABLE, _PR_CAPBSET_DROP, _PR_SET_CHILD_SUBREAPER, _PR_SET_NO_NEW_PRIVS = 4, 24, 36, 38
_OPTIONS = {"--log", "--cwd", "--user", "--cpus", "--limits", "--keep"}
_LINUX = sys.platform == "linux"


def main(arguments: list[str]) -> None:
    options, argv = _parse(arguments)
    guard(lambda _: _execute(argv, options))


def guard(become: Callable[[int], None]) -> None:
    """Own one child from its start to the end of its tree. A fork of us calls `become`, which is not to return, with a descriptor that it
    closes when it is what it is to be, if no exec does."""
    if os.getpgid(0) != os.getpid():
        os.setsid()
    if _LINUX:
        _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    wake, alarm = _wake_on_signals()
    child = _start(become, (wake, alarm))
    _say("started %d" % child)
    status = _watch(child, wake)
    swept = _sweep(child)
    status = swept if status is None else status
    _say("used %d %d %d %d" % _used())
    code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else -os.WTERMSIG(status)
    _say("exit %d" % code if code >= 0 else "signal %d" % -code)


def _parse(arguments: list[str]) -> tuple[dict[str, str], list[str]]:
    split = arguments.index("--") if "--" in arguments else len(arguments)
    options = dict(zip(arguments[:split:2], arguments[1:split:2]))  # noqa: B905 (Python 3.9)
    argv = arguments[split + 1 :]
    if not argv or "--log" not in options or not set(options) <= _OPTIONS:
        raise SystemExit(
            "usage: warden.py --log FILE [--cwd DIR] [--user UID] [--cpus N,…] [--limits NAME=N,…] [--keep N] -- ARGV…"
        )
    return options, argv


def _prctl(option: int, value: int) -> int:
    import ctypes

    found: int = ctypes.CDLL(None).prctl(option, value, 0, 0, 0)
    return found


def _forget_environment() -> None:
    """Overwrite the values where /proc/PID/environ shows them."""
    import ctypes

    environ = ctypes.POINTER(ctypes.c_void_p).in_dll(ctypes.CDLL(None), "environ")
    index = 0
    while environ[index]:
        entry = ctypes.string_at(environ[index])
        name = entry.partition(b"=")[0]
        if name != b"HEADRACE_RUN_ID":
            ctypes.memset(environ[index] + len(name) + 1, ord("x"), len(entry) - len(name) - 1)
        index += 1


def _wake_on_signals() -> tuple[int, int]:
    """Both ends of a pipe; the first gets a byte, the signal's number, for each SIGCHLD and SIGTERM; an interrupt is the owner's business."""
    wake, alarm = os.pipe()
    os.set_blocking(wake, False)
    os.set_blocking(alarm, False)
    _signal.set_wakeup_fd(alarm)
    for number in (_signal.SIGCHLD, _signal.SIGTERM):
        _signal.signal(number, lambda *_: None)
    for number in (_signal.SIGINT, _signal.SIGHUP):
        _signal.signal(number, _signal.SIG_IGN)
    return wake, alarm


def _start(become: Callable[[int], None], ours: tuple[int, ...]) -> int:
    """Fork; returns once the child has its own session and runs what it is to run (or has failed to)."""
    executed, executing = os.pipe()  # closes itself on exec: after its end, `term` finds the group
    child = os.fork()
    if child == 0:
        try:
            for descriptor in (*ours, executed):
                os.close(descriptor)
            become(executing)
        finally:
            os._exit(127)
    if _LINUX:
        _forget_environment()
        _prctl(_PR_SET_DUMPABLE, 0)  # nor may a child of the same user look into our memory
    os.close(executing)
    os.read(executed, 1)
    os.close(executed)
    return child


def _execute(argv: list[str], options: dict[str, str]) -> None:
    try:
        confine(options)
        os.execvp(argv[0], argv)
    except (OSError, ValueError) as error:
        os.write(2, ("cannot start %s: %s\n" % (argv[0], error)).encode(errors="replace"))


def confine(options: dict[str, str]) -> None:
    """Make this process what the options say, in a session of its own."""
    os.setsid()
    for number in (_signal.SIGINT, _signal.SIGHUP, _signal.SIGPIPE):  # ignored ones would stay ignored across exec
        _signal.signal(number, _signal.SIG_DFL)
    redirect(os.open(os.devnull, os.O_RDONLY), 0)
    redirect(os.open(options["--log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), 1, 2)
    if "--cpus" in options and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {int(number) for number in options["--cpus"].split(",")})
    if "--limits" in options:
        _limit(options["--limits"], int(options.get("--keep", -1)))
    if "--user" in options:
        user = int(options["--user"])
        os.setgroups([])
        os.setgid(user)
        os.setuid(user)
    if "--cwd" in options:
        os.chdir(options["--cwd"])


def redirect(descriptor: int, *numbers: int) -> None:
    """Give it these numbers, and no other."""
    for number in numbers:
        os.dup2(descriptor, number)
    os.close(descriptor)


def _limit(limits: str, kept: int) -> None:
    import resource

    wanted = dict(part.split("=") for part in limits.split(",") if part)
    for name, value in {"core": "0", **wanted}.items():
        which = getattr(resource, "RLIMIT_" + name.upper())
        most = resource.getrlimit(which)[1]
        bound = int(value) if most == resource.RLIM_INFINITY else min(int(value), most)
        resource.setrlimit(which, (bound, bound))
    if _LINUX:
        _prctl(_PR_SET_NO_NEW_PRIVS, 1)
        capability = 0  # each there is, up to the first that the kernel does not know
        while os.geteuid() == 0 and (capability == kept or _prctl(_PR_CAPBSET_DROP, capability) == 0):
            capability += 1
        with open("/proc/self/oom_score_adj", "w") as stream:
            stream.write("1000")


def _watch(child: int, wake: int) -> int | None:
    """Obey the owner until the child has ended (returns its status) or the tree must die (None)."""
    commands = b""
    kill_at: float | None = None
    while True:
        status = _reap(child)
        if status is not None:
            return status
        left_s = None if kill_at is None else kill_at - time.monotonic()
        if left_s is not None and left_s <= 0:
            return None
        ready = select.select([0, wake], [], [], left_s)[0]
        if wake in ready and _signal.SIGTERM in os.read(wake, 512):
            _send(-child, _signal.SIGTERM)
            kill_at = kill_at or time.monotonic() + _GRACE_S
        if 0 in ready:
            received = os.read(0, 512)
            commands += received
            *complete, commands = commands.split(b"\n")
            if not received or b"kill" in complete:
                return None
            if b"term" in complete:
                _send(-child, _signal.SIGTERM)


def _reap(child: int) -> int | None:
    """Wait for all that has ended, orphans that fell to us too; the child's status if it is among them."""
    found = None
    try:
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            if pid == child:
                found = status
    except ChildProcessError:
        pass
    return found


def _sweep(child: int) -> int:
    """Kill and reap all that is left; the child's status, if it was still there, else SIGKILL's.

    Everything is stopped before anything is killed: what is stopped can't fork its way out between two looks.
    """
    found: int | None = None
    deadline = time.monotonic() + _SWEEP_S
    while time.monotonic() < deadline:
        stopped: set[int] = set()
        while True:
            fresh = set(_descendants(child)) - stopped
            if not fresh:
                break
            for pid in fresh:
                _send(pid, _signal.SIGSTOP)
            stopped |= fresh
        for pid in stopped:
            _send(pid, _signal.SIGKILL)
        status = _reap(child)
        found = status if status is not None else found
        if not stopped:
            break
        time.sleep(0.001)
    return _signal.SIGKILL if found is None else found


def _send(target: int, number: int) -> bool:
    """False if there is no such process, or group where `target` is negative, that we may signal."""
    try:
        os.kill(target, number)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def _descendants(child: int) -> list[int]:
    """All living or unreaped processes below the warden: a negative pid is a whole group, where there is no /proc."""
    if not _LINUX:
        return [-child] if _send(-child, 0) else []
    parents: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open("/proc/%s/stat" % name, "rb") as stream:
                    fields = stream.read().rpartition(b")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            parents.setdefault(int(fields[1]), []).append(int(name))
    found: list[int] = []
    heads = [os.getpid()]
    while heads:
        below = parents.get(heads.pop(), [])
        found += below
        heads += below
    return found


def _used() -> tuple[int, int, int, int]:
    """Of all that was reaped here or by those that were."""
    import resource

    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    largest_kib = used.ru_maxrss if _LINUX else used.ru_maxrss // 1024
    return int((used.ru_utime + used.ru_stime) * 1000), largest_kib, used.ru_inblock * 512, used.ru_oublock * 512


def _say(line: str) -> None:
    try:
        os.write(1, line.encode() + b"\n")
    except BrokenPipeError:  # the owner is dead: the end of stdin tells us too
        return


if __name__ == "__main__":
    main(sys.argv[1:])
