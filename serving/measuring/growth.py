"""How much memory a session keeps: ONNX Runtime's arena grows and never gives back."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import psutil

from serving.timing import Call

__all__ = ["Growth", "growth", "resident_bytes"]

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
