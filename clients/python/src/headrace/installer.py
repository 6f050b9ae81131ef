"""The one door to uv: what it is told, the variables that it sees, and what its complaints mean."""

from __future__ import annotations

import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from headrace.indexes import Indexes
from headrace.warded import Ending, Warded

Progress = Callable[[str], None]

_PASSED_ON = re.compile(r"PATH|HOME|TMPDIR|LANG|LC_ALL|SSL_CERT_FILE|SSL_CERT_DIR|(?i:(https?|all|no)_proxy)")
_PYTHON_SOURCES = ("UV_PYTHON_INSTALL_MIRROR", "UV_PYTHON_DOWNLOADS_JSON_URL")
_TRANSIENT = re.compile(
    r"error sending request|connection (refused|reset|closed|error)|timed? ?out|dns error|temporary failure|tls handshake"
    r"|status (server )?error \((429|5\d\d)|no space left|killed by|lost with its warden",
    re.IGNORECASE,
)
_CREDENTIALS = re.compile(r"(?<=://)[^/@\s]+(?=@)")
_ESCAPES = re.compile(r"\x1b\[[0-9;]*m")
_LIMIT_S = 1800.0
_LOOK_S = 0.5


class EnvironmentRefused(Exception):
    """The repository asks for an environment that we do not build; the message says what to do instead."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class EnvironmentFailed(Exception):
    """uv could not do it, in its own words; `transient` if trying again later may help."""

    def __init__(self, message: str, *, transient: bool) -> None:
        super().__init__(message)
        self.message = message
        self.transient = transient


def find_uv() -> Path:
    """The uv beside the running interpreter, else on PATH; raises `EnvironmentFailed` without one."""
    beside = Path(sys.executable).parent / "uv"
    found = str(beside) if beside.is_file() else shutil.which("uv")
    if found is None:
        raise EnvironmentFailed("there is no uv; install it with: pip install 'headrace[build]'", transient=False)
    return Path(found)


class Installer:
    """Runs commands that prepare environments, each under a warden: a killed owner leaves no uv that writes on.

    Index and configuration come from the operator alone: neither the repository's `[tool.uv]` nor the user's own uv.toml is read.
    """

    def __init__(self, uv: Path | str, cache: Path, pythons: Path | None = None) -> None:
        """`pythons`: where uv keeps the Pythons that it may fetch, when it is told to install one; None: it may not."""
        self._uv = str(uv)
        self._cache = cache
        self._pythons = pythons

    def uv(
        self, *arguments: str | Path, cwd: Path, indexes: Indexes = Indexes(), progress: Progress | None = None
    ) -> str:
        """Run uv and return its stdout and stderr together."""
        return self.run(
            [self._uv, *arguments, "--no-config", "--no-progress"], cwd=cwd, indexes=indexes, progress=progress
        )

    def run(
        self, argv: Sequence[str | Path], *, cwd: Path, indexes: Indexes = Indexes(), progress: Progress | None = None
    ) -> str:
        """Run a command. Raises `EnvironmentFailed`; what `progress` raises stops the command and goes through."""
        with tempfile.TemporaryDirectory(prefix="headrace-") as scratch:
            log = Path(scratch) / "log"
            warded = Warded.start([str(word) for word in argv], log=log, cwd=cwd, env=self._variables(indexes))
            try:
                ending = self._follow(warded, progress)
            finally:
                warded.kill()
            said = _CREDENTIALS.sub("***", _ESCAPES.sub("", log.read_text(errors="replace"))).strip()
        if not ending:
            said += f"\nkilled by us after {_LIMIT_S:.0f} s"
        elif not ending.ok:
            said = said or str(ending)
        else:
            return said
        raise EnvironmentFailed(said[-4000:], transient=bool(_TRANSIENT.search(said)))

    @staticmethod
    def _follow(warded: Warded, progress: Progress | None) -> Ending | None:
        for _ in range(int(_LIMIT_S / _LOOK_S)):
            ending = warded.wait(_LOOK_S)
            if ending is not None:
                return ending
            if progress is not None:
                lines = warded.log.read_text(errors="replace").strip().splitlines()
                progress(_ESCAPES.sub("", lines[-1]) if lines else "working")
        return None

    def _variables(self, indexes: Indexes) -> dict[str, str]:
        variables = {name: value for name, value in os.environ.items() if _PASSED_ON.fullmatch(name)}
        variables["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), variables.get("PATH", os.defpath)])
        variables |= {
            "UV_CACHE_DIR": str(self._cache),
            "UV_LINK_MODE": "copy",
            "UV_PYTHON_DOWNLOADS": "never",
            "NO_COLOR": "1",
        }
        if self._pythons is not None:
            variables |= {"UV_PYTHON_INSTALL_DIR": str(self._pythons), "UV_PYTHON_DOWNLOADS": "manual"}
            variables |= {name: os.environ[name] for name in _PYTHON_SOURCES if name in os.environ}
        return variables | indexes.variables()
