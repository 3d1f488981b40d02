"""Batches of the test set, of any size, as what is measured takes them."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["batch_of", "first_row"]

Array = npt.NDArray[Any]


def batch_of(rows: Array, count: int) -> Array:
    """The first `count` of `rows`, over and over again to fill the batch, in memory."""
    return np.resize(np.array(rows[:count]), (count, *rows.shape[1:]))


def first_row(data: Path) -> Array:
    """One row of the test set in `data`, without reading the others: a cold start waits for it."""
    rows: Array = np.load(data / "test_inputs.npy", mmap_mode="r", allow_pickle=False)
    return batch_of(rows, 1)
