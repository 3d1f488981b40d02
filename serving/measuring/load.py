"""Whether the machine was busy with something else while it was measured.

Load averages tell of minutes; this tells of exactly the time of a run: what all cores did, less
what this process and the processes it started and ended did.
"""

import os
from dataclasses import dataclass
from time import perf_counter

import psutil

__all__ = ["Load", "LoadMeter"]

BUSY_PART = 0.1
"""Above this part of the cores, others make figures doubtful."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What the processors did during a run."""

    seconds: float
    own_cores: float
    """Cores that the run kept busy, on average."""
    other_cores: float
    """Cores that everything else on this machine kept busy, on average."""
    stolen_cores: float
    """Cores that the host of this virtual machine took away, on average."""
    warning: str | None
    """What to think of the figures, or None when nothing else was going on."""


class LoadMeter:
    """Measures from when it is made until it is read."""

    def __init__(self) -> None:
        """Begin."""
        self._start = perf_counter()
        self._own = _own_seconds()
        self._busy, self._stolen = _machine_seconds()

    def read(self) -> Load:
        """What happened; the processes that the run started must have ended."""
        seconds = max(perf_counter() - self._start, 1e-9)
        busy, stolen = _machine_seconds()
        own = _own_seconds() - self._own
        others = max(0.0, busy - self._busy - own) / seconds
        stolen_cores = max(0.0, stolen - self._stolen) / seconds
        return Load(
            seconds=round(seconds, 1),
            own_cores=round(own / seconds, 2),
            other_cores=round(others, 2),
            stolen_cores=round(stolen_cores, 2),
            warning=_warning(others, stolen_cores, os.cpu_count() or 1),
        )


def _warning(others: float, stolen: float, cores: int) -> str | None:
    told = []
    if others > BUSY_PART * cores:
        told.append(f"other programs kept {others:.1f} of {cores} cores busy")
    if stolen > BUSY_PART * cores:
        told.append(f"the host of this virtual machine took {stolen:.1f} cores away")
    return f"{' and '.join(told)}: distrust the figures" if told else None


def _machine_seconds() -> tuple[float, float]:
    """Processor seconds since the machine started: busy, and stolen by its host."""
    times = psutil.cpu_times()
    busy = sum(getattr(times, name, 0.0) for name in ("user", "nice", "system", "irq", "softirq"))
    return busy, getattr(times, "steal", 0.0)


def _own_seconds() -> float:
    """Processor seconds of this process and of those it started that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system
