"""The system under load: its rows, its threads, its figures, and the queries that arrive."""

import gc
import sys
import threading
from time import perf_counter_ns, sleep
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from steady import Steady

from serving.errors import UsageError
from serving.measuring.system import (
    Arrivals,
    Lane,
    System,
    busy_threads,
    poisson_arrivals,
    run_of,
    wait_until,
)
from serving.runtime.settings import SessionSettings

ONE = SessionSettings(threads=1)
THREE = SessionSettings(threads=1, parallel=3)


class Wide(Steady):
    """Rows of 4 MiB each."""

    def rows(self, count: int) -> npt.NDArray[Any]:
        return np.zeros((count, 1 << 20), np.float32)


def test_the_pool_is_as_large_as_memory_allows_and_a_call_needs() -> None:
    subject = Wide(call_ms=0)
    system = System(subject, ONE, 1)
    few = system.call(1)
    for _ in range(5):
        few()
    assert np.shares_memory(subject.asked[0], subject.asked[4]), "16 MiB are four rows"
    assert not np.shares_memory(subject.asked[0], subject.asked[3])
    system.call(6)()
    assert len(subject.asked[-1]) == 6


def test_rows_are_cut_beforehand_and_not_copied() -> None:
    subject = Steady(call_ms=0)
    system = System(subject, ONE, 1)
    for size in (1, 8, 3):
        system.call(size)()
    assert all(rows.base is not None for rows in subject.asked)
    assert [len(rows) for rows in subject.asked] == [1, 8, 3]


def test_each_thread_has_calls_of_its_own_that_were_made_once() -> None:
    subject = Steady(call_ms=0)
    lanes = System(subject, THREE, 4).lanes(range(1, 5))
    assert [sorted(lane) for lane in lanes] == [[1, 2, 3, 4]] * 3
    assert len({id(call) for lane in lanes for call in lane.values()}) == 12
    assert sorted(len(rows) for rows in subject.asked) == sorted([1, 2, 3, 4] * 3)


def test_flat_out_makes_each_call_once_whoever_makes_it() -> None:
    subject = Steady(call_ms=1)
    ends = System(subject, THREE, 2).flat_out(50)
    assert len(subject.asked) == 50 + 3, "and one of each thread before"
    assert ends.shape == (50,)
    assert ends.min() >= 1_000_000
    # Three at a time, and no more: 50 calls of 1 ms are 17 of each thread.
    assert ends.max() >= 16_000_000


def test_the_capacity_counts_rows_of_all_threads() -> None:
    assert 20 < System(Steady(call_ms=20), ONE, 1).capacity(1.0) <= 50
    assert 50 < System(Steady(call_ms=20), THREE, 1).capacity(1.0) <= 150
    assert 200 < System(Steady(call_ms=20), ONE, 10).capacity(1.0) <= 500


def test_threads_run_without_collector_or_long_turns_and_leave_all_as_it_was() -> None:
    lanes: list[Lane] = [{}, {}]
    interval = sys.getswitchinterval()
    together = threading.Barrier(2, timeout=60)  # broken unless both are there at a time

    def work(_: Lane) -> tuple[bool, float]:
        together.wait()
        return gc.isenabled(), sys.getswitchinterval()

    assert gc.isenabled()
    with busy_threads(lanes, work) as begin:
        found = list(begin())
    assert [on for on, _ in found] == [False, False]
    assert all(seconds < interval / 10 for _, seconds in found)
    assert gc.isenabled()
    assert sys.getswitchinterval() == interval


def test_percentiles_are_of_latencies_that_were_seen() -> None:
    latencies = np.arange(1, 1001) * 1_000_000
    run = run_of(latencies, elapsed_ns=2_000_000_000, rows_per_query=8, batch_size=8)
    assert (run.p50_ms, run.p90_ms, run.p99_ms, run.p999_ms) == (501, 901, 991, 1000)
    assert (run.num_queries, run.seconds, run.rows_per_second) == (1000, 2, 4000)


