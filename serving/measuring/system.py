"""The system under test: a subject with the threads that call it, and the queries that arrive.

A query costs one lookup and one call beyond the model: its rows were cut out of a pool beforehand.
The threads take queries in the order in which they fall due, without a dispatcher:

    arrivals = Arrivals(due_ns)
    while (first := arrivals.take()) is not None:
        wait_until(due_ns[first])

A thread that is late takes a query whose time has passed and does not wait, so that the backlog is
a queue, first come first served, and nobody has to fill it.
"""

import contextlib
import itertools
import math
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from time import perf_counter_ns, sleep
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from serving.errors import InputError, UsageError
from serving.measuring.timing import (
    NS_PER_MS,
    NS_PER_S,
    Call,
    digits,
    no_garbage_collection,
    time_once,
)
from serving.runtime.settings import SessionSettings

POOL_BYTES = 1 << 24
MOST_POOL_ROWS = 1024
TRIAL_PART = 0.1
"""Of the time of a run, for a look at how fast the system is."""
SWITCH_SECONDS = 1e-5
"""How long a thread may keep the interpreter lock when others want it; Python's own are 5 ms."""
SPIN_NS = 100_000
"""Linux wakes a sleeper some 60 µs late: as much as a small model takes."""

Result = TypeVar("Result")
Lane = Mapping[int, Call]
"""What one thread answers with: a call for each number of rows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadRun:
    """What one run under a load found."""

    batch_size: int
    """Rows of one call; in the server scenario the most of them."""
    rows_per_query: int
    num_queries: int
    seconds: float
    p50_ms: float
    p90_ms: float
    p99_ms: float
    p999_ms: float
    """Latencies of queries, in the server scenario counted from when they were due to arrive.

    Offline, where there is one query of all rows, those of the rows, from its start.
    """
    rows_per_second: float


class ScenarioSubject(Protocol):
    """What a system calls."""

    def call(self, batch_size: int) -> Call:
        """What runs one batch of so many rows, beside other such calls; InputError if none can."""

    def answer(self, rows: npt.NDArray[Any]) -> object:
        """Answer rows of the first input."""

    def rows(self, count: int) -> npt.NDArray[Any]:
        """So many rows of the first input, real ones or made up."""


class System:
    """A subject with the threads that call it."""

    def __init__(
        self, subject: ScenarioSubject, settings: SessionSettings, batch_size: int
    ) -> None:
        """Answer with `settings.parallel` threads and up to `batch_size` rows in a call."""
        self.batch_size = batch_size
        self.settings = settings
        self._subject = subject
        self._pool: npt.NDArray[Any] | None = None

    def call(self, rows: int) -> Call:
        """What answers so many rows, for one thread; each call takes the next ones of the pool."""
        if self.settings.binding:  # then the same ones are copied each time
            return self._subject.call(rows)
        pool = self._rows(rows)
        if len(pool) < rows:
            raise InputError(f"the model takes batches of {len(pool)}, not of {rows}")
        starts = range(0, len(pool) - rows + 1, rows)
        turns = itertools.cycle([pool[start : start + rows] for start in starts])
        answer = self._subject.answer
        return lambda: answer(next(turns))

    def lanes(self, sizes: Iterable[int]) -> list[Lane]:
        """One for each thread, ready for calls of all `sizes`; every call was made once."""
        sizes = list(sizes)
        lanes: list[Lane] = [
            {size: self.call(size) for size in sizes} for _ in range(self.settings.parallel)
        ]
        for lane in lanes:
            for call in lane.values():
                call()
        return lanes

    def flat_out(self, num_calls: int) -> npt.NDArray[np.int64]:
        """Answer full batches as fast as all threads can; int64 [num_calls], ns to each end."""
        lanes = self.lanes([self.batch_size])
        numbers, ends = itertools.count(), [0] * num_calls

        def work(lane: Lane) -> None:
            call = lane[self.batch_size]
            while (number := next(numbers)) < num_calls:
                call()
                ends[number] = perf_counter_ns()

        with busy_threads(lanes, work) as begin:
            start = perf_counter_ns()
            list(begin())
        return np.array(ends, np.int64) - start

    def capacity(self, seconds: float) -> float:
        """The rows that it answers per second flat out, by a trial of a tenth of `seconds`."""
        call_ns = self.time_of(self.call(self.batch_size))
        per_thread = max(2, int(TRIAL_PART * seconds * NS_PER_S / call_ns))
        ends = self.flat_out(per_thread * self.settings.parallel)
        return self.batch_size * len(ends) / (int(ends.max()) / NS_PER_S)

    def time_of(self, call: Call) -> float:
        """About how many nanoseconds a call takes."""
        return float(np.median([time_once(call) for _ in range(5)]))

    def _rows(self, least: int) -> npt.NDArray[Any]:
        if self._pool is None or len(self._pool) < least:
            row_bytes = max(1, self._subject.rows(1).nbytes)
            count = min(POOL_BYTES // row_bytes, MOST_POOL_ROWS)
            self._pool = self._subject.rows(max(count, least))
        return self._pool


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerLoad:
    """What arrives at a server."""

    rate_per_second: float
    num_queries: int
    seed: int
    limit_ms: float | None
    """A run whose p99 cannot keep this any more may end early; None to run it whole."""


@contextlib.contextmanager
def busy_threads(
    lanes: Sequence[Lane], work: Callable[[Lane], Result]
) -> Iterator[Callable[[], Iterator[Result]]]:
    """Have each lane worked by a thread of its own, without Python getting in their way.

    The block is given what starts them; going over what that returns waits for their results.
    """
    switch_seconds = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_SECONDS)
    try:
        with no_garbage_collection(), ThreadPoolExecutor(len(lanes)) as pool:
            yield lambda: pool.map(work, lanes)
    finally:
        sys.setswitchinterval(switch_seconds)


def run_of(
    latencies_ns: npt.ArrayLike, *, elapsed_ns: int, rows_per_query: int, batch_size: int
) -> LoadRun:
    """The figures of queries; percentiles are of those seen, the higher of two, as MLPerf's."""
    times = np.asarray(latencies_ns, np.float64) / NS_PER_MS
    p50, p90, p99, p999 = np.percentile(times, (50, 90, 99, 99.9), method="higher")
    seconds = max(elapsed_ns, 1) / NS_PER_S
    return LoadRun(
        batch_size=batch_size,
        rows_per_query=rows_per_query,
        num_queries=times.size,
        seconds=digits(seconds),
        p50_ms=digits(p50),
        p90_ms=digits(p90),
        p99_ms=digits(p99),
        p999_ms=digits(p999),
        rows_per_second=digits(rows_per_query * times.size / seconds),
    )


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
