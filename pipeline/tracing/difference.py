"""How far one value is from another, whatever both hold: numbers, truths, words, other shapes."""

from dataclasses import dataclass
from math import inf

import numpy as np

from pipeline.tracing.pairs import Pair
from pipeline.tracing.values import Array

__all__ = ["Difference", "compared"]

NUMBERS = "fiub"
TINY = 1e-12
"""A tensor whose largest value is below this one is not divided by it."""


@dataclass(frozen=True, slots=True)
class Difference:
    """Of two arrays that should be the same."""

    absolute: float
    """The largest; infinite where no number tells it: other shapes, other words, or NaN."""
    relative: float
    """Over the largest value of the reference."""
    exact: bool
    """Whether both hold whole numbers, truths or words, which are right or wrong."""


def compared(wanted: Array, found: Array, pair: Pair) -> Difference:
    """How far `found` is from what the reference has in its place.

    A quantizer's numbers are taken for the values they stand for. NaN and infinities that stand in
    both are no difference.
    """
    exact = wanted.dtype.kind != "f" and found.dtype.kind != "f"
    if wanted.shape != found.shape:
        return Difference(inf, inf, exact)
    if wanted.dtype.kind not in NUMBERS or found.dtype.kind not in NUMBERS:
        same = np.array_equal(wanted.astype(str), found.astype(str))
        return Difference(0.0, 0.0, exact) if same else Difference(inf, inf, exact)
    right = wanted.astype(np.float64)
    other = pair.steps.values(found) if pair.steps else found.astype(np.float64)
    if pair.clipped and right.size:
        other = other.clip(np.nanmin(right), np.nanmax(right))
    worst = _largest(right, other)
    scale = float(np.abs(right[np.isfinite(right)]).max(initial=TINY))
    return Difference(worst, worst / scale, exact)


def _largest(right: Array, other: Array) -> float:
    """The largest absolute difference; infinite where only one of both is a finite number."""
    same = (right == other) | (np.isnan(right) & np.isnan(other))
    with np.errstate(invalid="ignore"):  # infinity less infinity, where both are the same
        off = np.abs(right - other)
    off = np.where(same, 0.0, np.nan_to_num(off, nan=inf, posinf=inf))
    return float(off.max(initial=0.0))
