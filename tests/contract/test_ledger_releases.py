"""Releases: the newest valid one is in force, a refused one changes nothing but what is told."""

from __future__ import annotations

import pytest

from shared.errors import NotFound
from shared.ledger import Ledger, attempts, deliveries, fates, history, planning, releases, runs
from tests.ledgers import adopt, claim, declare, grow, train, waiting

BAD = ("v2.0.0", "b" * 40, "pyproject.toml:3: train is missing")


def refuse(ledger: Ledger, name: str = BAD[0], commit: str = BAD[1], why: str = BAD[2]) -> None:
    with ledger.write() as tx:
        releases.refused(tx, "delays", name, commit, why)


def in_force(ledger: Ledger) -> str | None:
    with ledger.read() as tx:
        found = releases.in_force(tx, "delays")
        return found.name if found is not None else None


def told(ledger: Ledger) -> list[str]:
    with ledger.read() as tx:
        return [one.data["reason"] for one in deliveries.read(tx, 0, 99) if one.type == "release.refused"]  # type: ignore[misc]


def test_a_refused_release_keeps_the_old_one_in_force(ledger: Ledger) -> None:
    adopt(ledger)
    refuse(ledger)
    assert in_force(ledger) == "v1.0.0"
    grow(ledger)
    claimed = claim(ledger, waiting(ledger))
    assert claimed is not None
    assert claimed.release.name == "v1.0.0"
    with ledger.read() as tx:
        assert fates.why(tx, "delays")[0] == f"Release v2.0.0 was refused; v1.0.0 stays in force: {BAD[2]}"


def test_a_refusal_is_told_once_until_it_changes(ledger: Ledger) -> None:
    for _ in range(3):
        refuse(ledger)
    refuse(ledger, why="pyproject.toml:9: no such dataset")
    assert told(ledger) == [BAD[2], "pyproject.toml:9: no such dataset"]


def test_the_first_release_may_be_refused(ledger: Ledger) -> None:
    refuse(ledger)
    assert in_force(ledger) is None
    with ledger.read() as tx:
        assert runs.find_all(tx) == []
        assert "It has no valid release yet, so nothing can be trained." in fates.why(tx, "delays")
        with pytest.raises(NotFound):
            releases.find(tx, releases.seen(tx, "delays").id)


def test_the_same_release_again_plans_nothing(ledger: Ledger) -> None:
    adopt(ledger)
    train(ledger)
    adopt(ledger)
    with ledger.read() as tx:
        assert runs.find_waiting(tx, "delays") is None


def why(ledger: Ledger) -> list[str]:
    with ledger.read() as tx:
        return fates.why(tx, "delays")


def deeds(ledger: Ledger) -> list[tuple[str, str, str]]:
    with ledger.read() as tx:
        rows = history.find_all(tx, model="delays", before=None, limit=99)
        return [(row.actor, row.action, row.subject) for row in rows]


def test_a_tag_that_was_moved_is_a_new_release_and_its_move_is_told(ledger: Ledger) -> None:
    adopt(ledger)
    train(ledger)
    adopt(ledger, commit="c" * 40)
    said = f"tag v1.0.0 was moved from {'a' * 12} to {'c' * 12}"
    with ledger.read() as tx:
        assert runs.find_waiting(tx, "delays").reason == said
    assert why(ledger)[0].startswith(f"Its {said}")
    assert deeds(ledger) == [("headrace", "move", "tag v1.0.0")]
    claimed = claim(ledger, waiting(ledger))
    assert claimed is not None
    assert claimed.release.commit == "c" * 40
    adopt(ledger, name="v1.1.0", commit="d" * 40)
    assert not any(sentence.startswith("Its tag") for sentence in why(ledger))


def test_the_move_of_a_tag_that_was_refused_first_is_told_when_it_is_taken(ledger: Ledger) -> None:
    adopt(ledger)
    with ledger.write() as tx:
        releases.refused(tx, "delays", "v1.0.0", "c" * 40, "no class gpu", tag=True)
    adopt(ledger, commit="c" * 40)
    assert why(ledger)[0].startswith(f"Its tag v1.0.0 was moved from {'a' * 12} to {'c' * 12}")


def test_a_branch_that_goes_on_was_not_moved(ledger: Ledger) -> None:
    for commit in ("a" * 40, "b" * 40):
        with ledger.write() as tx:
            planning.adopt(tx, "delays", "main", commit, declare())
    assert not any(sentence.startswith("Its tag") for sentence in why(ledger))


