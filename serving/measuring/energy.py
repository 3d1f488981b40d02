"""What a machine says of the energy it used: the processor's counter (RAPL), or a GPU's (NVML)."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from serving.measuring.client import TORCH
from serving.measuring.gpu import gpu_joules

__all__ = ["EnergyMeter", "energy_meter"]

POWERCAP = Path("/sys/class/powercap")


@dataclass(frozen=True, slots=True, kw_only=True)
class EnergyMeter:
    """A counter of joules, or the reason why there is none."""

    source: str
    """For instance "intel-rapl:0"; "" without a counter."""
    reason: str
    """Why there is none; "" with one."""
    joules: Callable[[], float]


def energy_meter(provider: str, powercap: Path = POWERCAP) -> EnergyMeter:
    """The counter that covers a provider's device.

    A processor's counts whole packages, whoever uses them, and starts over now and then.
    """
    if provider not in ("cpu", TORCH):
        joules = gpu_joules()
        if joules is None:
            return _none("NVML tells no energy of a GPU here")
        return EnergyMeter(source="nvml", reason="", joules=joules)
    counters = sorted(powercap.glob("intel-rapl:[0-9]*/energy_uj"))
    packages = [path for path in counters if path.parent.name.count(":") == 1]
    if not packages:
        return _none(f"{powercap} has no counter of energy (RAPL): none, or hidden from a guest")
    try:
        _sum(packages)
    except OSError as error:
        return _none(f"{packages[0]}: {error.strerror}")
    source = " + ".join(path.parent.name for path in packages)
    return EnergyMeter(source=source, reason="", joules=lambda: _sum(packages))


def _sum(counters: list[Path]) -> float:
    return sum(int(path.read_text()) for path in counters) / 1e6


def _none(reason: str) -> EnergyMeter:
    return EnergyMeter(source="", reason=reason, joules=lambda: 0.0)
