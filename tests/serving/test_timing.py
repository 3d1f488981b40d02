import gc
import itertools
import time

import pytest

from serving.timing import MIN_CALLS, paired_ratio, time_calls


def sleeper(milliseconds):
    return lambda: time.sleep(milliseconds / 1000)


def test_a_call_of_known_length_is_measured_as_that():
    timing = time_calls(sleeper(2), batch_size=4, seconds=0.1)
    assert 2 <= timing.p50_ms <= timing.p90_ms <= timing.p99_ms
    assert timing.p50_ms < 10
    assert 4 / 0.02 < timing.rows_per_second <= 4 / 0.002
    assert timing.num_calls >= MIN_CALLS
    assert timing.warmup_ms > 0


def test_a_slow_call_still_gets_its_least_number_of_calls():
    timing = time_calls(sleeper(3), batch_size=1, seconds=0.03)
    assert timing.num_calls == MIN_CALLS


def test_a_very_slow_call_is_cut_off():
    timing = time_calls(sleeper(25), batch_size=1, seconds=0.01)
    assert 1 <= timing.num_calls < MIN_CALLS


def test_a_fast_call_is_repeated_for_the_time_asked_for():
    start = time.perf_counter()
    timing = time_calls(lambda: None, batch_size=1, seconds=0.05)
    assert timing.num_calls > 1000
    assert time.perf_counter() - start < 10


def test_a_slow_start_is_not_in_the_figures():
    calls = itertools.count()

    def call():
        time.sleep(0.05 if next(calls) < 3 else 0.001)

    timing = time_calls(call, batch_size=1, seconds=0.05)
    assert timing.p50_ms < 40
    assert timing.warmup_ms > 100


def test_a_rate_that_never_settles_is_told(monkeypatch):
    """On a clock of our own, by which each call takes two percent longer than the one before."""
    now, calls = [0], itertools.count()

    def slower_and_slower():
        now[0] += int(1_000_000 * 1.02 ** next(calls))

    monkeypatch.setattr("serving.timing.perf_counter_ns", lambda: now[0])
    assert not time_calls(slower_and_slower, batch_size=1, seconds=0.01).steady


def test_the_collector_rests_inside_the_timed_region_and_works_after_it():
    seen = set()
    time_calls(lambda: seen.add(gc.isenabled()), batch_size=1, seconds=0.01)
    assert False in seen
    assert gc.isenabled()


def test_the_collector_is_back_after_a_failure():
    calls = itertools.count()

    def call():
        if next(calls) > 5000:
            raise ValueError("late")

    with pytest.raises(ValueError, match="late"):
        time_calls(call, batch_size=1, seconds=0.5)
    assert gc.isenabled()


def test_a_ratio_is_that_of_first_to_second():
    ratio = paired_ratio(sleeper(4), sleeper(2), seconds=0.2, seed=1)
    assert 1.3 < ratio.low <= ratio.median <= ratio.high < 2.6
    assert ratio.num_pairs >= MIN_CALLS
    assert ratio.num_pairs % 2 == 0


def test_a_call_against_itself_is_one():
    call = sleeper(1)
    ratio = paired_ratio(call, call, seconds=0.2, seed=2)
    assert 0.8 < ratio.median < 1.25
    assert ratio.low <= ratio.median <= ratio.high


def test_each_order_is_run_equally_often():
    order: list[str] = []
    paired_ratio(
        lambda: (order.append("a"), time.sleep(0.001)),
        lambda: (order.append("b"), time.sleep(0.001)),
        seconds=0.1,
        seed=3,
    )
    pairs = ["".join(order[-40:][start : start + 2]) for start in range(0, 40, 2)]
    assert pairs.count("ab") == pairs.count("ba") == 10
    assert pairs != ["ab", "ba"] * 10
