"""Meters beside the clock: how busy the machine was, what energy it used, what memory was kept.

The load is that of exactly the time of a run: what all cores did, less what this process and the
processes it started and ended did. Energy comes from the processor's counter (RAPL) or the GPU's
(NVML, through the optional `pynvml`); where there is none, there is a reason instead of a figure.
Memory matters because ONNX Runtime's arena grows and never gives back.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, TypeVar

import numpy as np
import psutil

from serving.measuring.timing import Call
from serving.runtime.providers import PROVIDERS

Answer = TypeVar("Answer")

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
        cores, reasons = os.cpu_count() or 1, []
        if others > BUSY_PART * cores:
            reasons.append(f"other programs kept {others:.1f} of {cores} cores busy")
        if stolen_cores > BUSY_PART * cores:
            reasons.append(f"the host of this virtual machine took {stolen_cores:.1f} cores away")
        return Load(
            seconds=round(seconds, 1),
            own_cores=round(own / seconds, 2),
            other_cores=round(others, 2),
            stolen_cores=round(stolen_cores, 2),
            warning=f"{' and '.join(reasons)}: distrust the figures" if reasons else None,
        )


def _machine_seconds() -> tuple[float, float]:
    """Processor seconds since the machine started: busy, and stolen by its host."""
    times = psutil.cpu_times()
    busy = sum(getattr(times, name, 0.0) for name in ("user", "nice", "system", "irq", "softirq"))
    return busy, getattr(times, "steal", 0.0)


def _own_seconds() -> float:
    """Processor seconds of this process and of those it started that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def own_gpu_bytes() -> int | None:
    """The memory of all cards that this process holds, in bytes; None where nothing tells."""
    return _ask_nvml(_held_bytes)


def gpu_joules() -> Callable[[], float] | None:
    """A counter of the joules that the first card has used; None where nothing counts."""
    return _ask_nvml(_counter)


def _ask_nvml(question: Callable[[Any], Answer]) -> Answer | None:
    """What NVML says; None without the library, a driver or an answer."""
    try:
        import pynvml
    except ModuleNotFoundError:
        return None
    try:
        pynvml.nvmlInit()
        return question(pynvml)
    except pynvml.NVMLError:
        return None


def _held_bytes(nvml: Any) -> int:
    cards = [nvml.nvmlDeviceGetHandleByIndex(n) for n in range(nvml.nvmlDeviceGetCount())]
    return sum(
        process.usedGpuMemory or 0
        for card in cards
        for process in nvml.nvmlDeviceGetComputeRunningProcesses(card)
        if process.pid == os.getpid()
    )


def _counter(nvml: Any) -> Callable[[], float]:
    card = nvml.nvmlDeviceGetHandleByIndex(0)
    nvml.nvmlDeviceGetTotalEnergyConsumption(card)  # some cards do not count
    return lambda: float(nvml.nvmlDeviceGetTotalEnergyConsumption(card)) / 1000


POWERCAP = Path("/sys/class/powercap")


@dataclass(frozen=True, slots=True, kw_only=True)
class EnergyMeter:
    """A counter of joules, or the reason why there is none."""

    source: str = ""
    """For instance "intel-rapl:0"; "" without a counter."""
    reason: str = ""
    """Why there is none; "" with one."""
    joules: Callable[[], float] = lambda: 0.0


def energy_meter(provider: str, powercap: Path = POWERCAP) -> EnergyMeter:
    """The counter that covers a provider's device.

    A processor's counts whole packages, whoever uses them, and starts over now and then.
    """
    if provider != "cpu" and provider in PROVIDERS:
        joules = gpu_joules()
        if joules is None:
            return EnergyMeter(reason="NVML tells no energy of a GPU here")
        return EnergyMeter(source="nvml", joules=joules)
    counters = sorted(powercap.glob("intel-rapl:[0-9]*/energy_uj"))
    packages = [path for path in counters if path.parent.name.count(":") == 1]
    if not packages:
        reason = f"{powercap} has no counter of energy (RAPL): none, or hidden from a guest"
        return EnergyMeter(reason=reason)
    try:
        _sum(packages)
    except OSError as error:
        return EnergyMeter(reason=f"{packages[0]}: {error.strerror}")
    source = " + ".join(path.parent.name for path in packages)
    return EnergyMeter(source=source, joules=lambda: _sum(packages))


def _sum(counters: list[Path]) -> float:
    return sum(int(path.read_text()) for path in counters) / 1e6


SETTLING_PART = 0.1
"""The calls that are not held against the later ones: the allocators still fill their lists."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Growth:
    """Resident memory over many calls of mixed batch sizes."""

    num_calls: int
    batch_sizes: tuple[int, ...]
    arena_bytes: int
    """From the ready session, before its first call of all, to after the last of these."""
    drift_bytes: int
    """Of that, after the first tenth of the calls: what never stops growing is a leak."""


def resident_bytes() -> int:
    """The memory that this process holds at the moment."""
    held: int = psutil.Process().memory_info().rss
    return held


def growth(calls: Mapping[int, Call], *, num_calls: int, seed: int, before_bytes: int) -> Growth:
    """Make `num_calls` calls of batch sizes drawn from `seed`, and see what memory they leave.

    `before_bytes` is what was resident before the first call of any size, which fills the arena.
    """
    sizes = list(calls)
    drawn = np.random.default_rng(seed).integers(0, len(sizes), num_calls)
    settled = before_bytes
    settling = max(len(sizes), int(num_calls * SETTLING_PART))
    for number, index in enumerate(drawn):
        if number == settling:
            settled = resident_bytes()
        calls[sizes[index]]()
    after = resident_bytes()
    return Growth(
        num_calls=num_calls,
        batch_sizes=tuple(sizes),
        arena_bytes=after - before_bytes,
        drift_bytes=after - settled,
    )