def test_a_release_of_the_same_content_is_taken_over_without_a_training_and_said(ledger: Ledger) -> None:
    adopt(ledger, content="sha256:1")
    first = train(ledger)
    adopt(ledger, name="v1.1.0", commit="b" * 40, content="sha256:1")
    assert in_force(ledger) == "v1.1.0"
    with ledger.read() as tx:
        assert runs.find_waiting(tx, "delays") is None
    assert f"Release v1.1.0 changes nothing that counts since run {first}, so it was not trained." in why(ledger)
    assert deeds(ledger) == [("headrace", "adopt", "release v1.1.0")]
    grow(ledger)
    claimed = claim(ledger, waiting(ledger))
    assert claimed is not None
    assert claimed.release.name == "v1.1.0"
    assert not any("was not trained" in sentence for sentence in why(ledger))


def test_a_release_of_the_same_content_leaves_the_run_that_waits_its_due_time(ledger: Ledger) -> None:
    adopt(ledger, content="sha256:1")
    train(ledger)
    grow(ledger, 1)
    adopt(ledger, name="v1.1.0", commit="b" * 40, content="sha256:1", compute_class="gpu")
    with ledger.read() as tx:
        row = runs.find_waiting(tx, "delays")
        assert (row.due_at, row.compute_class) == (None, "gpu")
        assert releases.find(tx, row.release_id).name == "v1.1.0"


@pytest.mark.parametrize("ending", ["failed", "cancelled", "not begun"])
def test_a_release_of_the_same_content_is_trained_where_the_one_before_was_not(ledger: Ledger, ending: str) -> None:
    """What was mended may lie outside the paths that count."""
    adopt(ledger, content="sha256:1")
    grow(ledger)
    claimed = claim(ledger, waiting(ledger)) if ending != "not begun" else None
    with ledger.write() as tx:
        if claimed is not None and ending == "failed":
            attempts.fail(tx, claimed.run, claimed.token, attempts.Failure("author_error", "no such file"), {})
        elif claimed is not None:
            attempts.cancelled(tx, claimed.run, claimed.token, {})
    adopt(ledger, name="v1.1.0", commit="b" * 40, content="sha256:1")
    again = claim(ledger, waiting(ledger))
    assert again is not None
    assert again.release.name == "v1.1.0"


def test_another_directory_of_the_same_commit_is_another_release(ledger: Ledger) -> None:
    adopt(ledger, content="sha256:1")
    train(ledger)
    adopt(ledger, content="sha256:2")
    claimed = claim(ledger, waiting(ledger))
    assert claimed is not None
    assert claimed.release.content == "sha256:2"
    assert not any(sentence.startswith("Its tag") for sentence in why(ledger))


def test_a_refused_release_that_is_gone_again_is_no_longer_told_of(ledger: Ledger) -> None:
    adopt(ledger)
    refuse(ledger)
    adopt(ledger)
    with ledger.read() as tx:
        assert not any("refused" in sentence for sentence in fates.why(tx, "delays"))
    refuse(ledger)
    assert len(told(ledger)) == 2


def test_a_release_that_was_mended_comes_into_force(ledger: Ledger) -> None:
    adopt(ledger)
    refuse(ledger)
    adopt(ledger, name="v2.0.0", commit="d" * 40)
    assert in_force(ledger) == "v2.0.0"


def test_a_branch_that_was_set_back_is_trained_again(ledger: Ledger) -> None:
    adopt(ledger)
    grow(ledger)
    adopt(ledger, name="v2.0.0", commit="b" * 40)
    adopt(ledger)
    assert in_force(ledger) == "v1.0.0"
    claimed = claim(ledger, waiting(ledger))
    assert claimed is not None
    assert claimed.release.name == "v1.0.0"


def test_a_repository_that_cannot_be_read_says_so_until_it_can(ledger: Ledger) -> None:
    def look(error: str | None) -> list[str]:
        with ledger.write() as tx:
            releases.looked(tx, "delays", error)
            return fates.why(tx, "delays")

    assert look("no such host")[0] == "Its repository cannot be read: no such host"
    assert not any("repository" in sentence for sentence in look(None))


def test_a_release_is_frozen_with_the_claim(ledger: Ledger) -> None:
    adopt(ledger)
    grow(ledger)
    claimed = claim(ledger, waiting(ledger))
    assert claimed is not None
    adopt(ledger, name="v2.0.0", commit="b" * 40)
    with ledger.read() as tx:
        assert releases.find(tx, runs.find(tx, claimed.run).release_id).name == "v1.0.0"
        assert releases.find(tx, runs.find_waiting(tx, "delays").release_id).name == "v2.0.0"
