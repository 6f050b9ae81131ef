"""The tests of a model's repository, run before it is trained: in its environment, on a copy of its files, within the limits of a training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from headrace import own_tests

from services.trainer import child
from services.trainer.checkout import Prepared
from services.trainer.failures import explained
from services.trainer.heart import Heart
from services.trainer.users import Users
from shared.logs import Logs

LOG = "tests.log"


def run(words: Sequence[str], work: child.Work, prepared: Prepared, users: Users, logs: Logs, heart: Heart) -> None:
    """Run them in `work.scratch`, which is theirs alone. Raises `AttemptFailed` that names the tests, or `Stopped`."""
    with explained():
        start = own_tests.lay_out(words, prepared.checkout, work.scratch, work.env)
    work = replace(work, env=start.env, log_file=LOG, cwd=start.cwd)
    ending = child.execute(start.argv, work, prepared, users, logs, heart)
    with explained():
        own_tests.check(words, ending, work.scratch / LOG)
