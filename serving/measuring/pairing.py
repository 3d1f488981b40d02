"""Compare two subjects by the median of the ratios of their times, measured in turns.

What the machine does meanwhile falls on both alike; a ratio of two separate runs would take it for
a difference. The interval is a percentile bootstrap (Efron 1979) of the median, at 95 %.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter_ns
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from serving.measuring.timing import (
    MIN_CALLS,
    NS_PER_S,
    Call,
    digits,
    enough_calls,
    no_garbage_collection,
    time_once,
    warm_up,
)

MAX_PAIRS = 20_000
NUM_RESAMPLES = 1000
MAX_DRAWN = 1_000_000
"""Values that are drawn at a time: 8 MB."""
MARGIN = 0.02
"""Two processes of the same program differ by as much, by where their memory happens to lie."""

Verdict = Literal["faster", "slower", "no difference"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedRatio:
    """How many times as long the first of two subjects takes as the second."""

    median: float
    low: float
    """Lower end of the 95 % bootstrap interval of the median."""
    high: float
    num_pairs: int


def verdict(ratio: PairedRatio) -> Verdict:
    """Whether the second of two is faster or slower: only where the interval is beyond `MARGIN`."""
    if ratio.low > 1 + MARGIN:
        return "faster"
    return "slower" if ratio.high < 1 - MARGIN else "no difference"


def ratio_of_turns(first: Sequence[float], second: Sequence[float], *, seed: int) -> PairedRatio:
    """The ratio of two series of times whose turns alternated, pair by pair."""
    return _ratio_of(np.asarray(first) / np.asarray(second), np.random.default_rng(seed))


def ratio_of_separate_turns(
    first: Sequence[float], second: Sequence[float], *, seed: int
) -> PairedRatio:
    """The ratio of the medians of two series that were not measured together.

    The interval resamples each of them by itself, so that it is as wide as both are noisy; a
    difference between the two times of measuring is not in it.
    """
    rng = np.random.default_rng(seed)
    one, other = np.asarray(first), np.asarray(second)
    drawn = [
        np.median(rng.choice(one, one.size)) / np.median(rng.choice(other, other.size))
        for _ in range(NUM_RESAMPLES)
    ]
    low, high = np.percentile(drawn, (2.5, 97.5))
    return _paired(np.median(one) / np.median(other), low, high, min(one.size, other.size))


def paired_ratio(first: Call, second: Call, *, seconds: float, seed: int) -> PairedRatio:
    """Compare two calls in pairs, A B and B A equally often in an order drawn from `seed`."""
    for call in (first, second):
        warm_up(call, seconds / 4)
    rng = np.random.default_rng(seed)
    ratios: list[float] = []
    limit_ns, start = int(seconds * NS_PER_S), perf_counter_ns()
    with no_garbage_collection():
        while len(ratios) < MAX_PAIRS:
            for first_leads in rng.permutation([True, False]):
                order = (first, second) if first_leads else (second, first)
                one, other = (time_once(call) for call in order)
                ratios.append(one / other if first_leads else other / one)
            if enough_calls(len(ratios), perf_counter_ns() - start, limit_ns, MIN_CALLS):
                break
    return _ratio_of(np.array(ratios), rng)


def orders(names: Sequence[str], rounds: int, rng: np.random.Generator) -> list[list[str]]:
    """In which order the names take their turns, round by round.

    Shuffled, and every order is followed by its reverse, so that each goes before each other
    equally often in an even number of rounds.
    """
    found: list[list[str]] = []
    while len(found) < rounds:
        order = [names[index] for index in rng.permutation(len(names))]
        found += [order, order[::-1]]
    return found[:rounds]


def interval_of_median(
    values: npt.NDArray[np.float64], rng: np.random.Generator
) -> tuple[float, float]:
    """The 95 % percentile bootstrap interval of the median of `values`, float64 [n]."""
    at_once = max(1, MAX_DRAWN // values.size)
    counts = [min(at_once, NUM_RESAMPLES - done) for done in range(0, NUM_RESAMPLES, at_once)]
    medians = [np.median(rng.choice(values, (count, values.size)), axis=1) for count in counts]
    low, high = np.percentile(np.concatenate(medians), (2.5, 97.5))
    return float(low), float(high)


def _ratio_of(ratios: npt.NDArray[np.float64], rng: np.random.Generator) -> PairedRatio:
    return _paired(np.median(ratios), *interval_of_median(ratios, rng), ratios.size)


def _paired(median: Any, low: Any, high: Any, num_pairs: int) -> PairedRatio:
    rounded = {"median": digits(median), "low": digits(low), "high": digits(high)}
    return PairedRatio(**rounded, num_pairs=num_pairs)
