"""When queries arrive, and the order in which threads take them: an open loop without a dispatcher.

    arrivals = Arrivals(due_ns)
    while (first := arrivals.take()) is not None:
        wait_until(due_ns[first])

A thread that is late takes a query whose time has passed and does not wait: the backlog is that of
a queue, first come first served, and nobody has to fill it.
"""

import math
import threading
from collections.abc import Sequence
from time import perf_counter_ns, sleep

import numpy as np
import numpy.typing as npt

from serving.errors import UsageError
from serving.timing import NS_PER_S

__all__ = ["Arrivals", "check_rate", "poisson_arrivals", "wait_until"]

SPIN_NS = 100_000
"""Linux wakes a sleeper some 60 µs late: as much as a small model takes."""


def poisson_arrivals(rate_per_second: float, count: int, *, seed: int) -> npt.NDArray[np.int64]:
    """Nanoseconds from the start to each of `count` arrivals, int64 [count], drawn from `seed`.

    The gaps of a Poisson process are independent and exponential. Raises UsageError for a rate that
    is not above 0.
    """
    check_rate(rate_per_second)
    gaps = np.random.default_rng(seed).exponential(NS_PER_S / rate_per_second, count)
    return np.cumsum(gaps).astype(np.int64)


def check_rate(rate_per_second: float) -> None:
    """Refuse a rate at which nothing arrives, or everything at once."""
    if not (rate_per_second > 0 and math.isfinite(rate_per_second)):
        raise UsageError(
            f"the rate must be above 0 queries/s, got {rate_per_second:g}; give a p99 limit "
            f"instead to have the highest one searched"
        )


def wait_until(due_ns: int) -> None:
    """Sleep until the clock of `perf_counter_ns` says so, without holding the interpreter lock.

    The last bit is spent in sleeps of no length, which give the lock up as well and wake in time.
    """
    while (left := due_ns - perf_counter_ns()) > 0:
        sleep((left - SPIN_NS) / NS_PER_S if left > SPIN_NS else 0)


class Arrivals:
    """The queries of a run, numbered in the order in which they fall due."""

    def __init__(self, due_ns: Sequence[int]) -> None:
        """All times at which they fall due, ascending, by `perf_counter_ns`."""
        self.due_ns = due_ns
        self._next = 0
        self._end = len(due_ns)
        self._lock = threading.Lock()

    def take(self) -> int | None:
        """The number of the next query, whose time may be yet to come; None after the last."""
        with self._lock:
            if self._next >= self._end:
                return None
            self._next += 1
            return self._next - 1

    def take_due(self, most: int) -> range:
        """The numbers of up to `most` queries more, whose time has come."""
        with self._lock:
            first, now = self._next, perf_counter_ns()
            last = min(first + most, self._end)
            while self._next < last and self.due_ns[self._next] <= now:
                self._next += 1
            return range(first, self._next)

    def drop(self) -> None:
        """Give up what was not taken yet."""
        with self._lock:
            self._end = self._next
