"""The one door to git: the mirror of a repository (`shared.repository` says which ones are taken).

All that a repository holds is hostile input. So git runs without the configuration of the machine and of the user, without hooks,
filters, submodules and prompts, and over the named transports only; and it never writes a work tree: `Mirror.checkout` does.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import signal
import subprocess
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO
from urllib.parse import quote, unquote

from shared.credentials import access
from shared.errors import ConfigurationError, NotFound, Refused, Transient
from shared.locks import locked
from shared.points import point
from shared.repository import check_commit, check_ref, check_url, highest_version, is_local, resolve
from shared.worktree import MAX_FILES, Entry, check_pointers, check_tree, could_be_pointer, read_listing, write_tree

__all__ = ["Entry", "GitFailed", "Mirror", "check_commit", "check_ref", "check_url", "highest_version", "resolve"]

_MAX_ANSWER_BYTES = 32 * 1024**2
_LOOK_S = 60.0
_FETCH_S = 900.0
_LOOK, _FETCH, _CHECKOUT = (point(f"git {what}", __name__) for what in ("ls-remote", "fetch", "checkout"))
_UNADVERTISED = re.compile(r"not our ref|unadvertised object|shallow capabilities|does not support shallow")
_SHUT_OUT = re.compile(r"could not read (Username|Password)|Authentication failed|Permission denied \(publickey")
# protocol.allow is belt to GIT_ALLOW_PROTOCOL's braces. unpackLimit: objects come as one whole pack or not at all, so a kill in
# the middle of a fetch leaves no commit without its files. gc: a detached one rewrites `shallow` under the next fetch.
_SETTINGS = (
    "core.hooksPath=/dev/null", "core.fsmonitor=false", "gc.auto=0", "maintenance.auto=false", "protocol.ext.allow=never",
    "safe.bareRepository=explicit", "submodule.recurse=false", "fetch.unpackLimit=1", "http.lowSpeedLimit=1", "http.lowSpeedTime=60",
)  # fmt: skip
_PASSED_ON = (
    "PATH", "HOME", "TMPDIR", "SSH_AUTH_SOCK", "SSL_CERT_FILE", "SSL_CERT_DIR", "GIT_SSL_CAINFO",
    "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy", "NO_PROXY", "no_proxy",
)  # fmt: skip

_FLOORS = ((2, 39, 4), (2, 40, 2), (2, 41, 1), (2, 42, 2), (2, 43, 4), (2, 44, 1), (2, 45, 1))
"""The first release of each line in which a cloned repository can no longer run code (CVE-2024-32002, -32004, -32465)."""


def too_old(said: str) -> str | None:
    """What to do about the git that has said its version, if it is an old one."""
    found = re.search(r"(\d+)\.(\d+)(?:\.(\d+))?", said)
    version = tuple(int(part or 0) for part in found.groups()) if found else (0, 0, 0)
    floor = next((floor for floor in _FLOORS if floor[:2] == version[:2]), _FLOORS[0])
    if version >= floor:
        return None
    what = f"{said.strip()[:60]} has known holes" if found else "there is no git on the PATH"
    return f"{what}; install git {'.'.join(map(str, floor))} or newer"


def version() -> str:
    """What git says of itself; nothing where there is none."""
    try:
        return subprocess.run(["git", "--version"], capture_output=True, text=True, check=False, timeout=10).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""


class GitFailed(Transient):
    """git could not do it: the server is away, refuses the credentials, or has no such repository."""


class Mirror:
    """A bare repository under `root` that keeps the commits asked for of the one at `url`, each without its history.

    Any number of mirrors of the same URL may be used by threads and processes at the same time. Raises `Refused` for what breaks a
    rule, `NotFound` for a commit that the repository does not have, `GitFailed` where trying again may help.
    """

    def __init__(
        self, root: Path, url: str, *, allow_local: bool = False, credentials: str | None = None, parts: bool = False
    ) -> None:
        """`credentials` is `env:NAME` or `file:/PATH`, for `shared.credentials`. With `parts` it keeps of each commit only the files of the
        directories that were asked for, if the server can send them alone: another mirror, for git would take the commit for whole."""
        check_url(url, allow_local=allow_local)
        self._credentials = credentials
        self.url = url
        self._local = is_local(url)
        self._address = unquote(url.removeprefix("file://")) if url.startswith("file://") else url
        self._parts = parts
        if parts and self._local:  # git takes no path for the name of one that it may miss objects of
            self._address = f"file://{quote(self._address)}"
        name = hashlib.sha256(url.encode()).hexdigest()[:32] + ("-parts" if parts else "")
        self.directory = root / f"{name}.git"
        self._lock = root / f"{name}.lock"

    def remote_refs(self) -> dict[str, str]:
        """`refs/heads/NAME` and `refs/tags/NAME` → commit, as the server has them now; names that break our rule are left out."""
        self._create()
        refs = {}
        with _LOOK:
            listing = self._answer("ls-remote", "--quiet", "--heads", "--tags", "--", self._address, remote=True)
        for line in listing.decode(errors="replace").splitlines():
            commit, _, ref = line.partition("\t")
            ref = ref.removesuffix("^{}")  # the commit behind an annotated tag comes after the tag itself
            with suppress(Refused):
                check_ref(re.sub("^refs/(heads|tags)/", "", ref))
                refs[ref] = commit
        return refs

    def has(self, commit: str) -> bool:
        check_commit(commit)
        kept = self.directory.exists() and self._answer(
            "for-each-ref", "--format=%(refname)", f"refs/headrace/{commit}"
        )
        return bool(kept)

    def fetch(self, *commits: str, below: str | None = None) -> None:
        """Bring the commits, or `below` of them in a mirror of parts; one that is here already costs no connection, and stays even if the
        server forgets it."""
        self._create()
        with locked(self._lock) as lock:
            missing = [commit for commit in commits if not self.has(commit)]
            if missing:
                self._clear()
                self._fetch_commits(missing, lock)
            for commit in commits if self._parts and below else ():
                self._fetch_part(commit, f"{below}/", lock)

    def _clear(self) -> None:
        """Nobody else fetches now: what a killed git has left behind would stop every later one."""
        for left in ("*.lock", "refs/**/*.lock", "objects/pack/tmp_*"):
            for path in self.directory.glob(left):
                path.unlink(missing_ok=True)

    def _fetch_commits(self, commits: Sequence[str], lock: int) -> None:
        options = ["--depth=1", *(["--filter=blob:none"] if self._parts else [])]
        try:
            self._fetch([f"+{commit}:refs/headrace/{commit}" for commit in commits], lock, *options)
        except GitFailed as error:
            if not _UNADVERTISED.search(error.message):
                raise
            self._fetch_everything(commits, lock)

    def _fetch_part(self, commit: str, part: str, lock: int) -> None:
        """The contents of the files there, by their ids; a ref says that they are here."""
        mark = f"refs/parts/{commit}/{hashlib.sha256(part.encode()).hexdigest()[:32]}"
        if self._answer("for-each-ref", "--format=%(refname)", mark):
            return
        tree = self._answer("ls-tree", "-r", "-z", "--full-tree", "--", commit, part).split(b"\0")
        blobs = {line.split()[2] for line in tree if line.split()[1:2] == [b"blob"]}
        if blobs and not self._have(blobs):
            self._clear()
            self._fetch_blobs(commit, blobs, lock)
        self._answer("update-ref", mark, commit)

    def _fetch_blobs(self, commit: str, blobs: Collection[bytes], lock: int) -> None:
        """As git itself does it when it misses some; where the server gives no file by its id, the whole commit."""
        try:
            self._fetch([], lock, "--filter=blob:none", "--stdin", feed=b"\n".join(sorted(blobs)) + b"\n")
        except GitFailed as error:
            if not _UNADVERTISED.search(error.message):
                raise
            self._fetch([f"+{commit}:refs/headrace/{commit}"], lock, "--depth=1", "--no-filter", "--refetch")

    def _have(self, blobs: Collection[bytes]) -> bool:
        """A server that knows no filter has sent them with the commit; git fails for one that is not here."""
        try:
            self._answer("cat-file", "--batch-check", feed=b"\n".join(blobs) + b"\n")
        except GitFailed:
            return False
        return True

    def show(self, commit: str, path: str, max_bytes: int) -> bytes | None:
        """The bytes of a plain file of the commit, or None where it has no such file."""
        self._known(commit)
        entries = read_listing(self._answer("ls-tree", "-l", "-z", "--full-tree", "--", commit, path))
        if not entries:
            return None
        if not entries[0].mode.startswith("100") or entries[0].path != path:
            raise Refused(f"{path} is a link or a directory at commit {commit[:12]}; make it a plain file")
        if entries[0].size_bytes > max_bytes:
            raise Refused(
                f"{path} has {entries[0].size_bytes} bytes at commit {commit[:12]}; at most {max_bytes} are taken"
            )
        return self._answer("cat-file", "blob", entries[0].blob, max_bytes=max_bytes)

    def files(self, commit: str, below: str | None = None) -> tuple[Entry, ...]:
        """Every file of the commit, or of one directory of it with paths from there; links and submodules too."""
        self._known(commit)
        part = [f"{below}/"] if below else []
        refusal = Refused(f"commit {commit[:12]} has more than {MAX_FILES:,} files; keep data out of the repository")
        try:
            entries = read_listing(self._answer("ls-tree", "-r", "-l", "-z", "--full-tree", "--", commit, *part))
        except _TooLong as error:
            raise refusal from error
        if len(entries) > MAX_FILES:
            raise refusal
        if not below:
            return entries
        if not any(entry.path.startswith(f"{below}/") for entry in entries):
            raise Refused(
                f"the repository has no directory {below} at commit {commit[:12]}; mend `subdirectory`, or push it"
            )
        return tuple(replace(entry, path=entry.path.removeprefix(f"{below}/")) for entry in entries)

    def check(self, commit: str, below: str | None = None) -> tuple[Entry, ...]:
        """The files, if all of them can be checked out; raises `Refused` else, for a submodule or a Git LFS pointer, say."""
        entries = self.files(commit, below)
        small = [entry for entry in check_tree(entries) if could_be_pointer(entry)]
        if small:
            feed = "".join(f"{entry.blob}\n" for entry in small).encode()
            with self._run("cat-file", "--batch", feed=feed) as contents:
                check_pointers(small, contents)
        return entries

    def checkout(self, commit: str, into: Path, below: str | None = None) -> None:
        """Fetch the commit if need be and write its files, or those of one directory, as stored (no attribute has a say);
        `into` is there whole or not at all."""
        check_commit(commit)
        if into.exists():
            return
        self.fetch(commit, below=below)
        entries = check_tree(self.files(commit, below))
        partial = into.with_name(f".{into.name}.partial")
        with locked(into.with_name(f".{into.name}.lock")):
            if into.exists():
                return
            try:
                shutil.rmtree(partial, ignore_errors=True)
                feed = "".join(f"{entry.blob}\n" for entry in entries).encode()
                with _CHECKOUT:
                    with self._run("cat-file", "--batch", feed=feed) as contents:
                        write_tree(entries, contents, partial)
                    partial.rename(into)
            finally:
                shutil.rmtree(partial, ignore_errors=True)

    def _known(self, commit: str) -> None:
        if not self.has(commit):
            raise NotFound(f"commit {commit} has not been fetched")

    def _create(self) -> None:
        if self.directory.exists():
            return
        with locked(self._lock):
            if self.directory.exists():
                return
            partial = self.directory.with_suffix(".partial")
            shutil.rmtree(partial, ignore_errors=True)
            with self._run("init", "--bare", "--quiet", "--template=", directory=partial):
                pass
            # The operator named this repository, whoever owns it; git hides `-c safe.directory` from the upload-pack that it starts.
            (partial / "trust.config").write_text("[safe]\n\tdirectory = *\n")
            partial.rename(self.directory)

    def _fetch(self, refspecs: Sequence[str], lock: int, *options: str, feed: bytes = b"") -> None:
        flags = ["--quiet", "--no-tags", "--no-recurse-submodules", "--no-write-fetch-head", "--no-auto-maintenance"]
        argv = ["fetch", *flags, *options, "--", self._address, *refspecs]
        with _FETCH, self._run(*argv, feed=feed, timeout_s=_FETCH_S, lock=lock, remote=True):
            pass

    def _fetch_everything(self, commits: Sequence[str], lock: int) -> None:
        # A server that gives no commit by its id may still have it behind a branch or a tag.
        self._fetch(
            ["+refs/heads/*:refs/remote/heads/*", "+refs/tags/*:refs/remote/tags/*"], lock, "--prune", "--no-filter"
        )
        found = self._answer(
            "cat-file", "--batch-check=%(objectname)", feed="".join(f"{commit}\n" for commit in commits).encode()
        )
        for commit, answer in zip(commits, found.decode().splitlines(), strict=True):
            if answer != commit:
                raise NotFound(
                    f"{self.url} has no commit {commit} any more (a force push?); push it again, or tag a new release"
                )
            self._answer("update-ref", f"refs/headrace/{commit}", commit)

    def _answer(
        self, *arguments: str, feed: bytes = b"", max_bytes: int = _MAX_ANSWER_BYTES, remote: bool = False
    ) -> bytes:
        with self._run(*arguments, feed=feed, remote=remote) as output:
            answer = output.read(max_bytes + 1)
            if len(answer) > max_bytes:
                raise _TooLong(
                    f"git {arguments[0]} of {self.url} answers with more than {max_bytes} bytes; the repository is too large"
                )
        return answer

    @contextmanager
    def _run(
        self,
        *arguments: str,
        feed: bytes = b"",
        timeout_s: float = _LOOK_S,
        lock: int | None = None,
        directory: Path | None = None,
        remote: bool = False,
    ) -> Iterator[IO[bytes]]:
        """What git prints; leaving the block early kills it, leaving it whole raises `GitFailed` unless git has succeeded.

        Only a call that speaks to the server (`remote`) gets the credentials."""
        given = access(self.url, self._credentials if remote else None, self.directory.parent)
        with given as handed, TemporaryFile() as stdin, TemporaryFile() as stderr:
            own = _SETTINGS if not self._parts else (*_SETTINGS, "fetch.negotiationAlgorithm=noop")
            settings = [word for setting in (*own, *handed.settings) for word in ("-c", setting)]
            argv = ["git", *settings, f"--git-dir={directory or self.directory}", *arguments]
            stdin.write(feed)
            stdin.seek(0)
            # The lock goes along, so that a git that outlives a killed worker keeps the next one out until it ends.
            held = (*handed.descriptors, *(() if lock is None else (lock,)))
            process = _start(argv, stdin, stderr, self._environment(handed.ssh), self.directory.parent, held)
            clock = threading.Timer(timeout_s, _kill, [process])
            clock.start()
            assert process.stdout is not None
            try:
                yield process.stdout
                process.wait()
            finally:
                in_time = clock.is_alive()
                clock.cancel()
                _kill(process)
                process.wait()
                process.stdout.close()
            if process.returncode:
                stderr.seek(0)
                said = stderr.read(10_000).decode(errors="replace").strip()[-1000:]
                said = said if in_time else f"no end within {timeout_s:.0f} s"
                said = said.replace(handed.secret, "***") if handed.secret else said
                raise GitFailed(f"git {arguments[0]} of {self.url} failed: {said}{self._advice(said)}")

    def _advice(self, said: str) -> str:
        if not _SHUT_OUT.search(said):
            return ""
        if self._credentials is None:
            return '; name credentials = "env:NAME" or "file:/PATH" beside the repository in headrace.toml'
        return f"; the server does not take what {self._credentials} holds"

    def _environment(self, ssh: str) -> dict[str, str]:
        return {name: os.environ[name] for name in _PASSED_ON if name in os.environ} | {
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_CONFIG_GLOBAL": str(self.directory / "trust.config") if self._local else "/dev/null",
            "GIT_ALLOW_PROTOCOL": "file" if self._local else "https:ssh",
            "GIT_TERMINAL_PROMPT": "0",
            "GIT_SSH_COMMAND": ssh,
            "GIT_LITERAL_PATHSPECS": "1",
            "GIT_NO_LAZY_FETCH": "1",
            "GIT_OPTIONAL_LOCKS": "0",
            "LC_ALL": "C",
        }


class _TooLong(Refused):
    """git's answer is longer than anybody wants to hold in memory."""


def _start(
    argv: Sequence[str], stdin: IO[bytes], stderr: IO[bytes], env: Mapping[str, str], cwd: Path, held: tuple[int, ...]
) -> subprocess.Popen[bytes]:
    cwd.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        return subprocess.Popen(
            argv,
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=stderr,
            env=env,
            cwd=cwd,
            pass_fds=held,
            start_new_session=True,
        )
    except FileNotFoundError as error:
        raise ConfigurationError("git was not found on the PATH; install git 2.38 or newer") from error


def _kill(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
