"""How many cores this process may use; ONNX Runtime itself ignores affinity and quotas.

More threads than cores make every figure worse, so each session and each training asks here.
"""

import os
from pathlib import Path

__all__ = ["allowed_cores", "quota_cores"]


def allowed_cores() -> int:
    """The cores that this process may use: its affinity, cut by a container's quota."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # not on Linux
        cores = os.cpu_count() or 1
    quota = quota_cores()
    return max(1, min(cores, int(quota))) if quota else cores


def quota_cores(path: Path = Path("/sys/fs/cgroup/cpu.max")) -> float | None:
    """The cores that a version 2 control group grants, or None where it sets no limit."""
    try:
        limit, period = path.read_text().split()
    except (OSError, ValueError):
        return None
    return None if limit == "max" else int(limit) / int(period)
