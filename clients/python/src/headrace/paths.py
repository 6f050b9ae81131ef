"""What a file of a bundle or of a version may be called."""

from __future__ import annotations

import re

_PATH = re.compile(r"^[A-Za-z0-9_@+=,. ()-]+(/[A-Za-z0-9_@+=,. ()-]+)*\Z")


def plain_path(path: str) -> bool:
    """Whether it is a plain relative path that means the same on every system."""
    return bool(_PATH.match(path)) and not {".", ".."} & set(path.split("/"))
