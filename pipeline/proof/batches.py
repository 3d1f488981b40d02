"""Whether an answer depends on the rows that happen to be beside it.

A model that normalizes over the batch, or a kernel that sums in another order, answers the same
row differently alone, first and last.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.errors import FerryError
from pipeline.proof.rows import Rows
from pipeline.proof.sides import Side
from pipeline.records.parity import BatchDifference

__all__ = ["beside_others", "sample"]

Array = npt.NDArray[Any]
Numbers = npt.NDArray[np.int64]

FAR = float(np.finfo(np.float32).max)
"""As far off as can be; JSON knows no infinity."""
ODD = 7
"""No power of two, which kernels are written for."""


def beside_others(side: Side, rows: Rows, numbers: Numbers) -> BatchDifference:
    """Ask each of some rows alone, and as the first, in the middle and the last of an odd batch.

    `numbers` are int64 [rows]; the rows beside each are those that follow it.
    """
    feeds = rows.take(np.sort(numbers))
    count = len(numbers)
    alone = side.answer(feeds, 1)
    worst, where = 0.0, ""
    for place, shift in (("first", 0), ("in the middle", ODD // 2), ("last", ODD - 1)):
        for row in range(count):
            order = (np.arange(ODD) + row - shift) % count
            batch = {name: array[order] for name, array in feeds.items()}
            apart = _apart(side, batch, alone, row, shift)
            if not apart <= worst:
                worst, where = apart, f"alone and {place} of {ODD}"
    return BatchDifference(max_abs_diff=worst, where=where, rows=count)


def sample(rows: int, wanted: int, seed: int) -> Numbers:
    """Draw row numbers without putting back, int64 in rising order; all if there are not more."""
    chosen = np.random.default_rng(seed).choice(rows, min(rows, wanted), replace=False)
    return np.sort(chosen).astype(np.int64)


def _apart(
    side: Side, batch: Mapping[str, Array], alone: Mapping[str, Array], row: int, place: int
) -> float:
    """How far the answer at a place of a batch is from that of the row alone."""
    try:
        found = side.answer(batch, ODD)
    except FerryError:
        return FAR  # it takes the row alone, and not beside others
    worst = 0.0
    for name, array in found.items():
        left, right = alone[name][row], array[place]
        if array.dtype.kind in "OUSb":
            worst = max(worst, float((left != right).any()))
            continue
        apart = np.abs(left.astype(np.float64) - right.astype(np.float64))
        same = (left == right) | (np.isnan(left) & np.isnan(right))
        apart = np.nan_to_num(np.where(same, 0.0, apart), nan=FAR, posinf=FAR)
        worst = max(worst, float(apart.max(initial=0.0)))
    return worst
