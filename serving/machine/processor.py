"""The kind of processor that settings were tuned for, found out in a millisecond.

`serving.machine.environment` says more of a machine and takes longer: this is asked for whenever
a bundle
with profiles is opened. A GPU is asked for only where it matters.
"""

import itertools
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from serving.runtime.cores import allowed_cores
from serving.runtime.settings import GPU_PROVIDERS

# What ONNX Runtime's kernels choose by; a figure on a processor without them says little.
RELEVANT_FLAGS = (
    "avx2",
    "fma",
    "f16c",
    "avx512f",
    "avx512bw",
    "avx512_vnni",
    "avx512_bf16",
    "avx512_fp16",
    "avx_vnni",
    "amx_tile",
    "amx_int8",
    "amx_bf16",
    "neon",
    "asimd",
    "asimdhp",
    "asimddp",
    "i8mm",
    "bf16",
    "sve",
    "sve2",
)
CPUINFO = Path("/proc/cpuinfo")


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """A kind of machine: what is equal on two of them runs a model equally fast."""

    processor: str
    architecture: str
    flags: tuple[str, ...]
    """Instruction sets that ONNX Runtime's kernels choose by, of those the processor has."""
    allowed_cores: int
    """Cores that this process may use."""
    gpu: str | None
    """The graphics cards, for a provider that runs on them; None for any other provider."""


def this_machine(provider: str) -> Machine:
    """The machine that this process runs on, as far as it matters to a provider."""
    info = cpuinfo()
    return Machine(
        processor=processor_of(info),
        architecture=platform.machine(),
        flags=flags_of(info),
        allowed_cores=allowed_cores(),
        gpu=", ".join(nvidia_smi("name")) or None if provider in GPU_PROVIDERS else None,
    )


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
    """The name of the processor, by its lines of /proc/cpuinfo or else by the system."""
    return info.get("model name") or platform.processor() or platform.machine() or "unknown"


def flags_of(info: Mapping[str, str]) -> tuple[str, ...]:
    """The instruction sets that count, of those in a processor's lines of /proc/cpuinfo."""
    words = set((info.get("flags") or info.get("Features") or "").split())
    return tuple(flag for flag in RELEVANT_FLAGS if flag in words)


def nvidia_smi(fields: str) -> list[str]:
    """What the tool that comes with NVIDIA's driver says of each card; [] where it does not answer.

    `fields` are those of its `--query-gpu`, for instance "name,driver_version".
    """
    import subprocess

    command = ("nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader")
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return result.stdout.strip().splitlines() if result.returncode == 0 else []
