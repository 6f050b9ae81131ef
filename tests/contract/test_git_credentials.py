"""Credentials for git: given to the repository's own server, over real https and to a real `git-upload-pack` behind an ssh, and seen nowhere else."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from shared.errors import ConfigurationError
from shared.git import GitFailed, Mirror
from tests.git_server import make_certificate, serve

SECRET = "s3cr:t/p@ss%word"
ALLOWED = f"robot:{SECRET}"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A directory with one bare repository, `churn.git`."""
    source = tmp_path / "source"
    git("init", "-q", "-b", "main", str(source))
    (source / "model.py").write_text("x = 1\n")
    git("-C", str(source), "add", "-A")
    git("-C", str(source), "commit", "-q", "-m", "first")
    git("clone", "-q", "--bare", str(source), str(tmp_path / "served" / "churn.git"))
    return tmp_path / "served"


def git(*arguments: str) -> str:
    who = {f"GIT_{role}_{fact}": "a@example.com" for role in ("AUTHOR", "COMMITTER") for fact in ("NAME", "EMAIL")}
    env = {"PATH": os.environ["PATH"], "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_NOSYSTEM": "1", **who}
    return subprocess.run(["git", *arguments], env=env, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def certificate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = make_certificate(tmp_path / "certificate.pem")
    monkeypatch.setenv("GIT_SSL_CAINFO", str(path))
    return path


def told_to_all() -> str:
    """Command lines and environments of every git on this machine, as another process of its user sees them."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            line = (process / "cmdline").read_bytes()
            found.append(
                line + (process / "environ").read_bytes() if line.startswith(b"git") or b"/git" in line else b""
            )
        except OSError:
            continue  # it has ended, or is another user's
    return b"\n".join(found).decode(errors="replace")


@pytest.mark.parametrize("how", ["variable", "file"])
def test_a_password_opens_the_server_and_is_seen_nowhere(
    root: Path, certificate: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    seen: list[str] = []
    monkeypatch.setenv("GIT_TOKEN", ALLOWED)
    (tmp_path / "token").write_text(ALLOWED + "\n")
    reference = "env:GIT_TOKEN" if how == "variable" else f"file:{tmp_path / 'token'}"
    commit = git("-C", str(root / "churn.git"), "rev-parse", "main")
    with serve(root, ALLOWED, certificate, lambda: seen.append(told_to_all())) as address:
        mirror = Mirror(tmp_path / "mirrors", f"{address}/churn.git", credentials=reference)
        assert mirror.remote_refs() == {"refs/heads/main": commit}
        mirror.checkout(commit, tmp_path / "work")
    assert (tmp_path / "work/model.py").read_text() == "x = 1\n"
    assert any("remote-https" in told for told in seen)
    left = [path.read_bytes() for path in (tmp_path / "mirrors").rglob("*") if path.is_file()]
    for hidden in (SECRET, "p%40ss"):
        assert not any(hidden in told for told in seen)
        assert not any(hidden.encode() in content for content in left)


def test_a_token_alone_is_enough(
    root: Path, certificate: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_TOKEN", "glpat-1")
    with serve(root, "x-access-token:glpat-1", certificate) as address:
        assert Mirror(tmp_path / "mirrors", f"{address}/churn.git", credentials="env:GIT_TOKEN").remote_refs()


def test_a_wrong_password_and_none_are_said_without_it(
    root: Path, certificate: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_TOKEN", f"robot:wrong-{SECRET}")
    with serve(root, ALLOWED, certificate) as address:
        for reference, advice in (("env:GIT_TOKEN", "take what env:GIT_TOKEN holds"), (None, "name credentials = ")):
            mirror = Mirror(tmp_path / "mirrors", f"{address}/churn.git", credentials=reference)
            with pytest.raises(GitFailed, match=r"(?i)authentication failed|could not read Username") as failed:
                mirror.remote_refs()
            assert SECRET not in failed.value.message
            assert advice in failed.value.message


def test_a_server_that_sends_git_elsewhere_does_not_have_the_password_sent_there(
    root: Path, certificate: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_TOKEN", ALLOWED)
    with serve(root, ALLOWED, certificate) as other, serve(root, ALLOWED, certificate, redirect=other) as address:
        mirror = Mirror(tmp_path / "mirrors", f"{address}/churn.git", credentials="env:GIT_TOKEN")
        with pytest.raises(GitFailed, match="could not read Username"):
            mirror.remote_refs()
        assert Mirror(tmp_path / "mirrors", f"{other}/churn.git", credentials="env:GIT_TOKEN").remote_refs()


SSH = """#!/bin/sh
for word; do
  case "$before" in -i) key=$word;; esac
  before=$word
done
echo "$@" >> {log}
stat -c %a "$key" >> {log}
cmp "$key" {wanted} || exit 9
exec sh -c "$word"
"""


@pytest.mark.parametrize("how", ["variable", "file"])
def test_a_private_key_is_handed_to_ssh_by_name_and_leaves_nothing(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    key = tmp_path / "a key"
    key.write_text("-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n-----END OPENSSH PRIVATE KEY-----\n")
    key.chmod(0o600)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/ssh").write_text(SSH.format(log=tmp_path / "log", wanted=f"'{key}'"))
    (tmp_path / "bin/ssh").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("GIT_KEY", key.read_text())
    reference = "env:GIT_KEY" if how == "variable" else f"file:{key}"
    mirror = Mirror(tmp_path / "mirrors", f"ssh://git@git.example.com{root}/churn.git", credentials=reference)
    (commit,) = mirror.remote_refs().values()
    mirror.checkout(commit, tmp_path / "work")
    assert (tmp_path / "work/model.py").read_text() == "x = 1\n"
    said = (tmp_path / "log").read_text()
    assert "-oIdentitiesOnly=yes" in said
    assert "600" in said
    assert "PRIVATE KEY" not in said
    assert not list((tmp_path / "mirrors").glob(".key-*"))


@pytest.mark.parametrize(
    ("reference", "says"),
    [
        ("env:NO_SUCH_TOKEN", "NO_SUCH_TOKEN is not set"),
        ("file:/no/such/token", "every trainer need the file"),
        ("env:EMPTY_TOKEN", "are empty"),
    ],
)
def test_credentials_that_are_not_there_are_said_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reference: str, says: str
) -> None:
    monkeypatch.setenv("EMPTY_TOKEN", "\n")
    mirror = Mirror(tmp_path / "mirrors", "https://127.0.0.1:9/churn.git", credentials=reference)
    with pytest.raises(ConfigurationError, match=says):
        mirror.remote_refs()
