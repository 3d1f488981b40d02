"""The rows of a training that `dvc plots` draws: its history, and who was taken for whom."""

from collections.abc import Sequence
from dataclasses import fields

import numpy as np
from torch import Tensor

from pipeline.epoch import Epoch
from pipeline.ready import Split

__all__ = ["confusion", "confusion_csv", "history_csv"]


def confusion(split: Split, predicted: Tensor | None, classes: int) -> tuple[tuple[int, ...], ...]:
    """Count the rows of each actual class (first index) by their predicted class.

    `predicted` is int64 [rows]; where no class is predicted there is nothing to count: ().
    """
    if predicted is None:
        return ()
    matrix = np.zeros((classes, classes), dtype=np.int64)
    np.add.at(matrix, (split.labels, predicted.numpy()), 1)
    return tuple(tuple(row) for row in matrix.tolist())


def history_csv(history: Sequence[Epoch]) -> str:
    """A line per epoch below the names of its fields; empty where a value is None."""
    names = [field.name for field in fields(Epoch)]
    rows = [",".join(_cell(getattr(epoch, name)) for name in names) for epoch in history]
    return "\n".join([",".join(names), *rows]) + "\n"


def confusion_csv(split: Split, predicted: Tensor | None, labels: Sequence[str]) -> str:
    """A line per row with the names of its actual and its predicted class, if one is predicted."""
    rows = []
    if predicted is not None:
        pairs = zip(split.labels.tolist(), predicted.tolist(), strict=True)
        rows = [f"{labels[actual]},{labels[answer]}" for actual, answer in pairs]
    return "\n".join(["actual,predicted", *rows]) + "\n"


def _cell(value: float | None) -> str:
    return "" if value is None else str(value)
