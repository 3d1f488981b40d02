"""Say on what a figure was measured: processor, cores, memory, versions and graphics card.

Every benchmark carries this record, because a latency without its machine is not a measurement.

Where a model comes from: the git revision of the sources that trained it.
"""

import os
import platform
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil

from serving.machine.processor import cpuinfo, flags_of, nvidia_smi, processor_of
from serving.machine.versions import ferry_version, runtime_wheels
from serving.runtime.cores import allowed_cores, quota_cores

SOURCES = ("pipeline", "serving", "params.yaml", "dvc.yaml")


def git_revision(folder: Path = Path()) -> str:
    """The commit of the checkout, with `-dirty` when a source differs from it.

    Metrics and plots do not count: each run writes them. "unknown" outside a git checkout.
    """
    revision = _git(folder, "rev-parse", "HEAD")
    if not revision:
        return "unknown"
    return (
        f"{revision}-dirty" if _git(folder, "status", "--porcelain", "--", *SOURCES) else revision
    )


def _git(folder: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=30
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


STATUS = Path("/proc/self/status")
GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
MEMORY_LIMIT = Path("/sys/fs/cgroup/memory.max")


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """A machine and the software that ran on it."""

    processor: str
    architecture: str
    flags: tuple[str, ...]
    """Instruction sets that ONNX Runtime's kernels choose by, of those the processor has."""
    cores: int
    """Logical cores of the machine."""
    allowed_cores: int
    """Cores that this process may use."""
    quota_cores: float | None
    """Cores that a container's quota grants, or None where there is none."""
    governor: str | None
    """How the system sets the processor's frequency, for instance "performance"; None if hidden."""
    memory_bytes: int
    """Of the machine, or of the container where that has less."""
    load_average: tuple[float, ...]
    """Runnable processes over the last 1, 5 and 15 minutes: whether the machine was shared."""
    python: str
    platform: str
    onnxruntime: str | None
    onnxruntime_package: str | None
    """The wheel it came from, for instance "onnxruntime-gpu"."""
    numpy: str
    ferry: str | None
    """None when it runs from a folder that is not installed."""
    git_revision: str
    """Of the folder that the command ran in; "unknown" outside of a checkout."""
    gpu: str | None
    gpu_driver: str | None


def describe() -> Environment:
    """Describe this machine as it is now."""
    wheels = runtime_wheels()
    gpu, driver = _gpu()
    info = cpuinfo()
    return Environment(
        processor=processor_of(info),
        architecture=platform.machine(),
        flags=flags_of(info),
        cores=os.cpu_count() or 1,
        allowed_cores=allowed_cores(),
        quota_cores=quota_cores(),
        governor=_governor(),
        memory_bytes=_memory_bytes(),
        load_average=tuple(round(load, 2) for load in psutil.getloadavg()),
        python=platform.python_version(),
        platform=platform.platform(),
        onnxruntime=next(iter(wheels.values()), None),
        onnxruntime_package=" + ".join(wheels) or None,
        numpy=np.__version__,
        ferry=ferry_version(),
        git_revision=git_revision(),
        gpu=gpu,
        gpu_driver=driver,
    )


def peak_memory_bytes() -> int:
    """The high-water mark of this process's own memory.

    Not `ru_maxrss` on Linux: a child inherits that of the process that started it.
    """
    try:
        lines = STATUS.read_text().splitlines()
    except OSError:
        return _peak_elsewhere()
    marks = [line.split()[1] for line in lines if line.startswith("VmHWM:")]
    return int(marks[0]) * 1024 if marks else _peak_elsewhere()


def _governor() -> str | None:
    try:
        return GOVERNOR.read_text().strip()
    except OSError:  # a guest of a virtual machine is not told
        return None


def _memory_bytes() -> int:
    total: int = psutil.virtual_memory().total
    try:
        limit = MEMORY_LIMIT.read_text().strip()
    except OSError:
        return total
    return min(total, int(limit)) if limit.isdecimal() else total


def _gpu() -> tuple[str | None, str | None]:
    """Names of the NVIDIA cards, and their driver."""
    cards = [line.rpartition(", ") for line in nvidia_smi("name,driver_version")]
    if not cards:
        return None, None
    return ", ".join(name for name, _, _ in cards), cards[0][2]


def _peak_elsewhere() -> int:
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
