"""Which tests stay together on one worker: those of a file, and those that share a started product, so that each server is started once."""

from __future__ import annotations

import re
from typing import Any

from xdist.scheduler import LoadScopeScheduling


class ByStack(LoadScopeScheduling):  # type: ignore[misc]
    """All tests of one stack are one piece of work, every other file is one too; unit tests come last and fill the gaps.

    Takes the place of `--dist loadgroup`, whose marks xdist 3.8 cannot write on pytest 9.2.
    """

    def __init__(self, config: Any, log: Any) -> None:
        config.option.loadscopereorder = False
        super().__init__(config, log)

    def _split_scope(self, nodeid: str) -> str:
        stack = re.search(r"^tests/system/.*\[(embedded|servers)\b", nodeid)
        return stack[1] if stack else nodeid.partition("::")[0]
