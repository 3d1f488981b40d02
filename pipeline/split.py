"""Split rows by class: a fixed, seeded share of every class goes one way, the rest the other.

The order of the rows is kept, and the same labels, count and seed give the same split.
"""

import numpy as np
import numpy.typing as npt

__all__ = ["stratified"]

Indices = npt.NDArray[np.int64]


def stratified(labels: npt.NDArray[np.int64], rows: int, seed: int) -> tuple[Indices, Indices]:
    """Take `rows` of the rows, each class in its share, and return (those left, those taken).

    `labels` is int64 [rows]; both results are int64 row indices in ascending order. Raises
    ValueError when `rows`, or what is left, is less than the number of classes, or when a class
    has a single row.
    """
    from sklearn.model_selection import train_test_split

    left, taken = train_test_split(
        np.arange(len(labels), dtype=np.int64), test_size=rows, random_state=seed, stratify=labels
    )
    return np.sort(left), np.sort(taken)
