"""A model's code in a sandbox that bubblewrap makes: namespaces of its own, the system read-only, and of all else only what it needs.

What the warden starts is `bwrap`, with the program below it. It differs from the program in two things. It would die of the SIGTERM that
asks a training to stop, and take it along: so it ignores that, and `env` makes the program hear it again. And it says 128 + N of a program
that signal N has killed.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

from headrace.job import HARNESS
from headrace.warded import Ending

from services.trainer.failures import AttemptFailed
from services.trainer.limits import machine_memory
from services.trainer.shares import GPUS
from shared import catalog
from shared.blobs import open_plain
from shared.errors import Refused

if TYPE_CHECKING:
    from services.trainer.checkout import Prepared
    from services.trainer.child import Work

SETFCAP = 31  # since Linux 5.12 root needs this capability to be root in a namespace of its own
_NAMESPACES = (
    "--unshare-user", "--disable-userns", "--unshare-pid", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try",
    "--die-with-parent", "--cap-drop", "ALL",
)  # fmt: skip
_SYSTEM = ("/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
# No private keys, no passwords, nothing that names other machines, unless the network is open
_ETC = (
    "alternatives", "fonts", "group", "gai.conf", "host.conf", "hosts", "ld.so.cache", "ld.so.conf", "ld.so.conf.d", "localtime", "mime.types",
    "nsswitch.conf", "passwd", "pki/ca-trust/extracted", "pki/tls/certs", "protocols", "R", "services", "ssl/certs", "ssl/openssl.cnf", "timezone",
)  # fmt: skip
_GPUS = ("nvidia*", "kfd", "dri")
_SQLITE = re.compile(r"sqlite(?:\+\w+)?:///(/[^?]+)")
_COMPLAINT = re.compile(r"(?:bwrap|(?:/\S+/)?env): .+")
_PACKAGE = "install the package bubblewrap (0.8 or newer) where the worker runs, or drop sandbox, and `headrace retry`"


@dataclass(frozen=True)
class Sandbox:
    """What a model's code may reach beside what it needs: the network, and files and directories of the operator's, for reading."""

    network: bool = False
    readable: tuple[Path, ...] = ()

    @classmethod
    def of(cls, model: catalog.Model) -> Sandbox | None:
        return cls(model.network, tuple(map(Path, model.readable))) if model.sandbox else None


@contextmanager
def entered(argv: Sequence[str], work: Work, prepared: Prepared) -> Iterator[Sequence[str]]:
    """The words that start `argv`, in the sandbox if the work has one; its scratch directory is still the worker's. Raises `AttemptFailed`."""
    sandbox = work.sandbox
    if sandbox is None:
        yield argv
        return
    bwrap, env = _programs()
    urls = _urls(work.job, work.env)
    if not sandbox.network:
        _check_offline(urls)
    (work.scratch / "tmp").mkdir(mode=0o700, exist_ok=True)
    databases = dict.fromkeys(found[1] for url in (*urls.values(), *work.env.values()) if (found := _SQLITE.match(url)))
    with ExitStack() as held:
        for path in databases:
            held.enter_context(_held(path))
        words = [env, "--ignore-signal=TERM", bwrap, *_NAMESPACES, *([] if sandbox.network else ["--unshare-net"])]
        words += _machine(work, sandbox)
        for place in dict.fromkeys((*sandbox.readable, *_needed(work.job, prepared))):
            words += ["--ro-bind", str(place), str(place)]
        for path in databases:
            words += _database(path)
        scratch = str(work.scratch)
        words += ["--bind", scratch, scratch, "--chdir", str(work.cwd or work.scratch), "--remount-ro", "/"]
        yield [*words, "--", env, "-u", "PWD", "--default-signal=TERM", *argv]


def ended(ending: Ending, log: Path) -> Ending:
    """How the program has ended, of which this is what `bwrap` tells. Raises `AttemptFailed` where it could not even make the sandbox."""
    if ending.code in (1, 125) and (said := _complaint(log)):
        raise AttemptFailed("configuration", f"the sandbox could not be made: {said}", _advice(said))
    if ending.code is None or ending.code - 128 not in signal.valid_signals():
        return ending
    return Ending(None, ending.code - 128)


def _programs() -> tuple[str, str]:
    """`bwrap` and `env` by their whole paths: on the PATH of the child packages of the model come first."""
    bwrap, env = shutil.which("bwrap"), shutil.which("env")
    if bwrap is None or env is None:
        raise AttemptFailed(
            "configuration", 'sandbox = "bubblewrap" needs the program bwrap, which is not here', _PACKAGE
        )
    return bwrap, env


