"""The population stability index of two sets of counts, and how large mere chance makes it."""

from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["chi_square_quantile", "population_stability", "psi_of_chance"]

Counts = npt.NDArray[Any]
SMOOTHING = 0.5


def population_stability(expected: Counts, found: Counts) -> tuple[float, int]:
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


def _shares(counts: Counts) -> npt.NDArray[np.float64]:
    smooth = counts + SMOOTHING
    shares: npt.NDArray[np.float64] = smooth / smooth.sum()
    return shares
