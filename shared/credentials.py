"""What the operator gives git for one repository, handed over so that it stands in no URL, no command line, no environment and no log.

For https a token, or `user:password`: git's own `credential-store` reads it from an unnamed file, and only for the host of the
repository, wherever a server may redirect to. For ssh a private key, in the operator's file or, from a variable, in one for the moment.
"""

from __future__ import annotations

import os
import shlex
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, urlsplit

from shared import settings
from shared.errors import ConfigurationError

_MAX_BYTES = 100_000
_STALE_S = 3600.0
_SSH = "ssh -oBatchMode=yes -oConnectTimeout=15 -oServerAliveInterval=15 -oServerAliveCountMax=4"
_USER = "x-access-token"
"""Beside a token GitHub wants this name or any, GitLab any."""


@dataclass(frozen=True)
class Access:
    """What one call of git gets: settings, a descriptor to inherit, its ssh, and what may not be told of what it says."""

    settings: tuple[str, ...] = ()
    descriptors: tuple[int, ...] = ()
    ssh: str = _SSH
    secret: str | None = None


@contextmanager
def access(url: str, reference: str | None, folder: Path) -> Iterator[Access]:
    """For one call of git about `url`; `folder` is private. Raises `ConfigurationError` for a variable or a file that is not there."""
    if reference is None:
        yield Access()
    elif url.startswith("https://"):
        with _https(url, _read(reference)) as found:
            yield found
    elif reference.startswith("file:"):
        _read(reference)
        yield Access(ssh=_ssh(reference.removeprefix("file:")))
    else:
        with _key_file(_read(reference), folder) as path:
            yield Access(ssh=_ssh(str(path)))


@contextmanager
def _https(url: str, text: str) -> Iterator[Access]:
    user, colon, password = text.partition(":")
    if not colon:
        user, password = _USER, text
    with tempfile.TemporaryFile() as file:
        file.write(f"https://{quote(user, safe='')}:{quote(password, safe='')}@{urlsplit(url).netloc}\n".encode())
        file.flush()
        helper = f"credential.helper=store --file=/dev/fd/{file.fileno()}"
        yield Access(("credential.helper=", helper), (file.fileno(),), secret=password)


@contextmanager
def _key_file(key: str, folder: Path) -> Iterator[Path]:
    """ssh closes every descriptor that it inherits, so a key needs a name for as long as the call lasts."""
    for left in folder.glob(".key-*"):  # by a killed process
        with suppress(FileNotFoundError):  # another process is done with its own
            if left.stat().st_mtime < time.time() - _STALE_S:
                shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=".key-", dir=folder) as private:
        path = Path(private) / "key"
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(key + "\n")  # without a last line break ssh does not take it
        yield path


def _ssh(key: str) -> str:
    return f"{_SSH} -oIdentitiesOnly=yes -i {shlex.quote(key)}"


def _read(reference: str) -> str:
    """The text behind `env:NAME` or `file:/PATH`, without its last line break."""
    if not reference.startswith("file:"):
        text = settings.resolve(reference)
    else:
        path = reference.removeprefix("file:")
        try:
            with open(path, encoding="utf-8") as file:
                text = file.read(_MAX_BYTES)
        except (OSError, ValueError) as error:
            raise ConfigurationError(
                f"the credentials in {path} cannot be read ({getattr(error, 'strerror', None) or 'no text'}); "
                "the watcher and every trainer need the file"
            ) from error
    if not text.strip():
        raise ConfigurationError(f"the credentials that {reference} names are empty")
    return text.strip("\r\n")
