"""The part of the machine that one training gets: CPUs by the worker's slots, and GPUs with one owner each."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from shared import catalog, settings
from shared.errors import ConfigurationError, Unavailable
from shared.locks import unused

THREADS = (
    *(f"{name}_NUM_THREADS" for name in ("OMP", "OPENBLAS", "MKL", "BLIS", "NUMEXPR", "NUMBA", "RAYON")),
    *("VECLIB_MAXIMUM_THREADS", "POLARS_MAX_THREADS", "LOKY_MAX_CPU_COUNT"),
)
GPUS = catalog.GPU_VARIABLES


@dataclass(frozen=True)
class Share:
    """`cpus` by number, none: all of them; `gpus` as CUDA_VISIBLE_DEVICES names them."""

    cpus: tuple[int, ...] = ()
    gpus: tuple[str, ...] = ()

    def variables(self) -> dict[str, str]:
        """What numeric libraries go by; a training that has no GPU sees none."""
        threads = dict.fromkeys(THREADS, str(len(self.cpus))) if self.cpus else {}
        return threads | dict.fromkeys(GPUS, ",".join(self.gpus))


class Shares:
    """Divides this process's CPUs among its slots, and the machine's GPUs among all that share the directory `locks`."""

    def __init__(self, slots: int, cpus: Sequence[int], gpus: Sequence[str], locks: Path) -> None:
        self._free = [_part(sorted(cpus), slot, slots) for slot in range(slots)]
        self._all = tuple(sorted(cpus))
        self._gpus, self._locks = tuple(gpus), locks
        self._lock = threading.Lock()

    @contextmanager
    def one(self, gpus: int) -> Iterator[Share]:
        """A share with so many GPUs, that nobody else has while the block lasts. Raises `Unavailable` where there are not as many free."""
        with ExitStack() as held:
            taken = self._take_gpus(gpus, held)
            with self._lock:
                cpus = self._free.pop(0) if self._free else None
            try:
                yield Share(cpus or self._all, taken)
            finally:
                if cpus is not None:
                    with self._lock:
                        self._free.append(cpus)

    def _take_gpus(self, wanted: int, held: ExitStack) -> tuple[str, ...]:
        if wanted > len(self._gpus):
            raise Unavailable(
                f"its compute class gives a training {wanted} GPUs, and this worker has {len(self._gpus)}; "
                "start it where there are as many, or name them in HEADRACE_GPUS"
            )
        taken: list[str] = []
        for name in self._gpus:
            if len(taken) == wanted:
                break
            if held.enter_context(unused(self._locks / re.sub(r"[^A-Za-z0-9-]", "-", name))):
                taken.append(name)
        if len(taken) < wanted:
            raise Unavailable(f"{wanted} GPUs are wanted, and {len(taken)} of {len(self._gpus)} are free: fewer slots")
        return tuple(taken)


def _part(cpus: list[int], slot: int, slots: int) -> tuple[int, ...]:
    """Even parts; where there are more slots than CPUs, some share one."""
    if slots > len(cpus):
        return (cpus[slot % len(cpus)],)
    return tuple(cpus[slot * len(cpus) // slots : (slot + 1) * len(cpus) // slots])


def own_cpus() -> list[int]:
    """Those that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def own_gpus(named: str | None, drivers: Path = Path("/proc/driver/nvidia/gpus")) -> tuple[str, ...]:
    """As the settings name them, else as this process sees them, else all that the driver knows. Raises `ConfigurationError`."""
    if named is None:
        named = settings.variable(GPUS[0])
    if named is None:
        return tuple(str(number) for number in range(len(list(drivers.iterdir())))) if drivers.is_dir() else ()
    found = tuple(part.strip() for part in named.split(",") if part.strip())
    if len(set(found)) < len(found):
        raise ConfigurationError(f"gpus: {named} names one twice; each has one owner")
    return found
