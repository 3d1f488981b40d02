"""Warn of inputs that are unlike anything in the training data, by the first rows of a run.

Each row is held against the range of the training data, never its distribution: the first rows of
a folder that is sorted by class are all of one class, which is no reason to warn.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from serving.bundles.bundle import read_reference_of
from serving.bundles.reference import Quantity, Reference
from serving.drift import FIRST_ROWS
from serving.drift.quantities import Floats, measure_rows
from serving.errors import IntegrityError
from serving.runtime.tensors import Array

FEW_ROWS = 20
MARGIN, MARGIN_OF_FEW = 0.25, 1.0
"""How far beyond the range a number is unlike the training data, in widths of the range. Tables of
some hundred rows have outliers, by which a few rows must not be judged."""
UNLIKE_SHARE = 0.25
"""From this part of the rows on there is a warning; outliers are far fewer, in each class too."""


class FirstRows:
    """Counts how many of the first rows are unlike the training data."""

    def __init__(self, bundle: Path) -> None:
        """Nothing is read yet."""
        self._bundle = bundle
        self._reference: Reference | None = None
        self._measured: list[Mapping[str, Floats]] = []
        self._left = FIRST_ROWS
        self._fault: str | None = None

    @property
    def complete(self) -> bool:
        """Whether there are rows enough."""
        return not self._left

    def add(self, rows: Array) -> None:
        """Measure rows, [rows, ...] as the model takes them, as far as they are needed."""
        if not len(rows):  # nothing of a batch could be read
            return
        if self._reference is None:
            self._reference = self._read()
        if self._reference is None:
            self._left = 0
            return
        known = frozenset(self._reference.known_words.split())
        rows = rows[: self._left]
        self._measured.append(measure_rows(rows, known))
        self._left -= len(rows)

    def warning(self) -> str | None:
        """What to warn of, in one line: the quantity by which most rows are unlike the data."""
        reference, rows = self._reference, FIRST_ROWS - self._left
        if reference is None or not self._measured:
            return self._fault
        unlike = {}
        for name, quantity in reference.quantities.items():
            if all(name in one for one in self._measured):
                values = np.concatenate([one[name] for one in self._measured])
                unlike[name] = values[_beyond(values, quantity)]
        name = max(unlike, key=lambda one: len(unlike[one]), default="")
        if not name or len(unlike[name]) < UNLIKE_SHARE * rows:
            return None
        found, quantity = unlike[name], reference.quantities[name]
        return (
            f"{len(found):,} of the first {rows:,} rows are unlike the training data "
            f"({reference.data}): {name} {found.min():.4g} to {found.max():.4g}, "
            f"{quantity.low:.4g} to {quantity.high:.4g} there; --no-reference leaves this out"
        )

    def _read(self) -> Reference | None:
        try:
            return read_reference_of(self._bundle)
        except IntegrityError as error:  # nobody asked for a check: the run goes on without it
            self._fault = str(error)
            return None


def _beyond(values: Floats, quantity: Quantity) -> npt.NDArray[np.bool_]:
    """Which values are far out of the range of a quantity; NaN is in no place."""
    if quantity.low is None or quantity.high is None:
        return np.zeros(len(values), np.bool_)
    margin = MARGIN_OF_FEW if len(values) < FEW_ROWS else MARGIN
    width = margin * (quantity.high - quantity.low)
    return (values < quantity.low - width) | (values > quantity.high + width)
