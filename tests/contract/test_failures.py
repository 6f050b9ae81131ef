"""What a training died of: told by kind, with what can be done about it, and tried again only where that may help."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
from headrace.outcome import oom_kills, without_result
from headrace.warded import Ending

from services.trainer.failures import ADVICE, AttemptFailed, classify
from shared.catalog import Limits
from shared.errors import Refused, Unavailable
from shared.ledger.attempts import Failure
from tests.children import train

pytestmark = pytest.mark.usefixtures("way")

SECOND = timedelta(seconds=1)
DEATHS = {
    "it raises": ("raise KeyError('price')", "author_error", False, "KeyError: 'price'"),
    "it calls exit": ("sys.exit(2)", "author_error", False, "return from the function instead"),
    "no memory is left to it": ("raise MemoryError('50 GB')", "out_of_memory", False, "50 GB"),
    "a GPU has no memory left": (
        "class OutOfMemoryError(RuntimeError): pass\nraise OutOfMemoryError('CUDA: 2 GiB')",
        "out_of_memory",
        False,
        "CUDA: 2 GiB",
    ),
    "it is killed": ("os.kill(os.getpid(), 9)", "killed", True, "SIGKILL"),
    "a library crashes": ("os.kill(os.getpid(), 11)", "killed", True, "SIGSEGV"),
    "the disk is full": ("raise OSError(28, 'No space left on device')", "infrastructure", True, "No space left"),
    "nothing can be written any more": ("os._exit(120)", "infrastructure", True, "disk was full"),
    "it ends without a word": ("os._exit(3)", "bad_exit", False, "exit code 3"),
    "it writes nothing": ("import time\ntime.sleep(60)", "no_output", False, "nothing for 1 s"),
}


@pytest.mark.parametrize("name", DEATHS)
def test_what_a_training_died_of_is_told_with_what_can_be_done(tmp_path: Path, name: str) -> None:
    body, kind, transient, message = DEATHS[name]
    with pytest.raises(AttemptFailed) as failed:
        train(tmp_path, body, limits=Limits(silence=SECOND if kind == "no_output" else None))
    failure = failed.value.failure
    assert (failure.kind, failure.transient) == (kind, transient), failure
    assert message in failure.message
    assert failure.advice
    if kind == "author_error":
        assert "hostile.py" in failure.message, "with the last frames of the author's own code"


def test_who_prints_or_tells_now_and_then_is_not_silent(tmp_path: Path) -> None:
    body = "import time\nfor n in range(5):\n    print(n) if n % 2 else job.progress(n / 5)\n    time.sleep(0.8)\nreturn {'a': 1}"
    train(tmp_path, body, limits=Limits(silence=3 * SECOND))


def test_a_kill_while_the_kernel_counts_one_for_want_of_memory_is_one_for_that() -> None:
    killed = without_result(Ending(None, 9), starved=lambda: True)
    assert (killed.kind, killed.transient) == ("out_of_memory", True)
    assert without_result(Ending(None, 9), starved=lambda: False).kind == "killed"


def test_the_kernel_s_count_is_read_where_there_is_one(tmp_path: Path) -> None:
    counters = tmp_path / "vmstat"
    counters.write_text("pgfault 7\noom_kill 12\n")
    assert oom_kills(counters) == 12
    assert oom_kills(tmp_path / "none") == 0


@pytest.mark.parametrize(
    ("error", "kind", "transient"),
    [
        (Unavailable("the blob store is away"), "infrastructure", True),
        (Refused("no such thing"), "refused", False),
        (OSError(28, "No space left on device", "/scratch"), "infrastructure", True),
        (ValueError("a mistake of ours"), "infrastructure", True),
    ],
)
def test_what_is_not_the_author_s_is_told_from_it(error: Exception, kind: str, transient: bool) -> None:
    failure = classify(error)
    assert (failure.kind, failure.transient) == (kind, transient)
    assert failure.advice


def test_whoever_knows_better_than_the_table_is_believed() -> None:
    assert AttemptFailed("environment", "no numpy 9").failure.advice == ADVICE["environment"]
    assert AttemptFailed("environment", "no numpy 9", "ask for 2").failure == Failure(
        "environment", "no numpy 9", "ask for 2"
    )
