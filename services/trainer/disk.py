"""What a trainer keeps on its own disk, and who uses what: all of it can be made again, and none of it may go while it is in use."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from shared.locks import unused, using


@dataclass(frozen=True)
class Disk:
    """The directories under `home`. A use takes a shared lock for as long as it lasts, the janitor an exclusive one that does not wait."""

    home: Path

    @property
    def environments(self) -> Path:
        return self.home / "environments"

    @property
    def checkouts(self) -> Path:
        return self.home / "checkouts"

    @property
    def bundles(self) -> Path:
        return self.home / "bundles"

    @property
    def scratch(self) -> Path:
        return self.home / "scratch"

    @property
    def uv_cache(self) -> Path:
        return self.home / "uv-cache"

    @property
    def pythons(self) -> Path:
        return self.home / "pythons"

    @property
    def trash(self) -> Path:
        return self.home / "trash"

    def using(self, place: Path) -> AbstractContextManager[None]:
        """Nobody takes `place` away while the block lasts, also before it is there."""
        return using(self.mark(place))

    @contextmanager
    def unused(self, place: Path) -> Iterator[bool]:
        """Whether nobody uses `place`; nobody begins to while the block lasts."""
        with unused(self.mark(place)) as free:
            yield free

    def used_at(self, place: Path) -> float:
        """When it was last taken into use, in seconds of the epoch; when it was made, if that is not known."""
        mark = self.mark(place)
        try:
            return mark.stat().st_mtime
        except FileNotFoundError:
            return place.stat().st_mtime

    def forget(self, place: Path) -> None:
        """It is gone: its mark goes too. To be called while nobody uses it."""
        self.mark(place).unlink(missing_ok=True)

    def mark(self, place: Path) -> Path:
        """The file that is locked in its name: beside it, for an environment is never written again."""
        return self.home / "uses" / place.relative_to(self.home)


def measure(path: Path) -> int:
    """Bytes of the files under it; one that goes meanwhile counts for nothing."""
    total = 0
    for folder, _, files in os.walk(path):
        for name in files:
            with suppress(FileNotFoundError):
                total += os.lstat(os.path.join(folder, name)).st_size
    return total
