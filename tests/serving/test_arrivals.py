"""The schedule of an open loop, and the order in which its queries are taken."""

import threading
from time import perf_counter_ns, sleep

import numpy as np
import pytest

from serving.errors import UsageError
from serving.measuring.system import Arrivals, poisson_arrivals, wait_until

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
