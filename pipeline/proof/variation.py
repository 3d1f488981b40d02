"""How much an output varies from row to row: the yardstick of its differences.

What an output is worth lies in how it differs between rows. A difference of 0.3 is nothing beside
values that spread over 50, and everything beside 300 that varies by 0.34. So the mean is taken
away, and each column is measured by itself, lest a large one hide what became of a small one. The
scores of classes are measured together: they are compared with each other, and a class that never
comes has no variation of its own.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from serving.runtime.tensors import Array

Floats = npt.NDArray[np.float64]

PIECE = 2**20
"""Values that are worked on at once: what is needed in between is a few dozen bytes for each."""
ROUNDINGS = 8
"""A column that varies by no more of these, in parts of its size, does not vary."""
NOISES = 1e5
"""An output's scale is at least so many times its noise: a difference of ten times the noise is
1e-4 of the scale, and within the usual limit."""
MOST_NOISE = 1e-3
"""Of the variation: noise above it excuses nothing, for nothing could be told from it."""
FAINTEST = 1e-300
"""What is divided by at least."""
IDS = 4
"""Whole numbers of so many bytes are counts and ids, which are right or wrong and have no noise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Variation:
    """How much one output of the reference varies, in one number for each of its columns."""

    axis: int | None
    """Along which the columns lie; None for a single one, which holds all values."""
    deviation: Floats
    """[columns], the standard deviation about each place's own mean over the rows. A column that
    does not vary has the size of its values, and one of zeros alone what the others have."""
    largest: float
    """The largest finite absolute value."""
    noise: float
    """How far right answers may be apart by rounding alone."""
    alike: bool
    """Whether every row is answered alike; not where there is a single row."""
    exact: bool
    """Whether values are right or wrong: counts, ids, truths and texts."""

    @property
    def scale(self) -> Floats:
        """What a difference is divided by before it is held to a limit, [columns]."""
        if self.exact:
            return np.ones_like(self.deviation)
        return np.maximum(self.deviation, max(NOISES * self.noise, FAINTEST))

    @property
    def overall(self) -> float:
        """The deviation of all columns together."""
        return math.sqrt(float((self.deviation**2).mean())) if self.deviation.size else 0.0

    @property
    def overall_scale(self) -> float:
        """The scale of all columns together, above 0."""
        return 1.0 if self.exact else max(self.overall, NOISES * self.noise, FAINTEST)

    def beside(self, rank: int) -> tuple[int, ...]:
        """The shape in which a number for each column stands beside values of so many axes."""
        return tuple(-1 if axis == self.axis else 1 for axis in range(rank))

    def by_column(self, values: Floats) -> Floats:
        """The sums of values, [rows, ...], over all but the columns."""
        return _by_column(values, self.axis)

    def noise_parts(self, errors: Floats) -> Floats:
        """The power of errors, [rows, ...], in parts of the variance, float64 [rows, columns].

        A mean of 0.01 over the rows is a signal-to-noise ratio of 20 dB.
        """
        squares = errors**2 if self.axis is None else np.moveaxis(errors**2, self.axis, 1)
        by_column = squares.reshape(len(errors), len(self.deviation), -1).mean(axis=2)
        parts: Floats = by_column / np.maximum(self.deviation**2, FAINTEST)
        return parts

    def column(self, index: int) -> str:
        """A column as Python writes it behind an array: "[:, 2]"; "" where there is but one."""
        return "" if self.axis is None else f"[{':, ' * self.axis}{index}]"

    def with_noise(self, measured: float) -> "Variation":
        """The same with the noise that was measured, if that is more."""
        believed = min(measured, MOST_NOISE * self.overall)
        return replace(self, noise=max(self.noise, believed))


def variation_of(pieces: Iterable[Array], *, together: bool = False) -> Variation:
    """Add up the variation of an output whose rows come in pieces, [rows, ...] each, at least one.

    Columns are those of a table, [rows, columns]. Of more axes it is the shortest along which they
    lie: the channels of a picture rather than its height, the quantities of a series rather than
    its steps. With `together` all values are one column. What is not finite is left out.
    """
    first, moments = None, None
    for piece in pieces:
        if moments is None:
            first, moments = piece, _Moments(piece, together=together)
        moments.add(piece)
    assert first is not None and moments is not None  # noqa: S101, PT018 - a caller's promise
    grain = float(np.finfo(first.dtype).eps) if first.dtype.kind == "f" else 0.0
    variance, power = moments.finished()
    still = variance <= (ROUNDINGS * grain) ** 2 * power
    squares = np.where(still, power, variance)
    squares = np.where(squares > 0, squares, squares.mean() if squares.size else 0.0)
    return Variation(
        axis=moments.axis,
        deviation=np.sqrt(squares),
        largest=moments.largest,
        noise=grain * moments.largest,
        alike=moments.rows > 1 and first.dtype.kind in "fiu" and bool(still.all()),
        exact=is_exact(first.dtype),
    )


def is_exact(dtype: np.dtype[Any]) -> bool:
    """Whether values of a dtype are right or wrong: counts, ids, truths and texts."""
    return dtype.kind in "OUSb" or (dtype.kind in "iu" and dtype.itemsize >= IDS)


def in_pieces(rows: int, row_shape: tuple[int, ...]) -> Iterator[slice]:
    """Slices of so many rows that hold about `PIECE` values each, one row at least."""
    step = max(1, PIECE // max(1, math.prod(row_shape)))
    return (slice(start, start + step) for start in range(0, rows, step))


class _Moments:
    """Sums of the values and of their squares, of all rows that were added so far.

    Values are taken from the first row on: of those that vary little beside their size, squares
    alone would tell nothing.
    """

    def __init__(self, first: Array, *, together: bool) -> None:
        self.axis = None if together or first.ndim < 2 else 1 + int(np.argmin(first.shape[1:]))
        self.rows, self.largest = 0, 0.0
        self._origin = _numbers(first[:1])
        self._sum = np.zeros_like(self._origin)
        self._squares = np.zeros_like(_by_column(self._origin, self.axis))
        self._power = np.zeros_like(self._squares)

    def add(self, rows: Array) -> None:
        for piece in in_pieces(len(rows), rows.shape[1:]):
            self._add(_numbers(rows[piece]))

    def _add(self, values: Floats) -> None:
        moved = values - self._origin
        self.rows += len(values)
        self.largest = max(self.largest, float(np.abs(values).max(initial=0.0)))
        self._sum += moved.sum(axis=0, keepdims=True)
        self._squares += _by_column(moved**2, self.axis)
        self._power += _by_column(values**2, self.axis)

    def finished(self) -> tuple[Floats, Floats]:
        """The variance and the mean square of each column."""
        count = max(1.0, self.rows * self._origin.size / max(1, self._squares.size))
        of_means = _by_column(self._sum**2, self.axis) / self.rows
        return np.maximum(self._squares - of_means, 0.0) / count, self._power / count


def _by_column(values: Floats, axis: int | None) -> Floats:
    others = tuple(one for one in range(values.ndim) if one != axis)
    return np.atleast_1d(values.sum(axis=others))


def _numbers(values: Array) -> Floats:
    """As float64, with zeros for what is no finite number."""
    if values.dtype.kind in "OUS":
        return np.zeros(values.shape)
    return np.nan_to_num(values.astype(np.float64), posinf=0.0, neginf=0.0)