def _urls(job: Mapping[str, Any], env: Mapping[str, str]) -> dict[str, str]:
    """Dataset → its URL, where the code is given it."""
    described = job.get("datasets", {})
    found = {name: env.get(one.get("url_variable") or "") or one.get("url") for name, one in described.items()}
    return {name: url for name, url in found.items() if url}


def _check_offline(urls: Mapping[str, str]) -> None:
    for name, url in urls.items():
        if urlsplit(url).hostname:
            kind = urlsplit(url).scheme.partition("+")[0]
            raise AttemptFailed(
                "configuration",
                f"the dataset {name} is on a server ({kind}), and the sandbox has no network",
                "write network = true beside sandbox in headrace.toml, and `headrace retry`",
            )


def _machine(work: Work, sandbox: Sandbox) -> list[str]:
    """The system read-only, devices that hold nothing, and a /tmp that counts as scratch."""
    words = ["--ro-bind", "/usr", "/usr"]
    for path in filter(os.path.lexists, _SYSTEM):
        words += ["--symlink", os.readlink(path), path] if os.path.islink(path) else ["--ro-bind", path, path]
    for name in (*_ETC, *(["resolv.conf"] if sandbox.network else [])):
        words += ["--ro-bind-try", f"/etc/{name}", f"/etc/{name}"]
    words += ["--proc", "/proc", "--dev", "/dev"]
    if work.env.get(GPUS[0]):
        for device in sorted(path for pattern in _GPUS for path in Path("/dev").glob(pattern)):
            words += ["--dev-bind-try", str(device), str(device)]
        words += ["--ro-bind-try", "/sys", "/sys"]
    else:
        words += ["--ro-bind-try", "/sys/devices/system", "/sys/devices/system"]  # how many CPUs there are
    # with root's number a process may write what is root's there, without any capability: the machine's core_pattern, say
    words += [
        "--remount-ro",
        "/proc",
        "--remount-ro",
        "/dev",
        "--size",
        str(work.limits.memory or machine_memory() * 9 // 10),
    ]
    return [
        *words,
        "--tmpfs",
        "/dev/shm",
        "--bind",
        str(work.scratch / "tmp"),
        "/tmp",
        "--symlink",
        "../tmp",
        "/var/tmp",
    ]


def _needed(job: Mapping[str, Any], prepared: Prepared) -> Iterator[Path]:
    yield prepared.checkout
    yield from _python(prepared.python)
    yield HARNESS.parent
    for key in ("model_dir", "resume"):
        if job.get(key):
            yield Path(job[key])


def _python(python: Path) -> Iterator[Path]:
    """An environment, and of the Python that it was made from the directories that it runs on; the rest there may be somebody's home."""
    yield python.parent.parent
    prefixes = [Path(os.path.realpath(python)).parent.parent]
    settings = python.parent.parent / "pyvenv.cfg"
    if settings.is_file() and (home := re.search(r"^home *= *(/.+)$", settings.read_text(), re.MULTILINE)):
        prefixes.append(Path(home[1].strip()).parent)
    for prefix in prefixes:
        if prefix not in (Path("/"), Path("/usr")):
            yield from filter(Path.is_dir, (prefix / part for part in ("bin", "lib", "lib64", "ssl")))


def _database(path: str) -> list[str]:
    """SQLite finds the other two beside what the path leads to."""
    real = os.path.realpath(path)
    return [word for end in ("", "-wal", "-shm") for word in ("--ro-bind-try", real + end, path + end)]


@contextmanager
def _held(path: str) -> Iterator[None]:
    """A connection of ours: as long as it is open, a database in WAL mode has its two other files, without which nobody can read it who may not
    make them. What is wrong with it the code is told when it opens it."""
    with ExitStack() as stack:
        try:
            connection = sqlite3.connect(f"file:{quote(path)}?mode=ro", uri=True)
            stack.callback(connection.close)
            connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        except sqlite3.Error:
            pass
        yield


def _complaint(log: Path) -> str:
    """The one line that is in the log if the program was never started."""
    try:
        with open_plain(log) as stream:
            said = stream.read(2000).decode(errors="replace").strip()
    except (OSError, Refused):
        return ""
    return said if _COMPLAINT.fullmatch(said) else ""


def _advice(said: str) -> str:
    if "ermission denied" in said or "not permitted" in said or "No space left" in said:
        return "let the user of the worker make user namespaces (in a container too), or drop sandbox, and `headrace retry`"
    if "nknown option" in said or "unrecognized option" in said:
        return _PACKAGE
    return "mend what it says where the worker runs, or readable in headrace.toml, and `headrace retry`"
