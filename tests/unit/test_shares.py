"""The part of a machine that each training gets: of the CPUs an even one, and GPUs that nobody else has."""

from __future__ import annotations

import threading
from contextlib import ExitStack
from pathlib import Path

import pytest

from services.trainer.shares import GPUS, THREADS, Share, Shares, own_gpus
from shared.errors import ConfigurationError, Unavailable


@pytest.mark.parametrize(
    ("slots", "cpus", "wanted"),
    [
        (1, [0, 1, 2, 3], [(0, 1, 2, 3)]),
        (2, [0, 1, 2, 3], [(0, 1), (2, 3)]),
        (3, [0, 1, 2, 3], [(0,), (1,), (2, 3)]),
        (4, [2, 5], [(2,), (5,), (2,), (5,)]),
    ],
)
def test_each_slot_has_an_even_part_of_the_cpus(
    tmp_path: Path, slots: int, cpus: list[int], wanted: list[tuple[int, ...]]
) -> None:
    shares = Shares(slots, cpus, (), tmp_path)
    with ExitStack() as held:
        assert [held.enter_context(shares.one(0)).cpus for _ in range(slots)] == wanted
    with ExitStack() as held:
        assert sorted(held.enter_context(shares.one(0)).cpus for _ in range(slots)) == sorted(wanted), "given back"


def test_numeric_libraries_are_told_how_many_threads_and_which_gpus() -> None:
    told = Share((2, 3), ("1", "GPU-8f2a")).variables()
    assert {told[name] for name in THREADS} == {"2"}
    assert {told[name] for name in GPUS} == {"1,GPU-8f2a"}
    assert Share((0,)).variables()["CUDA_VISIBLE_DEVICES"] == "", "who was given none sees none"


def test_no_two_trainings_have_the_same_gpu_also_of_two_workers_on_one_machine(tmp_path: Path) -> None:
    workers = [Shares(4, [0, 1], ("0", "1", "2", "MIG-3/1/0"), tmp_path) for _ in range(2)]
    with ExitStack() as held:
        taken = [held.enter_context(workers[n % 2].one(2)).gpus for n in range(2)]
        assert sorted(name for gpus in taken for name in gpus) == ["0", "1", "2", "MIG-3/1/0"]
        with pytest.raises(Unavailable, match="0 of 4 are free"), workers[0].one(1):
            pass
    with workers[0].one(4) as share:
        assert len(share.gpus) == 4


def test_a_worker_without_enough_gpus_says_what_its_class_asks_for(tmp_path: Path) -> None:
    with (
        pytest.raises(Unavailable, match=r"gives a training 2 GPUs, and this worker has 1.*HEADRACE_GPUS"),
        Shares(1, [0], ("0",), tmp_path).one(2),
    ):
        pass


def test_what_a_failed_start_had_taken_is_given_back(tmp_path: Path) -> None:
    shares = Shares(1, [0], ("0",), tmp_path)
    for _ in range(3):
        with pytest.raises(ZeroDivisionError), shares.one(1):
            _ = 1 / 0
    with shares.one(1) as share:
        assert share == Share((0,), ("0",))


def test_shares_are_taken_by_many_threads(tmp_path: Path) -> None:
    shares, seen, together = Shares(4, list(range(8)), (), tmp_path), [], threading.Barrier(4)

    def take() -> None:
        with shares.one(0) as share:
            together.wait(20)
            seen.append(share.cpus)

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(seen) == [(0, 1), (2, 3), (4, 5), (6, 7)]


def test_the_gpus_of_a_worker_are_those_named_else_those_that_it_sees_else_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert own_gpus(None, tmp_path / "none") == ()
    for name in ("0000:01:00.0", "0000:02:00.0"):
        (tmp_path / "gpus" / name).mkdir(parents=True)
    assert own_gpus(None, tmp_path / "gpus") == ("0", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert own_gpus(None, tmp_path / "gpus") == ("1",)
    assert own_gpus("2, 3", tmp_path / "gpus") == ("2", "3")
    assert own_gpus("", tmp_path / "gpus") == ()
    with pytest.raises(ConfigurationError, match="twice"):
        own_gpus("0,0")
