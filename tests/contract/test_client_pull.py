"""Pulling a version: every byte checked, whole or not there, and what broke off goes on."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from headrace import Problem
from headrace.connection import Unreachable
from headrace.consumer import DigestMismatch, follow, load, pull, pulled, resolve

from tests.contract.client_twin import Twin, describe, files_of, serve

MODEL = "flight-delays"
HOME = f"/v1/models/{MODEL}/versions"


@pytest.fixture
def twin() -> Iterator[Twin]:
    with serve() as twin:
        yield twin


def left(into: Path) -> list[str]:
    """What lies there, but for the lock that two pulls share."""
    return sorted(
        path.relative_to(into).as_posix() for path in into.rglob("*") if path.is_file() and path.name != ".lock"
    )


def test_a_pulled_version_is_whole_and_byte_for_byte(twin: Twin, tmp_path: Path) -> None:
    files = files_of(0.2)
    twin.publish(MODEL, 3, files)
    seen: list[tuple[int, int]] = []
    place = pull(
        MODEL, "champion", tmp_path, connection=twin.connection, progress=lambda done, total: seen.append((done, total))
    )
    assert place == tmp_path / MODEL / "3"
    assert {path: (place / path).read_bytes() for path in files} == files
    assert left(tmp_path) == sorted([*(f"{MODEL}/3/{path}" for path in files), f"{MODEL}/3.json"])
    assert seen[-1] == (sum(map(len, files.values())),) * 2
    assert seen == sorted(seen)


def test_a_version_that_is_there_is_not_asked_for_again(twin: Twin, tmp_path: Path) -> None:
    twin.publish(MODEL, 3, files_of(0.2))
    place = pull(MODEL, 3, tmp_path, connection=twin.connection)
    twin.requests.clear()
    assert pull(MODEL, 3, tmp_path, connection=twin.connection) == place
    assert twin.requests == []
    assert pull(MODEL, "champion", tmp_path, connection=twin.connection) == place
    assert twin.downloads == []


@pytest.mark.parametrize("damage", ["changed", "missing", "added", "linked"])
def test_a_version_that_was_changed_on_disk_is_fetched_anew(twin: Twin, tmp_path: Path, damage: str) -> None:
    files = files_of(0.2)
    twin.publish(MODEL, 3, files)
    place = pull(MODEL, 3, tmp_path, connection=twin.connection)
    victim = place / "code" / "headrace_loader.py"
    if damage == "changed":
        victim.write_bytes(victim.read_bytes().replace(b"sys", b"sus"))
    elif damage == "added":
        victim.with_name("sklearn.py").write_text("print('mine')")
    else:
        victim.unlink()
        if damage == "linked":
            (tmp_path / "elsewhere.py").write_bytes(files["code/headrace_loader.py"])
            victim.symlink_to(tmp_path / "elsewhere.py")
    assert pulled(MODEL, 3, tmp_path) is None
    pull(MODEL, 3, tmp_path, connection=twin.connection)
    assert pulled(MODEL, 3, tmp_path) == place
    assert victim.read_bytes() == files["code/headrace_loader.py"]
    assert not victim.is_symlink()


def test_one_wrong_byte_in_a_file_is_refused_and_nothing_is_left(twin: Twin, tmp_path: Path) -> None:
    twin.publish(MODEL, 3, files_of(0.2))
    path = f"{HOME}/3/files/data/source/twin_delays.py"
    twin.files[path] = twin.files[path].replace(b"0.2", b"0.9")
    with pytest.raises(
        DigestMismatch, match=r"data/source/twin_delays\.py of flight-delays 3 is not what its digest says"
    ):
        pull(MODEL, 3, tmp_path, connection=twin.connection)
    assert left(tmp_path) == []


def test_a_file_that_does_not_end_is_cut_off_and_refused(twin: Twin, tmp_path: Path) -> None:
    twin.publish(MODEL, 3, files_of(0.2))
    twin.files[f"{HOME}/3/files/MLmodel"] = b"x" * 5_000_000
    with pytest.raises(DigestMismatch):
        pull(MODEL, 3, tmp_path, connection=twin.connection)
    assert left(tmp_path) == []


def test_a_list_that_was_changed_with_its_files_does_not_have_the_digest(twin: Twin, tmp_path: Path) -> None:
    digest = twin.publish(MODEL, 3, files_of(0.2))
    twin.publish(MODEL, 3, files_of(0.9))
    twin.versions[f"{HOME}/3"]["digest"] = digest
    with pytest.raises(DigestMismatch, match="does not have its digest"):
        pull(MODEL, 3, tmp_path, connection=twin.connection)
    assert twin.downloads == []


def test_a_version_that_is_not_the_one_of_the_notice_is_refused(twin: Twin, tmp_path: Path) -> None:
    twin.publish(MODEL, 3, files_of(0.2))
    with pytest.raises(DigestMismatch, match="sha256:feed was expected"):
        pull(MODEL, 3, tmp_path, digest="sha256:feed", connection=twin.connection)
    assert left(tmp_path) == []
    pull(MODEL, 3, tmp_path, connection=twin.connection)
    with pytest.raises(DigestMismatch):
        pull(MODEL, 3, tmp_path, digest="sha256:feed", connection=twin.connection)


@pytest.mark.parametrize(
    "path", ["../outside", "/etc/cron.d/x", "a/../../x", "a//b", "a\\b", "C:x", "a/./b", "x\n", ""]
)
def test_a_path_that_leads_elsewhere_is_refused_before_anything_is_fetched(
    twin: Twin, tmp_path: Path, path: str
) -> None:
    files = {**files_of(0.2), path: b"mine"}
    twin.publish(MODEL, 3, files)
    with pytest.raises(DigestMismatch, match="not plain and relative"):
        pull(MODEL, 3, tmp_path / "models", connection=twin.connection)
    assert twin.downloads == []
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_is_named_like_a_path_is_refused(twin: Twin, tmp_path: Path) -> None:
    twin.versions[f"{HOME}/3"] = describe("../../x", 3, files_of(0.2))
    with pytest.raises(DigestMismatch):
        resolve(MODEL, 3, connection=twin.connection)


def test_a_pull_that_broke_off_goes_on_where_it_stopped(twin: Twin, tmp_path: Path) -> None:
    files = files_of(0.2)
    twin.publish(MODEL, 3, files)
    broken = f"{HOME}/3/files/data/source/twin_delays.py"
    twin.cut[broken] = 10
    with pytest.raises(Unreachable):
        pull(MODEL, 3, tmp_path, connection=twin.connection)
    assert not (tmp_path / MODEL / "3").exists()
    assert pulled(MODEL, 3, tmp_path) is None
    before = len(twin.downloads)
    twin.cut.clear()
    place = pull(MODEL, 3, tmp_path, connection=twin.connection)
    assert {path: (place / path).read_bytes() for path in files} == files
    assert len(twin.downloads) - before == 3  # the broken one and the two after it
    assert left(tmp_path) == sorted([*(f"{MODEL}/3/{path}" for path in files), f"{MODEL}/3.json"])


def test_what_a_killed_pull_of_other_files_left_does_not_get_in(twin: Twin, tmp_path: Path) -> None:
    twin.publish(MODEL, 3, files_of(0.2))
    partial = tmp_path / MODEL / ".3.partial"
    (partial / "code").mkdir(parents=True)
    (partial / "code" / "headrace_loader.py").write_text("half of")
    (partial / "stranger.py").write_text("mine")
    place = pull(MODEL, 3, tmp_path, connection=twin.connection)
    assert not (place / "stranger.py").exists()
    assert pulled(MODEL, 3, tmp_path) == place


def test_eight_pulls_at_once_fetch_it_once(twin: Twin, tmp_path: Path) -> None:
    files = files_of(0.2)
    twin.publish(MODEL, 3, files)
    with ThreadPoolExecutor(8) as pool:
        places = set(pool.map(lambda _: pull(MODEL, 3, tmp_path, connection=twin.connection), range(8)))
    assert places == {tmp_path / MODEL / "3"}
    assert len(twin.downloads) == len(files)


def test_an_unknown_version_says_what_to_do(twin: Twin, tmp_path: Path) -> None:
    with pytest.raises(Problem, match=r"there is no .*/versions/9; see `headrace models`") as caught:
        pull(MODEL, 9, tmp_path, connection=twin.connection)
    assert caught.value.status == 404
    assert left(tmp_path) == []


def test_a_wrong_token_says_which_variable_to_check(twin: Twin) -> None:
    from headrace.connection import Connection

    with pytest.raises(Problem, match="not known; the token was not accepted; check HEADRACE_TOKEN"):
        Connection(twin.url, "wrong").get("/v1/status")


def test_the_token_follows_no_redirect(twin: Twin) -> None:
    with serve() as elsewhere:
        twin.answers["/v1/status"] = (302, {"location": elsewhere.url + "/v1/status"})
        with pytest.raises(Problem, match="302"):
            twin.connection.get("/v1/status")
        assert elsewhere.requests == []


def test_two_versions_with_a_package_of_the_same_name_serve_beside_each_other(twin: Twin, tmp_path: Path) -> None:
    twin.publish(MODEL, 1, files_of(0.1))
    twin.publish(MODEL, 2, files_of(0.2))
    first = load(pull(MODEL, 1, tmp_path, connection=twin.connection))
    second = load(pull(MODEL, 2, tmp_path, connection=twin.connection))
    assert (first.predict([0]), second.predict([0])) == ([0.1], [0.2])
    assert load(pull(MODEL, 1, tmp_path, connection=twin.connection)).predict([0]) == [0.1]
    assert pulled(MODEL, 1, tmp_path), "the byte code that loading leaves must not count as a change"


def test_a_missing_requirement_is_named_with_the_file_that_lists_it(twin: Twin, tmp_path: Path) -> None:
    twin.publish(MODEL, 1, files_of(0.1, refuses=True))
    with pytest.raises(Problem, match=r"a_package_that_nobody_has.*pip install -r .*requirements\.txt"):
        load(pull(MODEL, 1, tmp_path, connection=twin.connection))


def told(sequence: int) -> dict[str, object]:
    return {
        "specversion": "1.0",
        "id": f"n{sequence}",
        "source": "headrace",
        "type": "version.promoted",
        "subject": MODEL,
        "time": "2026-11-23T18:00:00Z",
        "sequence": str(sequence),
        "data": {"version": sequence},
    }


def test_following_yields_every_notice_once_in_order_and_goes_on_from_a_sequence(twin: Twin) -> None:
    twin.notices = [told(number) for number in (3, 4, 7)]
    stop = threading.Event()
    found = []
    for notice in follow(3, ["version.promoted"], [MODEL], connection=twin.connection, stop=stop, wait_s=0):
        found.append(notice.sequence)
        if notice.sequence == 7:
            twin.notices.append(told(8))
        if notice.sequence == 8:
            stop.set()
    assert found == [4, 7, 8]
    assert "types=version.promoted" in twin.requests[0]
    assert f"models={MODEL}" in twin.requests[0]


def test_following_goes_on_when_the_api_was_away() -> None:
    stop = threading.Event()
    with serve() as before:
        before.notices = [told(1)]
        following = follow(0, connection=before.connection, stop=stop, wait_s=0)
        assert next(following).sequence == 1
    with ThreadPoolExecutor(1) as pool:
        second = pool.submit(next, following)
        with serve(int(before.url.rsplit(":", 1)[1])) as after:
            after.notices = [told(1), told(2)]
            assert second.result(timeout=20).sequence == 2
    stop.set()
