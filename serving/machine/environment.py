"""What a machine is and runs: processor, cores, memory, graphics card, versions and revision.

Every figure carries an `Environment`, because a latency without its machine is no measurement. The
shorter `MachineKind` is what settings are tuned for; it is found out in a millisecond, whenever a
bundle with profiles is opened.
"""

import itertools
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from serving.runtime.cores import allowed_cores, quota_cores
from serving.runtime.settings import GPU_PROVIDERS

# What ONNX Runtime's kernels choose by; a figure on a processor without them says little.
RELEVANT_FLAGS = (
    *("avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16", "avx512_fp16"),
    *("avx_vnni", "amx_tile", "amx_int8", "amx_bf16"),
    *("neon", "asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2"),
)
# They write the same folder: two of them break each other.
RUNTIME_WHEELS = (
    *("onnxruntime", "onnxruntime-gpu", "onnxruntime-directml", "onnxruntime-openvino"),
    *("onnxruntime-qnn", "onnxruntime-training"),
)
SOURCES = (
    *("pipeline", "serving", "params.yaml", "dvc.yaml"),
    *("*/datasets/*.py", "*/models/*.py"),  # of a project's own package
)
PROCESSOR = "FERRY_PROCESSOR"
"""The variable that names the processor where the system hides its name, or has one for two."""
CPUINFO = Path("/proc/cpuinfo")
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
    """The memory of the machine, or of the container where that has less."""
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
    """The revision of the folder that the command ran in; "unknown" outside of a checkout."""
    gpu: str | None
    gpu_driver: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineKind:
    """A kind of machine: what is equal on two of them runs a model equally fast."""

    processor: str
    architecture: str
    flags: tuple[str, ...]
    """Instruction sets that ONNX Runtime's kernels choose by, of those the processor has."""
    allowed_cores: int
    """Cores that this process may use."""
    gpu: str | None
    """The graphics cards, for a provider that runs on them; None for any other provider."""


def this_machine(provider: str) -> MachineKind:
    """The machine that this process runs on, as far as it matters to a provider."""
    info = cpuinfo()
    return MachineKind(
        processor=processor_of(info),
        architecture=platform.machine(),
        flags=flags_of(info),
        allowed_cores=allowed_cores(),
        gpu=", ".join(nvidia_smi("name")) or None if provider in GPU_PROVIDERS else None,
    )


def describe() -> Environment:
    """Describe this machine as it is now."""
    # A run of `ferry predict` asks this module for a version or two and does not wait for these.
    import numpy as np
    import psutil

    wheels = runtime_wheels()
    memory, limit = psutil.virtual_memory().total, _content(MEMORY_LIMIT).strip()
    # The driver is the same for all cards.
    cards = [line.rpartition(", ") for line in nvidia_smi("name,driver_version")]
    info = cpuinfo()
    return Environment(
        processor=processor_of(info),
        architecture=platform.machine(),
        flags=flags_of(info),
        cores=os.cpu_count() or 1,
        allowed_cores=allowed_cores(),
        quota_cores=quota_cores(),
        # Hidden from the guest of a virtual machine.
        governor=_content(GOVERNOR).strip() or None,
        memory_bytes=min(memory, int(limit)) if limit.isdecimal() else memory,
        load_average=tuple(round(load, 2) for load in psutil.getloadavg()),
        python=platform.python_version(),
        platform=platform.platform(),
        onnxruntime=next(iter(wheels.values()), None),
        onnxruntime_package=" + ".join(wheels) or None,
        numpy=np.__version__,
        ferry=ferry_version(),
        git_revision=git_revision(),
        gpu=", ".join(name for name, _, _ in cards) or None,
        gpu_driver=cards[0][2] if cards else None,
    )


def git_revision(folder: Path = Path()) -> str:
    """The commit of the checkout, with `-dirty` when a source differs from it.

    Metrics and plots do not count: each run writes them. "unknown" outside a git checkout.
    """
    revision = _git(folder, "rev-parse", "HEAD")
    changed = revision and _git(folder, "status", "--porcelain", "--", *SOURCES)
    return f"{revision}-dirty" if changed else revision or "unknown"


def peak_memory_bytes() -> int:
    """The high-water mark of this process's own memory.

    Not `ru_maxrss` on Linux: a child inherits that of the process that started it.
    """
    lines = _content(STATUS).splitlines()
    marks = [line.split()[1] for line in lines if line.startswith("VmHWM:")]
    return int(marks[0]) * 1024 if marks else _peak_elsewhere()


def installed_version(distribution: str) -> str | None:
    """The version of an installed distribution, or None."""
    from importlib import metadata  # brings the parser of e-mails along

    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def ferry_version() -> str | None:
    """The version of ferry that is installed, or None when it runs from a folder."""
    return installed_version("onnx-ferry")


def runtime_wheels() -> dict[str, str]:
    """The installed wheels that hold ONNX Runtime, with their versions; there should be one."""
    found = {name: installed_version(name) for name in RUNTIME_WHEELS}
    return {name: version for name, version in found.items() if version is not None}


def cpuinfo(path: Path = CPUINFO) -> dict[str, str]:
    """The first processor's lines of /proc/cpuinfo; empty where there is no such file."""
    try:
        with path.open() as file:
            # Not the whole file: the system asks every core of a large machine to write it.
            first = list(itertools.takewhile(lambda line: line != "\n", file))
    except OSError:
        return {}
    pairs = (line.partition(":") for line in first)
    return {key.strip(): value.strip() for key, _, value in pairs}


def processor_of(info: Mapping[str, str]) -> str:
    """The name of the processor: as the user says, by /proc/cpuinfo or else by the system."""
    named = os.environ.get(PROCESSOR) or info.get("model name")
    return named or platform.processor() or platform.machine() or "unknown"


def flags_of(info: Mapping[str, str]) -> tuple[str, ...]:
    """The instruction sets that count, of those in a processor's lines of /proc/cpuinfo."""
    words = set((info.get("flags") or info.get("Features") or "").split())
    return tuple(flag for flag in RELEVANT_FLAGS if flag in words)


def nvidia_smi(fields: str) -> list[str]:
    """What NVIDIA's tool says of each card, for fields as "name,driver_version"; [] without it."""
    command = ("nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader")
    return output_of(command, seconds=20).decode().strip().splitlines()


def output_of(command: Sequence[str], *, seconds: float) -> bytes:
    """What a program prints; nothing when it fails, takes longer or is not installed."""
    try:
        done = subprocess.run(command, capture_output=True, timeout=seconds)
    except (OSError, subprocess.TimeoutExpired):
        return b""
    return done.stdout if done.returncode == 0 else b""


def _git(folder: Path, *arguments: str) -> str:
    return output_of(("git", "-C", str(folder), *arguments), seconds=30).decode().strip()


def _content(path: Path) -> str:
    """What the system tells in a file; "" where it has none."""
    try:
        return path.read_text()
    except OSError:
        return ""


def _peak_elsewhere() -> int:
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
