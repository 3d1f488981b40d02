"""What NVIDIA's management library tells of the cards: memory of a process, and energy used.

`pynvml` is optional; without it, or without a card, there is a reason instead of a figure.
"""

from collections.abc import Callable
from typing import Any

__all__ = ["gpu_bytes_of", "gpu_joules"]


def _nvml() -> Any | None:
    """The library, ready to be asked, or None."""
    try:
        import pynvml
    except ModuleNotFoundError:
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    return pynvml


def gpu_bytes_of(pid: int) -> int | None:
    """The memory of all cards that a process holds, in bytes; None where nothing tells."""
    nvml = _nvml()
    if nvml is None:
        return None
    try:
        cards = [nvml.nvmlDeviceGetHandleByIndex(n) for n in range(nvml.nvmlDeviceGetCount())]
        held = [
            process.usedGpuMemory or 0
            for card in cards
            for process in nvml.nvmlDeviceGetComputeRunningProcesses(card)
            if process.pid == pid
        ]
    except nvml.NVMLError:
        return None
    return sum(held)


def gpu_joules() -> Callable[[], float] | None:
    """A counter of the joules that the first card has used; None where nothing counts."""
    nvml = _nvml()
    if nvml is None:
        return None
    try:
        card = nvml.nvmlDeviceGetHandleByIndex(0)
        nvml.nvmlDeviceGetTotalEnergyConsumption(card)
    except nvml.NVMLError:
        return None
    return lambda: float(nvml.nvmlDeviceGetTotalEnergyConsumption(card)) / 1000
