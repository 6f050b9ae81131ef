"""The mirror of a repository of which models want one directory each: nothing else of it is fetched, where the server can do so."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from shared.errors import NotFound, Refused
from shared.git import GitFailed, Mirror
from tests.contract.test_git import Repository, force_protocol_0
from tests.git_server import make_certificate, serve

CHURN = {"models/churn/model.py": "churn", "models/churn/data/codes.csv": "1\n2\n"}
REST = {"models/heat/model.py": "heat", "logo.png": "x" * 3_000_000, "web/app.js": "everything else"}


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    made = Repository(tmp_path / "source")
    made.git("config", "uploadpack.allowFilter", "true")
    return made


@pytest.fixture
def mirror(tmp_path: Path, repository: Repository) -> Mirror:
    return Mirror(tmp_path / "mirrors", repository.path.as_uri(), allow_local=True, parts=True)


def size_bytes(mirror: Mirror) -> int:
    return sum(path.stat().st_size for path in (mirror.directory / "objects").rglob("*") if path.is_file())


def test_only_what_lies_in_the_directory_is_fetched(repository: Repository, mirror: Mirror, tmp_path: Path) -> None:
    repository.commit({"models/churn/old.bin": "y" * 3_000_000})
    commit = repository.commit(CHURN | REST | {"models/churn/old.bin": "small now"})
    mirror.fetch(commit, below="models/churn")
    assert size_bytes(mirror) < 20_000
    repository.path.rename(tmp_path / "server is away")
    assert [entry.path for entry in mirror.check(commit, "models/churn")] == ["data/codes.csv", "model.py", "old.bin"]
    assert mirror.show(commit, "models/churn/model.py", 100) == b"churn"
    mirror.fetch(commit, below="models/churn")
    mirror.checkout(commit, tmp_path / "work", "models/churn")
    assert (tmp_path / "work/data/codes.csv").read_text() == "1\n2\n"
    assert not (tmp_path / "work/logo.png").exists()


def test_models_and_releases_of_one_repository_share_a_mirror(
    repository: Repository, mirror: Mirror, tmp_path: Path
) -> None:
    first = repository.commit(CHURN | REST)
    second = repository.commit({"models/churn/model.py": "churn, better"})
    places = [(first, "churn"), (second, "churn"), (first, "heat"), (second, "heat")] * 2
    start = threading.Barrier(len(places))

    def check_out(number: int) -> str:
        commit, name = places[number]
        start.wait(10)
        own = Mirror(mirror.directory.parent, mirror.url, allow_local=True, parts=True)
        own.checkout(commit, tmp_path / str(number), f"models/{name}")
        return (tmp_path / str(number) / "model.py").read_text()

    with ThreadPoolExecutor(len(places)) as pool:
        assert list(pool.map(check_out, range(len(places)))) == ["churn", "churn, better", "heat", "heat"] * 2
    assert size_bytes(mirror) < 20_000


def test_a_model_of_the_whole_repository_is_not_taken_in_by_the_parts(
    repository: Repository, mirror: Mirror, tmp_path: Path
) -> None:
    commit = repository.commit(CHURN | REST)
    mirror.checkout(commit, tmp_path / "part", "models/churn")
    Mirror(mirror.directory.parent, mirror.url, allow_local=True).checkout(commit, tmp_path / "whole")
    assert (tmp_path / "whole/web/app.js").read_text() == "everything else"


@pytest.mark.parametrize("protocol", [0, 2])
@pytest.mark.parametrize("filters", ["true", "false"])
def test_a_server_that_cannot_send_a_part_sends_more(
    repository: Repository, mirror: Mirror, tmp_path: Path, protocol: int, filters: str
) -> None:
    repository.git("config", "uploadpack.allowFilter", filters)
    repository.git("config", "protocol.version", str(protocol))
    if protocol == 0:  # and no commit by its id either, unless a ref names it
        force_protocol_0(tmp_path, mirror)
    first = repository.commit(CHURN | REST)
    second = repository.commit({"models/churn/model.py": "churn, better"})
    for commit, text in ((first, "churn"), (second, "churn, better")):
        mirror.checkout(commit, tmp_path / commit, "models/churn")
        assert (tmp_path / commit / "model.py").read_text() == text


def test_a_directory_that_is_not_there_is_refused_as_ever(
    repository: Repository, mirror: Mirror, tmp_path: Path
) -> None:
    commit = repository.commit(CHURN | REST)
    with pytest.raises(Refused, match="no directory models/prices"):
        mirror.checkout(commit, tmp_path / "none", "models/prices")
    with pytest.raises((NotFound, GitFailed)):
        mirror.checkout("1" * 40, tmp_path / "none", "models/churn")


def test_a_fetch_that_broke_off_between_commit_and_files_is_taken_up(
    repository: Repository, mirror: Mirror, tmp_path: Path
) -> None:
    commit = repository.commit(CHURN | REST)
    mirror.fetch(commit)
    away = repository.path.rename(tmp_path / "server is away")
    with pytest.raises(GitFailed):
        mirror.fetch(commit, below="models/churn")
    away.rename(repository.path)
    mirror.checkout(commit, tmp_path / "work", "models/churn")
    assert (tmp_path / "work/model.py").read_text() == "churn"


def test_a_server_that_gives_no_file_by_its_id_sends_the_whole_commit(
    repository: Repository, mirror: Mirror, tmp_path: Path
) -> None:
    force_protocol_0(tmp_path, mirror)
    mirror.checkout(repository.commit(CHURN | REST), tmp_path / "work", "models/churn")
    assert (tmp_path / "work/model.py").read_text() == "churn"
    assert mirror.show(repository.git("rev-parse", "HEAD"), "web/app.js", 100) == b"everything else"


def test_a_part_comes_over_https_with_a_password_that_is_not_kept(
    repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = repository.commit(CHURN | REST)
    certificate = make_certificate(tmp_path / "certificate.pem")
    monkeypatch.setenv("GIT_SSL_CAINFO", str(certificate))
    monkeypatch.setenv("GIT_TOKEN", "robot:planted-secret")
    with serve(tmp_path, "robot:planted-secret", certificate) as address:
        url = f"{address}/source/.git"
        mirror = Mirror(tmp_path / "mirrors", url, credentials="env:GIT_TOKEN", parts=True)
        mirror.checkout(commit, tmp_path / "work", "models/churn")
    assert (tmp_path / "work/model.py").read_text() == "churn"
    assert size_bytes(mirror) < 20_000
    kept = [path.read_bytes() for path in mirror.directory.rglob("*") if path.is_file()]
    assert not any(b"planted-secret" in content for content in kept)
