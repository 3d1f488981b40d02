"""Time a call in this process: check the clock, warm up until the rate is steady, then count.

A monotonic clock in nanoseconds, nothing of our own in the timed region, no garbage collection, and
quantiles instead of means. `serving.measuring.pairing` compares two calls, and
`serving.measuring.rounds` several processes.
"""

import contextlib
import functools
import gc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from time import perf_counter_ns
from typing import Any

import numpy as np
import numpy.typing as npt

Call = Callable[[], object]

MIN_CALLS = 20
MAX_CALLS = 200_000
MAX_OVERRUN = 10
"""How many times the time asked for may pass for the sake of MIN_CALLS."""
STEADY = 0.05
"""Three windows of warm-up whose medians differ by less than this part are a steady rate."""
STEADY_WINDOWS, MAX_WINDOWS = 3, 40
MIN_TICKS = 20
"""A sample lasts at least so many ticks of the clock; shorter calls are timed in groups."""
CLOCK_READINGS = 2000
NS_PER_MS = 1_000_000
NS_PER_S = 1_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Clock:
    """What the clock can tell apart."""

    resolution_ns: float
    """The smallest step that it was seen to make."""
    reading_ns: float
    """The median time of reading it, which every sample contains once."""

    def calls_per_sample(self, call_ns: float) -> int:
        """How many calls make a sample that the clock can measure."""
        tick = max(self.resolution_ns, self.reading_ns)
        return max(1, int(np.ceil(MIN_TICKS * tick / max(call_ns, 1))))


@dataclass(frozen=True, slots=True, kw_only=True)
class WarmUp:
    """The calls before those that count."""

    ms: float
    steady: bool
    """Whether the rate settled before warm-up was cut off; if not, distrust the figures."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Samples:
    """Times of calls made one after the other."""

    call_ns: npt.NDArray[np.float64]
    """Nanoseconds per call, one of each sample."""
    num_calls: int
    elapsed_ns: int
    """Of all of them, with what lies between."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """How long calls on batches of one size took, after warm-up."""

    batch_size: int
    p50_ms: float
    p90_ms: float
    p99_ms: float
    p999_ms: float
    """Of fewer than 1000 calls it is near the slowest one."""
    max_ms: float
    rows_per_second: float
    """Rows answered per second over all timed calls, those of parallel threads together."""
    num_calls: int
    warmup_ms: float
    steady: bool
    """Whether the rate settled before warm-up was cut off; if not, distrust the figures."""
    turns_ms: tuple[float, ...]
    """The median of each turn, in order; turns of what is compared alternate."""


@functools.cache
def check_clock() -> Clock:
    """Measure the resolution of the clock that all figures come from."""
    readings = np.array([perf_counter_ns() for _ in range(CLOCK_READINGS)])
    steps = np.diff(readings)
    moved = steps[steps > 0]
    smallest = float(moved.min()) if moved.size else float(NS_PER_MS)
    return Clock(resolution_ns=smallest, reading_ns=float(np.median(steps)))


def timing_of(turns: Sequence[Samples], *, batch_size: int, warm: WarmUp) -> Timing:
    """Put the samples of one or several turns together."""
    times = np.concatenate([turn.call_ns for turn in turns])
    p50, p90, p99, p999 = np.percentile(times, (50, 90, 99, 99.9)) / NS_PER_MS
    num_calls = sum(turn.num_calls for turn in turns)
    elapsed = sum(turn.elapsed_ns for turn in turns)
    return Timing(
        batch_size=batch_size,
        p50_ms=digits(p50),
        p90_ms=digits(p90),
        p99_ms=digits(p99),
        p999_ms=digits(p999),
        max_ms=digits(times.max() / NS_PER_MS),
        rows_per_second=digits(batch_size * num_calls / (elapsed / NS_PER_S)),
        num_calls=num_calls,
        warmup_ms=warm.ms,
        steady=warm.steady,
        turns_ms=tuple(digits(np.median(turn.call_ns) / NS_PER_MS) for turn in turns),
    )


def warm_up(call: Call, seconds: float) -> WarmUp:
    """Call in windows until three in a row have the same median; two would pass a slow slope."""
    limit_ns = int(seconds * NS_PER_S)
    start = perf_counter_ns()
    call()  # the very first one allocates what the later ones reuse
    window_calls = int(np.clip(limit_ns / 20 / time_once(call), 5, 1000))
    medians: list[float] = []
    steady = False
    for _ in range(MAX_WINDOWS):
        medians.append(float(np.median([time_once(call) for _ in range(window_calls)])))
        last = medians[-STEADY_WINDOWS:]
        steady = len(last) == STEADY_WINDOWS and max(last) / min(last) - 1 < STEADY
        if steady or perf_counter_ns() - start > max(limit_ns, NS_PER_S) * 2:
            break
    return WarmUp(ms=digits((perf_counter_ns() - start) / NS_PER_MS), steady=steady)


def take_samples(call: Call, seconds: float, *, min_calls: int = MIN_CALLS) -> Samples:
    """Time calls made one after the other for about `seconds`, and at least `min_calls` of them.

    A call that is too short for the clock is timed in groups, whose mean is a sample. Slow calls
    are cut off after ten times `seconds`, then with fewer than `min_calls`.
    """
    limit_ns = int(seconds * NS_PER_S)
    group = check_clock().calls_per_sample(min(time_once(call) for _ in range(3)))
    call = call if group == 1 else functools.partial(_repeat, call, group)
    clock = perf_counter_ns
    times: list[int] = []
    keep = times.append
    with no_garbage_collection():
        start = before = clock()
        while True:
            call()
            after = clock()
            keep(after - before)
            elapsed = after - start
            if enough_calls(len(times), elapsed, limit_ns, min_calls) or len(times) >= MAX_CALLS:
                break
            before = clock()
    per_call = np.maximum(np.array(times, np.float64), 1) / group
    return Samples(call_ns=per_call, num_calls=len(times) * group, elapsed_ns=max(elapsed, 1))


def enough_calls(num_calls: int, elapsed_ns: int, limit_ns: int, min_calls: int) -> bool:
    """Whether the time is up with calls enough, or is long over without."""
    return elapsed_ns >= limit_ns and (
        num_calls >= min_calls or elapsed_ns >= MAX_OVERRUN * limit_ns
    )


def time_once(call: Call) -> int:
    """Nanoseconds of one call, at least 1."""
    before = perf_counter_ns()
    call()
    return max(1, perf_counter_ns() - before)


@contextlib.contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Keep Python's collector from running inside the timed region, as `timeit` does."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def digits(value: Any) -> float:
    """Six significant digits: more would be noise in files that are compared."""
    return float(f"{value:.6g}")


def _repeat(call: Call, times: int) -> None:
    for _ in range(times):
        call()
