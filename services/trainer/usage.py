"""What an attempt has used, added up over its children: the training, and the scoring of the champion beside it."""

from __future__ import annotations

import threading
import time

from headrace.warded import Spent

from shared.ledger.attempts import Used


class Meter:
    """Starts with the attempt. May be told from several threads."""

    def __init__(self, gpus: int = 0) -> None:
        self._gpus = gpus
        self._began = time.monotonic()
        self._lock = threading.Lock()
        self._spent: list[Spent] = []

    def add(self, spent: Spent | None, peak_bytes: int) -> None:
        """What a child's warden has counted (None: it was killed) and the most memory that its tree was seen with."""
        counted = spent or Spent(0.0, 0, 0, 0)
        memory_bytes = max(counted.memory_bytes, peak_bytes)
        with self._lock:
            self._spent.append(Spent(counted.cpu_s, memory_bytes, counted.read_bytes, counted.written_bytes))

    def used(self) -> Used:
        with self._lock:
            return Used(
                cpu_s=round(sum(one.cpu_s for one in self._spent), 3),
                gpu_s=round(self._gpus * (time.monotonic() - self._began), 3),
                memory_bytes=max((one.memory_bytes for one in self._spent), default=0),
                read_bytes=sum(one.read_bytes for one in self._spent),
                written_bytes=sum(one.written_bytes for one in self._spent),
            )
