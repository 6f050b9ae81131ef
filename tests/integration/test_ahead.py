"""What a waiting run will need is made while it waits: a real ledger, a real repository, a real environment."""

from __future__ import annotations

import subprocess
import threading
from pathlib import Path

import pytest

from services.trainer.ahead import Ahead
from services.trainer.checkout import Workshop
from services.trainer.claims import LedgerWork
from services.trainer.lookout import Slots
from shared.settings import Settings
from tests.ledgers import CONFIG, adopt, in_memory, waiting

TOLD = {"ledger_url": "sqlite://", "redis_url": "r", "blobs_url": "b", "logs_url": "l"}


class House:
    """A trainer's rooms, and a model whose run waits for its first rows."""

    def __init__(self, place: Path, dependencies: str = "[]") -> None:
        repository = place / "delays.git"
        repository.mkdir()
        (repository / "pyproject.toml").write_text(
            f'[project]\nname = "m"\nversion = "1"\ndependencies = {dependencies}\n'
        )
        git = ["git", "-C", str(repository), "-c", "user.name=a", "-c", "user.email=a@example.com"]
        for words in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "x"]):
            subprocess.run([*git, *words], check=True)
        self.commit = subprocess.check_output([*git, "rev-parse", "HEAD"], text=True).strip()
        self.ledger, _ = in_memory(CONFIG.replace("file:///nowhere/delays.git", repository.as_uri()))
        adopt(self.ledger, commit=self.commit)
        self.slots, self.leaving, self.state = Slots(1), threading.Event(), place / "state"
        workshop = Workshop(Settings(state_dir=self.state, **TOLD))  # type: ignore[arg-type]
        self.ahead = Ahead(LedgerWork(self.ledger, "w1", "standard", 1), workshop, self.slots, self.leaving)

    def made(self) -> tuple[int, int]:
        """Checkouts and environments."""
        home = self.state / "trainer"
        return len(list(home.glob("checkouts/*/pyproject.toml"))), len(list(home.glob("environments/*/bin/python")))


def test_checkout_and_environment_are_there_before_the_run_is_due(tmp_path: Path) -> None:
    house = House(tmp_path)
    assert waiting(house.ledger)
    house.slots.take()
    house.ahead.prepare()
    assert house.made() == (0, 0), "a training is not disturbed"
    house.slots.give_back()
    house.ahead.prepare()
    assert house.made() == (1, 1)


def test_what_cannot_be_made_is_tried_once_and_left_to_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    house = House(tmp_path, '["headrace-there-is-no-such-package==1"]')
    for _ in range(2):
        house.ahead.prepare()
    assert house.made() == (1, 0)
    assert capsys.readouterr().out.count("not_prepared_ahead") == 1


def test_a_worker_that_leaves_makes_nothing_more(tmp_path: Path) -> None:
    house = House(tmp_path)
    house.leaving.set()
    house.ahead.prepare()
    assert house.made() == (0, 0)
