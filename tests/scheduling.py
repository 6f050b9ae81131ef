"""Which tests stay together on one worker: those that share a started product, so that each is started once."""

from __future__ import annotations

import re

from xdist.scheduler import LoadScopeScheduling


class ByStack(LoadScopeScheduling):  # type: ignore[misc]
    """All tests of one stack are one piece of work, and so are those of `make up`, since they time each other's starts; any other stands alone.

    Takes the place of `--dist loadgroup`, whose marks pytest 9.2 does not let xdist 3.8 write. The largest pieces are begun first.
    """

    def _split_scope(self, nodeid: str) -> str:
        if not nodeid.startswith("tests/system/"):
            return nodeid
        stack = re.search(r"\[(embedded|servers)\b", nodeid)
        return stack[1] if stack else nodeid.partition("::")[0]
