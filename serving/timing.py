"""Time a call: warm up until its rate is steady, then count, and compare two calls in pairs.

The method is that of the benchmarks we trust: a monotonic clock in nanoseconds, nothing of our own
in the timed region, medians, and ratios of interleaved pairs instead of ratios of two runs.
"""

import contextlib
import gc
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from time import perf_counter_ns

import numpy as np
import numpy.typing as npt

__all__ = [
    "NS_PER_MS",
    "PairedRatio",
    "Timing",
    "paired_ratio",
    "time_calls",
]

Call = Callable[[], object]

MIN_CALLS = 20
MAX_CALLS = 200_000
MAX_OVERRUN = 10
"""How many times the time asked for may pass for the sake of MIN_CALLS."""
STEADY = 0.05
"""Two windows of warm-up whose medians differ by less than this part are a steady rate."""
MIN_WINDOWS, MAX_WINDOWS = 3, 40
MAX_PAIRS = 20_000
NUM_RESAMPLES = 1000
NS_PER_MS = 1_000_000
NS_PER_S = 1_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """How long calls on batches of one size took, after warm-up."""

    batch_size: int
    p50_ms: float
    p90_ms: float
    p99_ms: float
    rows_per_second: float
    """Rows answered per second over all timed calls."""
    num_calls: int
    warmup_ms: float
    steady: bool
    """Whether the rate settled before warm-up was cut off; if not, distrust the figures."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedRatio:
    """How many times as long the first of two calls takes as the second."""

    median: float
    low: float
    """Lower end of the 95 % bootstrap interval of the median."""
    high: float
    num_pairs: int


def time_calls(call: Call, *, batch_size: int, seconds: float) -> Timing:
    """Warm up, then time `call` for about `seconds`, at least 20 times.

    Slow calls are cut off after ten times `seconds`, then with fewer than 20 of them.
    """
    warmup_ns, steady = _warm_up(call, int(seconds * NS_PER_S))
    times = _measure(call, int(seconds * NS_PER_S))
    p50, p90, p99 = np.percentile(times, (50, 90, 99)) / NS_PER_MS
    return Timing(
        batch_size=batch_size,
        p50_ms=_digits(p50),
        p90_ms=_digits(p90),
        p99_ms=_digits(p99),
        rows_per_second=_digits(batch_size * len(times) / (times.sum() / NS_PER_S)),
        num_calls=len(times),
        warmup_ms=_digits(warmup_ns / NS_PER_MS),
        steady=steady,
    )


def paired_ratio(first: Call, second: Call, *, seconds: float, seed: int) -> PairedRatio:
    """Compare two calls by the median of the ratios of their times, run in pairs.

    Each pair runs both, A B and B A equally often in an order drawn from `seed`, so that what the
    machine does meanwhile falls on both alike. The interval is a percentile bootstrap (Efron 1979)
    of the median, at 95 %.
    """
    for call in (first, second):
        _warm_up(call, int(seconds * NS_PER_S / 4))
    rng = np.random.default_rng(seed)
    ratios = _ratios(first, second, int(seconds * NS_PER_S), rng)
    medians = [
        np.median(rng.choice(ratios, size=ratios.size, replace=True)) for _ in range(NUM_RESAMPLES)
    ]
    low, high = np.percentile(medians, (2.5, 97.5))
    return PairedRatio(
        median=_digits(np.median(ratios)),
        low=_digits(low),
        high=_digits(high),
        num_pairs=ratios.size,
    )


def _warm_up(call: Call, limit_ns: int) -> tuple[int, bool]:
    """Call in windows until two in a row have the same median; the time spent, and if they did."""
    start = perf_counter_ns()
    call()  # the very first one allocates what the later ones reuse
    window_calls = int(np.clip(limit_ns / 20 / _time(call), 5, 1000))
    medians: list[float] = []
    for _ in range(MAX_WINDOWS):
        medians.append(float(np.median([_time(call) for _ in range(window_calls)])))
        if len(medians) >= MIN_WINDOWS and abs(medians[-1] / medians[-2] - 1) < STEADY:
            return perf_counter_ns() - start, True
        if perf_counter_ns() - start > max(limit_ns, NS_PER_S) * 2:
            break
    return perf_counter_ns() - start, False


def _measure(call: Call, limit_ns: int) -> npt.NDArray[np.int64]:
    """Times in nanoseconds of calls made one after the other."""
    clock = perf_counter_ns
    times: list[int] = []
    keep = times.append
    with _no_garbage_collection():
        start = before = clock()
        while len(times) < MAX_CALLS:
            call()
            after = clock()
            keep(after - before)
            elapsed = after - start
            if elapsed >= limit_ns and _enough(len(times), elapsed, limit_ns):
                break
            before = clock()
    return np.maximum(np.array(times, np.int64), 1)


def _enough(num_calls: int, elapsed_ns: int, limit_ns: int) -> bool:
    return num_calls >= MIN_CALLS or elapsed_ns >= MAX_OVERRUN * limit_ns


def _ratios(
    first: Call, second: Call, limit_ns: int, rng: np.random.Generator
) -> npt.NDArray[np.float64]:
    ratios: list[float] = []
    start = perf_counter_ns()
    with _no_garbage_collection():
        while len(ratios) < MAX_PAIRS:
            orders = rng.permutation([True, False])
            ratios += [_ratio(first, second, first_leads=leads) for leads in orders]
            elapsed = perf_counter_ns() - start
            if elapsed >= limit_ns and _enough(len(ratios), elapsed, limit_ns):
                break
    return np.array(ratios)


def _ratio(first: Call, second: Call, *, first_leads: bool) -> float:
    if first_leads:
        first_ns = _time(first)
        second_ns = _time(second)
    else:
        second_ns = _time(second)
        first_ns = _time(first)
    return first_ns / second_ns


def _time(call: Call) -> int:
    before = perf_counter_ns()
    call()
    return max(1, perf_counter_ns() - before)


@contextlib.contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Keep Python's collector from running inside the timed region, as `timeit` does."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _digits(value: float) -> float:
    """Six significant digits: more would be noise in files that are compared."""
    return float(f"{value:.6g}")
