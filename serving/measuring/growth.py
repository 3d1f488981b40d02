"""How much memory a session keeps: ONNX Runtime's arena grows and never gives back."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import psutil

from serving.timing import Call

__all__ = ["Growth", "growth"]

SETTLING_PART = 0.1
"""The calls that are not held against the later ones: the allocators still fill their lists."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Growth:
    """Resident memory over many calls of mixed batch sizes."""

    num_calls: int
    batch_sizes: tuple[int, ...]
    arena_bytes: int
    """From before the first call of each size to after the last of them all."""
    drift_bytes: int
    """Of that, after the first tenth of the calls: what never stops growing is a leak."""


def growth(calls: Mapping[int, Call], *, num_calls: int, seed: int) -> Growth:
    """Make `num_calls` calls of batch sizes drawn from `seed`, and see what memory they leave."""
    sizes = list(calls)
    drawn = np.random.default_rng(seed).integers(0, len(sizes), num_calls)
    process = psutil.Process()
    before: int = process.memory_info().rss
    settled = before
    settling = max(len(sizes), int(num_calls * SETTLING_PART))
    for number, index in enumerate(drawn):
        if number == settling:
            settled = process.memory_info().rss
        calls[sizes[index]]()
    after: int = process.memory_info().rss
    return Growth(
        num_calls=num_calls,
        batch_sizes=tuple(sizes),
        arena_bytes=after - before,
        drift_bytes=after - settled,
    )
