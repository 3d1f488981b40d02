"""The system that both engines load: its pool of rows, its threads, and the figures of a run."""

import gc
import sys
import threading
from typing import Any

import numpy as np
import numpy.typing as npt
from steady import Steady

from serving.measuring.system import Lane, System, busy_threads, run_of
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