def test_one_query_has_one_latency() -> None:
    run = run_of([7_000_000], elapsed_ns=0, rows_per_query=1, batch_size=1)
    assert run.p50_ms == run.p999_ms == 7
    assert run.rows_per_second > 0


# The queries that arrive


MANY = 20_000


def test_the_gaps_are_those_of_a_poisson_process() -> None:
    arrivals = poisson_arrivals(250.0, MANY, seed=3)
    gaps_ms = np.diff(arrivals, prepend=0) / 1e6
    assert arrivals.dtype == np.int64
    assert gaps_ms.min() >= 0
    # An exponential distribution: its mean is 1/rate, and so is its standard deviation.
    assert gaps_ms.mean() == pytest.approx(4.0, rel=0.05)
    assert gaps_ms.std() == pytest.approx(4.0, rel=0.05)
    assert np.median(gaps_ms) == pytest.approx(4.0 * np.log(2), rel=0.05)
    assert abs(np.corrcoef(gaps_ms[:-1], gaps_ms[1:])[0, 1]) < 0.05


def test_the_number_in_each_second_varies_as_much_as_its_mean() -> None:
    counts = np.bincount(poisson_arrivals(50.0, MANY, seed=4) // 1_000_000_000)[:-1]
    assert counts.mean() == pytest.approx(50, rel=0.05)
    assert counts.var() == pytest.approx(50, rel=0.3)


def test_a_seed_gives_the_same_arrivals_again() -> None:
    first = poisson_arrivals(100.0, 50, seed=1)
    assert np.array_equal(first, poisson_arrivals(100.0, 50, seed=1))
    assert not np.array_equal(first, poisson_arrivals(100.0, 50, seed=2))


@pytest.mark.parametrize("rate", [0.0, -5.0, float("inf"), float("nan")])
def test_a_rate_at_which_nothing_arrives_is_refused(rate: float) -> None:
    with pytest.raises(UsageError, match=r"the rate must be above 0 queries/s, got"):
        poisson_arrivals(rate, 10, seed=1)


def test_queries_are_taken_in_order_and_once() -> None:
    arrivals = Arrivals([0] * 3000)
    taken: list[list[int]] = [[] for _ in range(4)]

    def take(mine: list[int]) -> None:
        while (number := arrivals.take()) is not None:
            mine.append(number)

    threads = [threading.Thread(target=take, args=(mine,)) for mine in taken]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(mine == sorted(mine) for mine in taken)
    assert sorted(number for mine in taken for number in mine) == list(range(3000))


def test_only_queries_that_are_due_are_taken_along() -> None:
    now = perf_counter_ns()
    hour = 3600 * 10**9
    arrivals = Arrivals([now - 3, now - 2, now - 1, now + hour, now + 2 * hour])
    assert arrivals.take() == 0
    assert arrivals.take_due(1) == range(1, 2)
    assert arrivals.take_due(7) == range(2, 3)
    assert list(arrivals.take_due(7)) == []
    assert arrivals.take() == 3, "one that is not due yet may be waited for"


def test_what_is_dropped_is_not_taken() -> None:
    arrivals = Arrivals([0, 0, 0])
    assert arrivals.take() == 0
    arrivals.drop()
    assert arrivals.take() is None
    assert not arrivals.take_due(5)


def test_waiting_ends_when_it_is_time_and_not_before() -> None:
    for wait_ns in (-1_000_000, 0, 50_000, 3_000_000):
        due = perf_counter_ns() + wait_ns
        wait_until(due)
        assert perf_counter_ns() >= due


def test_other_threads_run_meanwhile() -> None:
    done = []
    thread = threading.Thread(target=lambda: [done.append(sleep(0)) for _ in range(100)])
    due = perf_counter_ns() + 500_000_000
    thread.start()
    wait_until(due)
    assert len(done) == 100
    thread.join()
