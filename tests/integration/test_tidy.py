"""The janitor of the shared stores: what it takes, in which order, what a kill leaves, and what an upload beside it keeps."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from services.registry_bridge.janitor import Busy, Janitor
from services.registry_bridge.tidy import Tidy, Turn
from shared import arrivals as arrivals_in
from shared.blobs import DiskBlobs, store_tree
from shared.catalog import Keep
from shared.errors import Fenced, NotFound, Unavailable
from shared.ledger import Ledger, Transaction, arrivals, attempts, retention, scores, versions
from shared.ledger.attempts import Failure
from shared.logs import DiskLogs
from shared.manifest import read_tree
from shared.retention import Report
from shared.values import Bytes
from tests import ledgers
from tests.houses import House, furnish
from tests.registry_twin import Killed, RegistryTwin

HARSH = Keep(runs=timedelta(seconds=1), rejected=0, logs=timedelta(seconds=1), environments=Bytes(1_000_000))


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    ledger, clock = ledgers.in_memory()
    yield furnish(ledger, clock, tmp_path)
    ledger.close()


def turn(house: House, keep: Keep = HARSH, **more: Any) -> Turn:
    return Turn(keep, house.clock.now(), **more)


def taken(report: Report) -> dict[str, int]:
    return {kind: count.number for kind, count in report.taken.items() if count.number}


def test_an_aggressive_tidy_leaves_what_serves_or_served_is_pinned_or_waits(house: House) -> None:
    report = house.tidy.run(turn(house))
    assert report.errors == []
    assert house.tidied() == ({4, 5, 6}, {4, 5, 6})
    assert sorted(house.registry.removed) == [("delays", 4), ("delays", 5), ("delays", 6)]
    house.whole()
    for number in (1, 2, 3, 7, 8):
        assert house.files(number).files
    with pytest.raises(NotFound):
        house.files(4)
    assert taken(report)["versions"] == taken(report)["bundles"] == taken(report)["versions in MLflow"] == 3
    assert taken(report)["logs"] == 8
    assert list(house.logs.names()) == []
    assert report.kept["versions"] == {
        "it was promoted": 2,
        "it is pinned": 1,
        "it awaits a word": 1,
        "it is not judged yet": 1,
    }


def test_what_an_unfinished_run_would_go_on_from_stays_until_the_run_has_ended(house: House) -> None:
    ledgers.grow(house.ledger)
    claimed = ledgers.claim(house.ledger, ledgers.waiting(house.ledger))
    assert claimed is not None
    sha256 = house.blobs.put_bytes(b"epoch 3")
    with house.ledger.write() as tx:
        attempts.checkpoint(tx, claimed.run, claimed.token, sha256, 7)
    house.age()
    house.tidy.run(turn(house))
    assert house.blobs.has(sha256)
    with house.ledger.write() as tx:
        attempts.fail(tx, claimed.run, claimed.token, Failure("author_error", "KeyError"), {})
    house.tidy.run(turn(house))
    assert not house.blobs.has(sha256)


def test_blobs_that_a_kept_version_shares_with_a_taken_one_stay(house: House) -> None:
    before = house.stored()
    report = house.tidy.run(turn(house))
    gone = before - house.stored()
    # of each of the three: two manifests, weights, MLmodel and log; the shared source stays
    assert len(gone) == taken(report)["blobs"] == 15
    assert report.taken["blobs"].size_bytes > 0


def test_the_defaults_take_nothing_of_a_model_with_few_versions_but_old_logs(house: House) -> None:
    report = house.tidy.run(turn(house, Keep()))
    assert house.tidied() == (set(), set())
    assert taken(report) == {"logs": 8}


def test_a_dry_run_says_the_same_and_takes_nothing(house: House) -> None:
    before, logs = house.stored(), set(house.logs.names())
    said = house.tidy.run(turn(house, dry=True))
    assert (house.stored(), set(house.logs.names()), house.tidied()) == (before, logs, (set(), set()))
    done = house.tidy.run(turn(house))
    assert {k: v for k, v in said.taken.items() if v.number} == {k: v for k, v in done.taken.items() if v.number}
    assert said.kept == done.kept


def test_tidying_again_finds_nothing(house: House) -> None:
    house.tidy.run(turn(house))
    assert taken(house.tidy.run(turn(house))) == {}


def test_the_newest_notice_stays_and_one_on_its_way_too(house: House) -> None:
    report = house.tidy.run(turn(house))
    from shared.ledger import deliveries

    with house.ledger.read() as tx:
        left = deliveries.read(tx, 0, 1000)
    assert "notices" not in taken(report), "their deliveries are pending"
    with house.ledger.write() as tx:
        for row in deliveries.find_all(tx, state="pending", subject=None, after=None, limit=1000):
            deliveries.delivered(tx, row.id, 200)
    house.clock.forward(seconds=2)
    assert taken(house.tidy.run(turn(house)))["notices"] == len(left) - 1
    with house.ledger.read() as tx:
        assert [one.sequence for one in deliveries.read(tx, 0, 1000)] == [left[-1].sequence]


def test_a_report_is_forgotten_after_a_month_at_the_earliest_and_then_it_may_come_again(house: House) -> None:
    told = arrivals_in.Report(dataset="reported", source="loader", event_id="batch-7", from_point=1, to_point=2, rows=1)

    def receive() -> bool:
        with house.ledger.write() as tx:
            return arrivals.receive(tx, told).repeated

    assert receive() is False
    house.clock.forward(days=29)
    assert "reports" not in taken(house.tidy.run(turn(house)))
    assert receive() is True
    house.clock.forward(days=1)
    assert taken(house.tidy.run(turn(house, dry=True)))["reports"] == 1
    assert taken(house.tidy.run(turn(house)))["reports"] == 1
    assert receive() is False


def test_what_mlflow_still_has_is_taken_there_when_it_is_back(house: House) -> None:
    house.registry.trouble = Unavailable("MLflow is away")
    report = house.tidy.run(turn(house))
    assert report.errors == ["MLflow is away"]
    assert taken(report)["blobs"] == 15, "the rest goes on"
    house.registry.trouble = None
    assert taken(house.tidy.run(turn(house))) == {"versions in MLflow": 3}


def test_a_list_of_files_that_cannot_be_read_stops_the_sweep_and_is_said(house: House) -> None:
    with house.ledger.read() as tx:
        digest = versions.find(tx, "delays", 1).digest.removeprefix("sha256:")
    house.blobs._place(digest).write_text("damaged")
    before = house.stored()
    report = house.tidy.run(turn(house))
    assert house.stored() == before
    (error,) = report.errors
    assert "the list of files of the version of run 1 cannot be read" in error
    assert "no blob is taken" in error


def test_a_blob_that_an_upload_relies_on_stays_though_nobody_names_it_yet(house: House, tmp_path: Path) -> None:
    house.tidy.run(turn(house))
    unnamed = house.store({"model/weights": "of a run that failed"})
    house.age()
    again = tmp_path / "again"
    (again / "model").mkdir(parents=True)
    (again / "model" / "weights").write_text("of a run that failed")
    manifest = read_tree(again)
    store_tree(house.blobs, again, manifest)  # keeps what is there already
    assert taken(house.tidy.run(turn(house))) == {"blobs": 1}, "the manifest that nobody keeps"
    assert house.blobs.has(manifest.files[0].sha256)
    assert not house.blobs.has(unnamed.removeprefix("sha256:"))


def test_a_run_whose_score_is_wanted_is_not_taken(house: House) -> None:
    with house.ledger.write() as tx:
        scores.want(tx, 4, "sha256:other", {}, "standard")
    house.tidy.run(turn(house))
    assert house.tidied() == ({5, 6}, {5, 6})


def test_a_pin_that_comes_between_the_choice_and_the_deed_counts(house: House) -> None:
    tidy = house.tidy

    @dataclass(frozen=True)
    class Late(Tidy):
        def _take(self, turn: Turn, files: list[int], bundles: list[int]) -> None:
            with self.ledger.write() as tx:
                retention.pin(tx, "delays", 5, "bob", "just now")
            super()._take(turn, files, bundles)

    Late(tidy.ledger, tidy.registry, tidy.blobs, tidy.logs).run(turn(house))
    assert house.tidied() == ({4, 6}, {4, 6})
    house.whole()


class Mortal:
    """Passes calls on, and ends the process after the one whose turn it is."""

    def __init__(self, target: Any, names: set[str], fuse: list[int]) -> None:
        self._target, self._names, self._fuse = target, names, fuse

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._target, name)
        if name not in self._names:
            return found

        def call(*arguments: Any) -> Any:
            result = found(*arguments)
            self._burn()
            return result

        return self._transaction if name == "write" else call

    @contextmanager
    def _transaction(self) -> Iterator[Transaction]:
        with self._target.write() as tx:
            yield tx
        self._burn()

    def _burn(self) -> None:
        self._fuse[0] -= 1
        if self._fuse[0] == 0:
            raise Killed


def test_a_kill_after_any_step_breaks_nothing_and_the_next_turn_finishes_the_job(
    tmp_path: Path, ledger_file: Path
) -> None:
    template = tmp_path / "template"
    past = open_ledger(ledger_file)
    furnish(past, past.clock, template)  # type: ignore[arg-type]
    past.close()
    unkilled = again(ledger_file, template, tmp_path / "unkilled")
    unkilled.tidy.run(turn(unkilled))
    step, killed = 0, True
    while killed:
        step += 1
        house = again(ledger_file, template, tmp_path / str(step))
        fuse = [step]
        mortal = Tidy(
            Mortal(house.ledger, {"write"}, fuse),  # type: ignore[arg-type]
            Mortal(house.registry, {"remove"}, fuse),  # type: ignore[arg-type]
            Mortal(house.blobs, {"remove", "leftovers"}, fuse),  # type: ignore[arg-type]
            Mortal(house.logs, {"remove"}, fuse),  # type: ignore[arg-type]
        )
        try:
            mortal.run(turn(house))
            killed = False
        except Killed:
            house.whole()
        report = house.tidy.run(turn(house))
        assert report.errors == []
        assert house.tidied() == ({4, 5, 6}, {4, 5, 6})
        assert {number for _, number in house.registry.removed} == {4, 5, 6}
        assert (house.stored(), list(house.logs.names())) == (unkilled.stored(), []), step
        house.whole()
        house.ledger.close()
    unkilled.ledger.close()
    assert step > 25, "every write and every removal was a step"


def open_ledger(path: Path) -> Ledger:
    ledger = Ledger(f"sqlite:///{path}", ledgers.HandClock())
    ledgers.put_config(ledger, ledgers.CONFIG)
    return ledger


def again(ledger_file: Path, template: Path, place: Path) -> House:
    """A copy of the house, which is quicker than another past."""
    shutil.copytree(template, place)
    ledger = open_ledger(Path(shutil.copy(ledger_file, place / "ledger.db")))
    clock = ledgers.HandClock(datetime.now(UTC))
    ledger.go_by(clock)
    return House(ledger, clock, DiskBlobs(place / "blobs"), DiskLogs(place / "logs"), RegistryTwin(), place)


def janitor(house: House, owner: str = "one") -> Janitor:
    return Janitor(house.ledger, house.tidy, owner)


def test_one_janitor_at_a_time_and_what_it_took_is_recorded(house: House) -> None:
    first, seen = janitor(house), []

    def meanwhile(what: str, done: int) -> None:
        with pytest.raises(Busy):
            janitor(house, "two").take_turn()
        seen.append(what)

    report = first.take_turn(meanwhile)
    assert seen
    with house.ledger.read() as tx:
        row = retention.last_ended(tx)
        assert not retention.is_due(tx, row.keep, timedelta(hours=6), timedelta(minutes=10))
    assert (row.owner, row.taken, row.error) == ("one", report.to_json(), None)


def test_a_turn_is_due_after_six_hours_and_at_once_when_the_rules_change(house: House) -> None:
    def due(keep: Any) -> bool:
        with house.ledger.read() as tx:
            return retention.is_due(tx, keep, timedelta(hours=6), timedelta(minutes=10))

    default, other = Keep().model_dump(mode="json"), HARSH.model_dump(mode="json")
    assert due(default)
    janitor(house).take_turn()
    assert (due(default), due(other)) == (False, True)
    house.clock.forward(hours=6)
    assert due(default)


def test_a_turn_that_could_not_do_all_is_taken_again_soon(house: House) -> None:
    ledgers.put_config(house.ledger, ledgers.CONFIG + "\n[keep]\nrejected = 0\n")
    house.registry.trouble = Unavailable("MLflow is away")
    janitor(house).take_turn()
    house.clock.forward(minutes=10)
    with house.ledger.read() as tx:
        row = retention.last_ended(tx)
        assert row.error == "MLflow is away"
        assert retention.is_due(tx, row.keep, timedelta(hours=6), timedelta(minutes=10))


def test_a_janitor_that_went_silent_loses_its_turn_and_takes_nothing_more(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    from services.registry_bridge import janitor as module

    monkeypatch.setattr(module, "RENEW_S", 0.0)  # as if a minute had gone by at each look
    ledgers.put_config(house.ledger, ledgers.CONFIG + "\n[keep]\nrejected = 0\nruns = '1s'\n")
    overtaken = False

    def sleep(what: str, done: int) -> None:
        nonlocal overtaken
        if not overtaken:
            overtaken = True
            house.clock.forward(minutes=6)
            janitor(house, "two").take_turn()

    with pytest.raises(Fenced):
        janitor(house, "one").take_turn(sleep)
    with house.ledger.read() as tx:
        assert retention.last(tx).owner == "two"
    assert house.tidied()[0] == {4, 5, 6}


def test_a_process_that_leaves_ends_its_turn_and_another_takes_it_up(house: House) -> None:
    leaving = janitor(house)
    leaving.leaving.set()
    with pytest.raises(Exception, match="asked to leave"):
        leaving.take_turn()
    assert janitor(house, "two").take_turn().errors == []


def test_two_turns_at_once_take_everything_once_and_harm_nothing(tmp_path: Path, ledger_file: Path) -> None:
    ledger = open_ledger(ledger_file)
    house = furnish(ledger, ledger.clock, tmp_path / "house")  # type: ignore[arg-type]
    reports: list[Report] = []
    threads = [threading.Thread(target=lambda: reports.append(house.tidy.run(turn(house)))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [report.errors for report in reports] == [[], [], []]
    assert sum(taken(report).get("versions", 0) for report in reports) == 3
    assert house.tidied() == ({4, 5, 6}, {4, 5, 6})
    house.whole()
    ledger.close()
