"""Bins at the deciles of a quantity, the rows in each, and how stable two sets of counts are.

All quantities of a batch are counted at once, as a batch may have few rows. The population
stability index compares two sets of counts; `psi_of_chance` says how large mere chance makes it.
"""

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

from serving.bundles.reference import Quantity, Side

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]
AnyCounts = npt.NDArray[Any]
BINS = 10
MOST_CLASSES = 31
"""Classes with a bin of their own; the others share one."""
SMOOTHING = 0.5


def quantity_of(values: Floats, of: Side) -> Quantity:
    """The distribution of a quantity, with bins at its own deciles."""
    edges = bin_edges(values)
    (counts,) = Counter([edges]).count([values])
    return Quantity(of=of, edges=edges, counts=tuple(counts.tolist()))


def bin_edges(values: Floats) -> tuple[float, ...]:
    """The deciles of the finite values, each once, in ascending order; () where there is none.

    A bin holds the values over one edge, up to and with the next. A value of several deciles, or
    of all as in a constant feature, gets a bin for itself, so that what is less is not counted
    with it.
    """
    finite = np.sort(values[np.isfinite(values)])
    if not len(finite):
        return ()
    # Values of the sample, not between two of them: the edge of whole numbers is a whole number.
    places = [-(-len(finite) * part // BINS) - 1 for part in range(1, BINS)]
    deciles = finite[places]
    edges = set(deciles.tolist())
    for value in np.unique(deciles[1:][deciles[1:] == deciles[:-1]]):
        edges.add(math.nextafter(value, -math.inf))
    return tuple(sorted(edges - {-math.inf}))


class Counter:
    """Counts how many rows of a batch lie in each bin of each quantity."""

    def __init__(self, edges: Sequence[Sequence[float]]) -> None:
        """The edges of each quantity."""
        self._sizes = [len(one) + 2 for one in edges]
        self._most = max(self._sizes, default=2)
        # Nothing is greater than infinity, so that shorter lists can be filled up with it.
        self._edges = np.full((self._most - 2, len(edges), 1), np.inf)
        for index, one in enumerate(edges):
            self._edges[: len(one), index, 0] = one

    def count(self, values: Sequence[Floats]) -> list[Counts]:
        """The rows in the bins of each quantity, of which the last is for NaN."""
        if not values:
            return []
        table = np.stack(values)
        places = np.zeros(table.shape, np.int64)
        for edge in self._edges:
            places += table > edge
        lost = np.isnan(table)
        if lost.any():
            ends = np.array(self._sizes)[:, None] - 1
            places = np.where(lost, ends, places)
        places += np.arange(len(values))[:, None] * self._most
        counts = np.bincount(places.ravel(), minlength=len(values) * self._most)
        rows = counts.reshape(len(values), self._most)
        return [row[:size] for row, size in zip(rows, self._sizes, strict=True)]


class ClassBins:
    """Which bin a class is in: the most frequent ones have their own, the rest the last one."""

    def __init__(self, counts: Sequence[int]) -> None:
        """How many rows were of each class."""
        order = np.argsort(-np.array(counts, np.int64), kind="stable")
        self.classes: tuple[int, ...] = tuple(int(one) for one in order[:MOST_CLASSES])
        """The classes with a bin of their own, in the order of the bins."""
        self._bins = np.full(len(counts) + 1, len(self.classes))
        self._bins[list(self.classes)] = np.arange(len(self.classes))

    def count(self, label_index: npt.NDArray[Any]) -> Counts:
        """The rows in each bin; one of a class that was never counted is with the rest."""
        known = np.minimum(label_index, len(self._bins) - 1)
        counts: Counts = np.bincount(self._bins[known], minlength=len(self.classes) + 1)
        return counts

    def group(self, counts: Sequence[int]) -> Counts:
        """The counts of all classes as counts of the bins."""
        weights = np.array([*counts, 0], np.float64)
        grouped = np.bincount(self._bins, weights=weights, minlength=len(self.classes) + 1)
        return grouped.astype(np.int64)


def population_stability(expected: AnyCounts, found: AnyCounts) -> tuple[float, int]:
    """The population stability index of the rows in some bins, and how many bins it is of.

    PSI = sum over the bins of (q - p) ln(q / p), where p is the share of the expected rows and q
    that of the found ones: the symmetric divergence of Kullback and Leibler, as N. Siddiqi, Credit
    Risk Scorecards (Wiley, 2006) uses it. A bin without rows would make it infinite, so each count
    has half a row added; bins that are empty in both are no bins.
    """
    there = (expected + found) > 0
    p, q = _shares(expected[there]), _shares(found[there])
    return float(((q - p) * np.log(q / p)).sum()), int(there.sum())


def psi_of_chance(bins: int, expected: int, found: int, chance: float) -> float:
    """The PSI that two samples of one distribution exceed with a probability of `chance`.

    Of n and m rows in b bins it is about (1/n + 1/m) times a chi-square of b - 1 degrees of
    freedom, and so (b - 1)(1/n + 1/m) on average: B. Yurdakul and J. Naranjo, Statistical
    properties of the population stability index, Journal of Risk Model Validation 14(4), 2020.
    """
    if bins < 2 or not expected or not found:
        return 0.0
    return chi_square_quantile(bins - 1, 1 - chance) * (1 / expected + 1 / found)


def chi_square_quantile(degrees: int, probability: float) -> float:
    """The quantile of the chi-square distribution, in its upper tail a little too large.

    E. B. Wilson and M. M. Hilferty, The distribution of chi-square, PNAS 17, 1931.
    """
    part = 2 / (9 * degrees)
    return degrees * float((1 - part + NormalDist().inv_cdf(probability) * part**0.5) ** 3)


def _shares(counts: AnyCounts) -> npt.NDArray[np.float64]:
    smooth = counts + SMOOTHING
    shares: npt.NDArray[np.float64] = smooth / smooth.sum()
    return shares
