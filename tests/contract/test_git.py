"""The door to git, over real repositories: what it takes, what it refuses, and what a hostile repository can't do."""

import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from shared import worktree
from shared.errors import NotFound, Refused
from shared.git import GitFailed, Mirror, check_ref, check_url, highest_version, resolve, too_old, version

HOME = Path(__file__).parents[2]
FETCH = """
import sys, pathlib
from shared.git import Mirror
Mirror(pathlib.Path(sys.argv[1]), sys.argv[2], allow_local=True).fetch(sys.argv[3])
"""
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2\nsize 12345\n"


class Repository:
    """A real repository, written by git's own commands; `objects` makes commits that no `git add` would make."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir()
        self.git("init", "--quiet", "--initial-branch=main")
        self.git("config", "gc.auto", "0")

    def git(self, *arguments: str, feed: bytes | None = None) -> str:
        who = {f"GIT_{role}_{fact}": "a@example.com" for role in ("AUTHOR", "COMMITTER") for fact in ("NAME", "EMAIL")}
        env = {"PATH": os.environ["PATH"], "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_NOSYSTEM": "1", **who}
        done = subprocess.run(["git", *arguments], cwd=self.path, env=env, input=feed, capture_output=True)
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout.decode().strip()

    def commit(self, files: dict[str, str], tag: str | None = None) -> str:
        for name, text in files.items():
            (self.path / name).parent.mkdir(parents=True, exist_ok=True)
            (self.path / name).write_text(text)
        self.git("add", "--all", "--force")
        self.git("commit", "--quiet", "--allow-empty", "--message=change")
        if tag:
            self.git("tag", "--force", tag)
        return self.git("rev-parse", "HEAD")

    def blob(self, data: bytes) -> str:
        return self.git("hash-object", "-w", "--stdin", feed=data)

    def tree(self, *entries: tuple[str, str, str]) -> str:
        """Entries (mode, name, id) as they are, also in ways that git itself never writes."""
        raw = b"".join(f"{mode} {name}\0".encode() + bytes.fromhex(oid) for mode, name, oid in entries)
        return self.git("hash-object", "-w", "-t", "tree", "--stdin", "--literally", feed=raw)

    def commit_tree(self, tree: str) -> str:
        commit = self.git("commit-tree", "-m", "made by hand", tree)
        self.git("update-ref", "refs/heads/main", commit)
        return commit


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository(tmp_path / "source")


@pytest.fixture
def mirror(tmp_path: Path, repository: Repository) -> Mirror:
    return Mirror(tmp_path / "mirrors", str(repository.path), allow_local=True)


# Inputs 25-29 of the catalogue of failures, and their kin; CANARY is replaced by the path of a file that must never appear.
HOSTILE_URLS = [
    "--upload-pack=touch CANARY",
    "-oProxyCommand=touch CANARY",
    "--upload-pack=touch CANARY /srv/repo",
    "ext::sh -c touch% CANARY",
    "EXT::sh -c touch% CANARY",
    "ext::touch",
    "fd::3",
    "fd::17/foo",
    "file::/srv/repo",
    "ssh://-oProxyCommand=touch%20CANARY/x",
    "ssh://git@-oProxyCommand=touch/x",
    "ssh://user:secret@example.com/x.git",
    "git@-oProxyCommand=touch:x",
    "git@example.com:-x",
    "-git@example.com:x",
    "user:secret@example.com:x.git",
    "user:secret@example.com",
    "https://user:secret@example.com/x.git",
    "https://secret@example.com/x.git",
    "https:///example.com/x",
    "https://",
    "https://example.com",
    "https://-example.com/x",
    "https://example.com/x\nhost=evil.example",
    "https://example.com/%0ahost=evil.example",
    "https://example.com/a b",
    "https://example.com/$(touch CANARY)",
    "https://example.com/`touch CANARY`",
    "https://example.com/x;touch",
    "https://example.com/x?y=1",
    "https://example.com:port/x",
    "HTTPS+git://example.com/x",
    "http://example.com/x.git",
    "HTTP://example.com/x.git",
    "git://example.com/x.git",
    "ftp://example.com/x.git",
    "git+ssh://example.com/x.git",
    "file://example.com/srv/repo",
    "file://",
    "file:relative",
    "relative/path",
    "../up",
    "~/repo",
    "/srv/re\x00po",
    "/srv/re\npo",
    "https://еxample.com/x",
    "https://example.com/" + "x" * 1000,
    "",
    " ",
]


@pytest.mark.parametrize("allow_local", [True, False])
@pytest.mark.parametrize("url", HOSTILE_URLS)
def test_a_hostile_url_is_refused_before_git_sees_it(url: str, allow_local: bool, tmp_path: Path) -> None:
    url = url.replace("CANARY", str(tmp_path / "CANARY"))
    with pytest.raises(Refused) as refusal:
        Mirror(tmp_path / "mirrors", url, allow_local=allow_local)
    assert "secret" not in refusal.value.message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("url", ["/etc", "/srv/repo", "file:///etc", "file:///srv/repo.git"])
def test_a_repository_on_this_machine_needs_the_operators_word(url: str) -> None:
    with pytest.raises(Refused, match="operator's own file"):
        check_url(url)
    check_url(url, allow_local=True)


@pytest.mark.parametrize(
    "url",
    [
        "https://git.example.com/ml/flight-delays.git",
        "https://git.example.com:8443/ml/~me/flight_delays",
        "https://[2001:db8::1]/x.git",
        "ssh://git@git.example.com:2222/ml/x.git",
        "ssh://git.example.com/x",
        "git@github.com:ml/flight-delays.git",
        "git@host:/abs/x.git",
    ],
)
def test_a_plain_url_is_taken(url: str) -> None:
    check_url(url)


@pytest.mark.parametrize(
    "url", ["ext::sh -c touch% CANARY", "http://127.0.0.1:9/x", "git://127.0.0.1:9/x", "SOURCE", "file://SOURCE"]
)
def test_a_url_that_slips_through_our_rule_is_stopped_by_gits_own(
    url: str, tmp_path: Path, repository: Repository
) -> None:
    repository.commit({"a": "a"})
    mirror = Mirror(tmp_path / "mirrors", "https://git.example.com/x.git")
    mirror._address = url.replace("CANARY", str(tmp_path / "CANARY")).replace("SOURCE", str(repository.path))
    with pytest.raises(GitFailed, match=r"transport '.*' not allowed"):
        mirror.remote_refs()
    assert not (tmp_path / "CANARY").exists()


@pytest.mark.parametrize(
    "name",
    ["-x", "--upload-pack=x", "$(id)", "`id`", "a..b", "@{u}", "@", "x@{1}", "refs/heads/x.lock", "x.lock/y", "x" * 300,
     "", "/a", "a/", "a//b", ".a", "a/.b", "a.", "a b", "a\nb", "a\x00b", "a~1", "a^", "a:b", "a?", "a*", "a[b", "a\\b", "ä", "v1;id"],
)  # fmt: skip
def test_a_hostile_name_of_a_branch_or_tag_is_refused(name: str) -> None:
    with pytest.raises(Refused):
        check_ref(name)
    with pytest.raises(Refused):
        resolve(f"branch:{name}", {f"refs/heads/{name}": "1" * 40})


@pytest.mark.parametrize("name", ["main", "v1.4.0", "feature/faster-trees", "1.0+cu118", "release_2", "x" * 200])
def test_a_plain_name_of_a_branch_or_tag_is_taken(name: str) -> None:
    check_ref(name)


@pytest.mark.parametrize(
    ("tags", "highest"),
    [
        (["v1.9.0", "v1.10.0", "v1.2"], "v1.10.0"),
        (["1.0", "v0.9", "nightly", "latest", "v", ""], "1.0"),
        (["v1.0", "v2.0rc1", "v2.0.dev3", "v1.0.post1"], "v1.0.post1"),
        (["v2.0rc1"], None),
        (["9" * 5000, "v1.0"], "v1.0"),
        ([], None),
    ],
)
def test_the_highest_version_is_found_among_all_kinds_of_tags(tags: list[str], highest: str | None) -> None:
    assert highest_version(tags) == highest


@pytest.mark.parametrize(
    ("tags", "highest"),
    [
        (["v1.0", "v2.0rc1"], "v2.0rc1"),
        (["v2.0rc1", "v2.0"], "v2.0"),
        (["2.0.0-alpha.beta", "2.0.0-alpha.1.x", "2.0.0-alpha.gamma.2"], "2.0.0-alpha.gamma.2"),
        (["2.0.0-x.11", "2.0.0-x.9"], "2.0.0-x.11"),
        (["2.0.0-alpha.beta", "2.0.0-rc.1", "1.9.9"], "2.0.0-rc.1"),
        (["2.0.0-alpha.beta", "2.0.0"], "2.0.0"),
        (["2.0.0-alpha.beta", "1.9.9"], "2.0.0-alpha.beta"),
    ],
)
def test_prereleases_of_both_kinds_of_versions_count_where_they_are_wanted(tags: list[str], highest: str) -> None:
    for order in (tags, tags[::-1]):
        assert highest_version(order, prereleases=True) == highest


@pytest.mark.parametrize(
    ("pattern", "highest"),
    [
        ("churn-*", "churn-v1.2"),
        ("churn/*", "churn/2.0.0"),
        ("*-final", "1.0-final"),
        ("prices-*", None),
        ("*", "v9.0"),
    ],
)
def test_a_pattern_chooses_the_tags_of_one_model(pattern: str, highest: str | None) -> None:
    tags = [
        "v9.0",
        "churn-v1.2",
        "churn-v1.1",
        "churn-old",
        "churn-",
        "churn/2.0.0",
        "1.0-final",
        "-final",
        "prices-v3rc1",
    ]
    assert highest_version(tags, pattern=pattern) == highest


def test_the_lack_of_a_version_tag_is_said_with_what_would_be_taken() -> None:
    refs = {"refs/tags/churn-v1.0rc1": "a" * 40}
    with pytest.raises(NotFound, match=r"git tag v1\.0\.0"):
        resolve("latest", refs)
    with pytest.raises(NotFound, match=r"of the form prices-\*; tag a release \(git tag prices-v1\.0\.0\)"):
        resolve("latest", refs, pattern="prices-*")
    with pytest.raises(NotFound, match=r"but of pre-releases; write prereleases = true"):
        resolve("latest", refs, pattern="churn-*")
    assert resolve("latest", refs, pattern="churn-*", prereleases=True) == ("churn-v1.0rc1", "a" * 40)


def test_a_release_is_resolved_to_a_name_and_a_commit() -> None:
    refs = {"refs/heads/main": "a" * 40, "refs/tags/v1.0": "b" * 40, "refs/tags/v1.1": "c" * 40}
    assert resolve("latest", refs) == ("v1.1", "c" * 40)
    assert resolve("tag:v1.0", refs) == ("v1.0", "b" * 40)
    assert resolve("branch:main", refs) == ("main", "a" * 40)
    assert resolve("d" * 40, refs) == ("d" * 40, "d" * 40)


@pytest.mark.parametrize("release", ["latest", "branch:gone", "tag:v9"])
def test_a_release_that_does_not_exist_is_not_found(release: str) -> None:
    with pytest.raises(NotFound):
        resolve(release, {"refs/tags/nightly": "a" * 40})


@pytest.mark.parametrize(
    "release", ["", "newest", "abc123", "A" * 40, "branch", "tag", "branch:", "-x", "HEAD", "commit:" + "a" * 40]
)
def test_a_release_that_cannot_be_understood_is_refused(release: str) -> None:
    with pytest.raises(Refused):
        resolve(release, {"refs/heads/main": "a" * 40})


def test_an_annotated_tag_is_answered_with_its_commit(repository: Repository, mirror: Mirror) -> None:
    commit = repository.commit({"a": "a"})
    repository.git("tag", "--annotate", "--message=first", "v1.0")
    repository.git("update-ref", "refs/heads/-x", commit)
    assert mirror.remote_refs() == {"refs/heads/main": commit, "refs/tags/v1.0": commit}


def test_a_file_of_a_commit_is_shown_within_its_bound(repository: Repository, mirror: Mirror) -> None:
    commit = repository.commit({"pyproject.toml": "[project]\n", "src/a.py": "pass\n"})
    mirror.fetch(commit)
    assert mirror.show(commit, "pyproject.toml", 1000) == b"[project]\n"
    assert mirror.show(commit, "src/a.py", 1000) == b"pass\n"
    assert mirror.show(commit, "uv.lock", 1000) is None
    assert mirror.show(commit, "*.toml", 1000) is None
    with pytest.raises(Refused, match="10 bytes"):
        mirror.show(commit, "pyproject.toml", 9)
    with pytest.raises(Refused, match="directory"):
        mirror.show(commit, "src", 1000)


def test_a_declaration_that_is_a_link_is_refused(repository: Repository, mirror: Mirror) -> None:
    (repository.path / "pyproject.toml").symlink_to("/etc/passwd")
    commit = repository.commit({})
    mirror.fetch(commit)
    with pytest.raises(Refused, match="link"):
        mirror.show(commit, "pyproject.toml", 10_000)


def test_the_files_of_a_commit_are_written_as_they_are_stored(
    repository: Repository, mirror: Mirror, tmp_path: Path
) -> None:
    (repository.path / "link.py").symlink_to("src/a.py")
    (repository.path / "empty").touch()
    (repository.path / "run.sh").touch(mode=0o755)
    commit = repository.commit({"src/a.py": "x = 1\n", "name with ü": "unicode", "big": "z" * 3_000_000})
    mirror.checkout(commit, tmp_path / "work" / commit)
    work = tmp_path / "work" / commit
    found = {path.relative_to(work).as_posix() for path in work.rglob("*") if not path.is_dir()}
    assert found == {"src/a.py", "link.py", "empty", "run.sh", "name with ü", "big"}
    assert (work / "link.py").is_symlink()
    assert (work / "link.py").read_text() == "x = 1\n"
    assert (work / "big").read_text() == "z" * 3_000_000
    assert os.access(work / "run.sh", os.X_OK)
    assert not os.access(work / "src/a.py", os.X_OK)


def test_two_models_of_one_repository_are_fetched_once_and_see_nothing_of_each_other(
    repository: Repository, mirror: Mirror, tmp_path: Path
) -> None:
    (repository.path / "models/churn").mkdir(parents=True)
    (repository.path / "models/churn/same.py").symlink_to("model.py")
    repository.tree(("160000", "vendored", "1" * 40))
    files = {"models/churn/model.py": "churn", "models/churn-2/model.py": "other", "docs/logo.png": POINTER}
    commit = repository.commit(files)
    mirror.checkout(commit, tmp_path / "churn", "models/churn")
    repository.path.rename(tmp_path / "server is away")
    mirror.checkout(commit, tmp_path / "other", "models/churn-2")
    assert sorted(path.name for path in (tmp_path / "churn").iterdir()) == ["model.py", "same.py"]
    assert (tmp_path / "churn/same.py").read_text() == "churn"
    assert (tmp_path / "other/model.py").read_text() == "other"
    assert mirror.show(commit, "models/churn-2/model.py", 100) == b"other"
    assert [entry.path for entry in mirror.check(commit, "models/churn")] == ["model.py", "same.py"]
    with pytest.raises(Refused, match=r"lfs_pointer_found: docs/logo\.png"):
        mirror.check(commit)
    for place in ("models/prices", "models/churn/model.py", "models/churn/same.py"):
        with pytest.raises(Refused, match=f"no directory {place}"):
            mirror.checkout(commit, tmp_path / "none", place)


def test_a_link_out_of_a_models_directory_is_refused(repository: Repository, mirror: Mirror, tmp_path: Path) -> None:
    (repository.path / "churn").mkdir()
    (repository.path / "churn/shared.py").symlink_to("../shared.py")
    commit = repository.commit({"shared.py": "x = 1"})
    with pytest.raises(Refused, match="leads out of the repository"):
        mirror.checkout(commit, tmp_path / "work", "churn")


def test_a_moved_tag_does_not_move_what_was_resolved(repository: Repository, mirror: Mirror, tmp_path: Path) -> None:
    repository.commit({"model.py": "first"}, tag="v1.0")
    name, commit = resolve("latest", mirror.remote_refs())
    repository.git("commit", "--amend", "--allow-empty", "--message=rewritten")
    (repository.path / "model.py").write_text("second")
    moved = repository.commit({}, tag="v1.0")
    assert resolve("latest", mirror.remote_refs()) == (name, moved)
    mirror.checkout(commit, tmp_path / "work")
    assert (tmp_path / "work/model.py").read_text() == "first"


def test_a_fetched_commit_stays_when_a_force_push_removes_it(
    repository: Repository, mirror: Mirror, tmp_path: Path
) -> None:
    first = repository.commit({"model.py": "first"})
    mirror.fetch(first)
    forget(repository, first)
    mirror.checkout(first, tmp_path / "work")
    assert (tmp_path / "work/model.py").read_text() == "first"


def test_a_commit_that_a_force_push_has_removed_is_not_found(
    repository: Repository, mirror: Mirror, tmp_path: Path
) -> None:
    first = repository.commit({"model.py": "first"})
    forget(repository, first)
    with pytest.raises(NotFound, match="force push"):
        mirror.checkout(first, tmp_path / "work")
    assert not (tmp_path / "work").exists()


def forget(repository: Repository, commit: str) -> None:
    repository.git("checkout", "--quiet", "--orphan", "other")
    other = repository.commit({"other.py": "other"})
    repository.git("branch", "--force", "main", other)
    repository.git("reflog", "expire", "--expire=now", "--all")
    repository.git("gc", "--quiet", "--prune=now")
    assert commit not in repository.git("cat-file", "--batch-all-objects", "--batch-check")


def test_a_server_that_gives_no_commit_by_its_id_is_asked_for_all_branches(
    repository: Repository, mirror: Mirror, tmp_path: Path
) -> None:
    first = repository.commit({"model.py": "first"})
    repository.commit({"model.py": "second"})
    repository.git("config", "protocol.version", "0")  # the old protocol refuses what is not the tip of a ref
    force_protocol_0(tmp_path, mirror)
    mirror.checkout(first, tmp_path / "work")
    assert (tmp_path / "work/model.py").read_text() == "first"


def force_protocol_0(tmp_path: Path, mirror: Mirror) -> None:
    mirror.remote_refs()
    with (mirror.directory / "config").open("a") as stream:
        stream.write("[protocol]\n\tversion = 0\n")


def test_a_failed_fetch_may_be_tried_again(tmp_path: Path) -> None:
    mirror = Mirror(tmp_path / "mirrors", str(tmp_path / "later"), allow_local=True)
    with pytest.raises(GitFailed, match="later"):
        mirror.remote_refs()
    repository = Repository(tmp_path / "later")
    commit = repository.commit({"a": "a"})
    assert mirror.remote_refs() == {"refs/heads/main": commit}


def test_what_a_killed_fetch_leaves_behind_stops_no_later_one(repository: Repository, mirror: Mirror) -> None:
    commit = repository.commit({"a": "a"})
    mirror.remote_refs()
    (mirror.directory / "shallow.lock").touch()
    (mirror.directory / "refs/headrace").mkdir()
    (mirror.directory / f"refs/headrace/{commit}.lock").touch()
    (mirror.directory / "objects/pack/tmp_pack_x").touch()
    mirror.fetch(commit)
    assert mirror.has(commit)
    assert not list(mirror.directory.rglob("tmp_pack*"))


def test_eight_checkouts_at_once_make_one_work_tree(repository: Repository, tmp_path: Path) -> None:
    commit = repository.commit({f"src/{number}.py": f"{number}\n" for number in range(200)})
    into = tmp_path / "work" / commit
    together = threading.Barrier(8)

    def check_out(_: int) -> tuple[int, int]:
        together.wait()
        Mirror(tmp_path / "mirrors", str(repository.path), allow_local=True).checkout(commit, into)
        return into.stat().st_ino, sum(1 for _ in into.rglob("*.py"))

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(check_out, range(8)))) == 1
    assert len(list((into / "src").iterdir())) == 200
    assert sorted(path.name for path in into.parent.iterdir()) == sorted([f".{commit}.lock", commit])


def test_eight_processes_fetch_eight_commits_of_one_mirror(
    repository: Repository, mirror: Mirror, tmp_path: Path
) -> None:
    commits = [repository.commit({"a": str(number)}) for number in range(8)]
    argv = [sys.executable, "-c", FETCH, str(tmp_path / "mirrors"), str(repository.path)]
    children = [subprocess.Popen([*argv, commit], cwd=HOME, stderr=subprocess.PIPE) for commit in commits]
    assert [child.communicate()[1] for child in children] == [b""] * 8
    assert all(mirror.has(commit) for commit in commits)


def test_a_repository_of_another_owner_is_read_when_the_operator_names_it(
    repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = repository.commit({"a": "a"})
    pretend_another_owner(tmp_path, monkeypatch)
    mirror = Mirror(tmp_path / "mirrors", f"file://{repository.path}", allow_local=True)
    assert mirror.remote_refs() == {"refs/heads/main": commit}
    mirror.checkout(commit, tmp_path / "work")
    assert (tmp_path / "work/a").read_text() == "a"


def pretend_another_owner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_before_git(tmp_path / "bin", "export GIT_TEST_ASSUME_DIFFERENT_OWNER=1")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")


def put_before_git(directory: Path, line: str) -> None:
    """A `git` for the PATH that runs a line of shell first."""
    directory.mkdir()
    (directory / "git").write_text(f'#!/bin/sh\n{line}\nexec {shutil.which("git")} "$@"\n')
    (directory / "git").chmod(0o755)


def test_a_git_that_outlives_its_killed_worker_keeps_the_next_one_out(
    repository: Repository, mirror: Mirror, tmp_path: Path
) -> None:
    commit = repository.commit({"a": "a"})
    mirror.remote_refs()
    os.mkfifo(tmp_path / "go")
    put_before_git(
        tmp_path / "bin", f'case "$*" in *" fetch "*) touch {tmp_path}/fetching; read word < {tmp_path}/go;; esac'
    )
    worker = subprocess.Popen(
        [sys.executable, "-c", FETCH, str(tmp_path / "mirrors"), str(repository.path), commit],
        cwd=HOME,
        env={**os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"},
    )
    wait_until(lambda: (tmp_path / "fetching").exists())
    worker.kill()
    worker.wait()
    with ThreadPoolExecutor(1) as pool:
        next_one = pool.submit(mirror.fetch, commit)
        with pytest.raises(TimeoutError):
            next_one.result(0.5)
        (tmp_path / "go").write_text("go\n")
        next_one.result(20)
    assert mirror.has(commit)


def wait_until(condition: Callable[[], bool], timeout_s: float = 20) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not come true in time"
        threading.Event().wait(0.002)


def test_git_runs_without_the_secrets_and_the_configuration_of_its_surroundings(
    repository: Repository, mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = repository.commit({"a": "a"})
    (tmp_path / ".gitconfig").write_text(f'[url "{tmp_path}/elsewhere"]\n\tinsteadOf = {repository.path}\n')
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "wrong"))
    monkeypatch.setenv("GIT_CONFIG_COUNT", "broken")
    monkeypatch.setenv("DATABASE_PASSWORD", "secret")
    assert mirror.remote_refs() == {"refs/heads/main": commit}
    assert "DATABASE_PASSWORD" not in mirror._environment("ssh")


def test_hooks_filters_and_submodule_files_of_a_repository_run_nothing(
    repository: Repository, mirror: Mirror, tmp_path: Path
) -> None:
    touch = f"touch {tmp_path}/CANARY"
    commit = repository.commit(
        {
            ".gitmodules": f'[submodule "a"]\n\tpath = a\r\n\turl = ext::sh -c {touch}\n[submodule "b"]\n\turl = -u./x\n',
            ".gitattributes": "* filter=evil ident eol=crlf\n*.py diff=evil\n",
            "hooks/post-checkout": f"#!/bin/sh\n{touch}\n",
            "model.py": "# $Id$\n",
            "bare/HEAD": "ref: refs/heads/main\n",
            "bare/config": f"[core]\n\tbare = true\n\tfsmonitor = {touch}\n",
            "bare/objects/x": "",
            "bare/refs/x": "",
        }
    )
    for hook in ("post-checkout", "reference-transaction", "post-update"):
        path = repository.path / ".git/hooks" / hook
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\n{touch}\n")
        path.chmod(0o755)
    for key in (
        "filter.evil.smudge",
        "filter.evil.process",
        "uploadpack.packObjectsHook",
        "core.fsmonitor",
        "core.sshCommand",
    ):
        repository.git("config", key, touch)
    mirror.checkout(commit, tmp_path / "work")
    assert (tmp_path / "work/model.py").read_bytes() == b"# $Id$\n"
    assert not (mirror.directory / "hooks").exists()
    assert not (tmp_path / "CANARY").exists()


def test_objects_of_a_local_repository_are_copied_and_not_linked(repository: Repository, mirror: Mirror) -> None:
    commit = repository.commit({"a": "a"})
    mirror.fetch(commit)
    theirs = {path.stat().st_ino for path in (repository.path / ".git/objects").rglob("*") if path.is_file()}
    ours = {path.stat().st_ino for path in (mirror.directory / "objects").rglob("*") if path.is_file()}
    assert ours
    assert not ours & theirs


def submodule(repository: Repository) -> str:
    return repository.tree(("160000", "vendored", "1" * 40))


def lfs_pointer(repository: Repository) -> str:
    return repository.tree(("100644", "flights.parquet", repository.blob(POINTER.encode())))


def absolute_link(repository: Repository) -> str:
    return repository.tree(("120000", "passwd", repository.blob(b"/etc/passwd")))


def link_up(repository: Repository) -> str:
    return repository.tree(("120000", "up", repository.blob(b"../outside")))


def link_through_a_link(repository: Repository) -> str:
    inner = repository.tree(
        ("120000", "s", repository.blob(b"../..")), ("120000", "x", repository.blob(b"s/../../../f"))
    )
    return repository.tree(("40000", "p", repository.tree(("40000", "q", inner))))


def link_of_many_bytes(repository: Repository) -> str:
    return repository.tree(("120000", "long", repository.blob(b"x" * 5000)))


def link_with_a_null(repository: Repository) -> str:
    return repository.tree(("120000", "null", repository.blob(b"a\0b")))


def link_to_nothing(repository: Repository) -> str:
    return repository.tree(("120000", "nothing", repository.blob(b"")))


def file_below_a_link(repository: Repository) -> str:
    directory = repository.tree(("100644", "CANARY", repository.blob(b"written through the link")))
    return repository.tree(("120000", "d", repository.blob(b"..")), ("40000", "d", directory))


def link_below_a_link(repository: Repository) -> str:
    directory = repository.tree(("120000", "CANARY", repository.blob(b"x")))
    return repository.tree(("120000", "d", repository.blob(b"../../..")), ("40000", "d", directory))


def link_below_a_link_of_another_case(repository: Repository) -> str:
    directory = repository.tree(("120000", "CANARY", repository.blob(b"x")))
    return repository.tree(("120000", "D", repository.blob(b"../../..")), ("40000", "d", directory))


def file_twice(repository: Repository) -> str:
    return repository.tree(("100644", "f", repository.blob(b"1")), ("100644", "f", repository.blob(b"2")))


def dot_git(repository: Repository) -> str:
    config = repository.tree(("100644", "config", repository.blob(b"[core]\n\tfsmonitor = touch CANARY\n")))
    return repository.tree(("40000", ".GIT", config))


def dot_dot(repository: Repository) -> str:
    return repository.tree(("40000", "..", repository.tree(("100644", "CANARY", repository.blob(b"x")))))


def carriage_return(repository: Repository) -> str:
    return repository.tree(("100644", "a\r", repository.blob(b"x")))


def name_too_long(repository: Repository) -> str:
    return repository.tree(("100644", "a" * 300, repository.blob(b"x")))


def too_many_files(repository: Repository) -> str:
    empty = repository.blob(b"")
    return repository.tree(*(("100644", f"{number:05}", empty) for number in range(20_001)))


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (submodule, "vendored is a submodule"),
        (lfs_pointer, "lfs_pointer_found: flights.parquet"),
        (absolute_link, "the link passwd leads out"),
        (link_up, "the link up leads out"),
        (link_through_a_link, "the link p/q/x leads out"),
        (link_of_many_bytes, "the link long has a target of 5000 bytes"),
        (link_with_a_null, "the link null"),
        (link_to_nothing, "the link nothing"),
        (file_below_a_link, "d/CANARY stands there twice"),
        (link_below_a_link, "d/CANARY stands there twice"),
        (link_below_a_link_of_another_case, "d/CANARY stands there twice"),
        (file_twice, "f stands there twice"),
        (dot_git, "file name '.GIT/config' is not taken"),
        (dot_dot, r"file name '\.\./CANARY' is not taken"),
        (carriage_return, r"file name 'a\\r' is not taken"),
        (name_too_long, "is not taken"),
        (too_many_files, "more than 20,000 files"),
    ],
)
def test_a_hostile_tree_is_refused_and_leaves_nothing(
    make: Callable[[Repository], str], word: str, repository: Repository, mirror: Mirror, tmp_path: Path
) -> None:
    commit = repository.commit_tree(make(repository))
    with pytest.raises(Refused, match=word):
        mirror.checkout(commit, tmp_path / "work" / commit)
    assert not any("CANARY" in names for _, *kinds in os.walk(tmp_path) for names in kinds)
    assert [path.name for path in (tmp_path / "work").glob("*") if path.suffix != ".lock"] == []


def test_more_bytes_than_the_bound_are_refused_before_one_is_written(
    repository: Repository, mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worktree, "MAX_BYTES", 1000)
    commit = repository.commit({"a": "x" * 600, "b": "x" * 600})
    with pytest.raises(Refused, match="1,200 bytes"):
        mirror.checkout(commit, tmp_path / "work")


@pytest.mark.parametrize("commit", ["HEAD", "-x", "a" * 39, "A" * 40, "a" * 40 + "\n", "refs/heads/main"])
def test_only_a_whole_commit_id_names_a_commit(commit: str, mirror: Mirror, tmp_path: Path) -> None:
    for ask in (mirror.has, mirror.fetch, mirror.files, lambda text: mirror.checkout(text, tmp_path / "work")):
        with pytest.raises(Refused, match="40 hex digits"):
            ask(commit)


@pytest.mark.parametrize(
    ("said", "old"),
    [
        ("git version 2.39.5", False),
        ("git version 2.39.3 (Apple Git-146)", True),
        ("git version 2.43.0", True),
        ("git version 2.43.4", False),
        ("git version 2.47.1.windows.1", False),
        ("git version 1.8.3.1", True),
        ("", True),
    ],
)
def test_a_git_with_known_holes_is_told_with_the_version_to_install(said: str, old: bool) -> None:
    advice = too_old(said)
    assert (advice is not None) is old
    assert advice is None or "install git 2." in advice


def test_the_git_of_this_machine_says_its_version() -> None:
    assert version().startswith("git version ")
