import gc
import itertools
import time

import numpy as np
import pytest

from serving.measuring.timing import (
    MIN_CALLS,
    Clock,
    Samples,
    WarmUp,
    check_clock,
    take_samples,
    timing_of,
    warm_up,
)


def sleeper(milliseconds):
    return lambda: time.sleep(milliseconds / 1000)


def timed(call, *, seconds, batch_size=1):
    warm = warm_up(call, seconds)
    return timing_of([take_samples(call, seconds)], batch_size=batch_size, warm=warm)


def test_a_call_of_known_length_is_measured_as_that():
    timing = timed(sleeper(2), batch_size=4, seconds=0.1)
    assert 2 <= timing.p50_ms <= timing.p90_ms <= timing.p99_ms
    assert timing.p50_ms < 10
    assert 4 / 0.02 < timing.rows_per_second <= 4 / 0.002
    assert timing.num_calls >= MIN_CALLS
    assert timing.warmup_ms > 0


def test_a_slow_call_still_gets_its_least_number_of_calls():
    timing = timed(sleeper(3), seconds=0.03)
    assert timing.num_calls == MIN_CALLS


def test_a_fast_call_is_repeated_for_the_time_asked_for():
    start = time.perf_counter()
    timing = timed(lambda: None, seconds=0.05)
    assert timing.num_calls > 1000
    assert time.perf_counter() - start < 10


def test_a_slow_start_is_not_in_the_figures():
    calls = itertools.count()

    def call():
        time.sleep(0.05 if next(calls) < 3 else 0.001)

    timing = timed(call, seconds=0.05)
    assert timing.p50_ms < 40
    assert timing.warmup_ms > 100


def test_the_collector_rests_inside_the_timed_region_and_works_after_it():
    seen = set()
    timed(lambda: seen.add(gc.isenabled()), seconds=0.01)
    assert False in seen
    assert gc.isenabled()


def test_the_collector_is_back_after_a_failure():
    calls = itertools.count()

    def call():
        if next(calls) > 5000:
            raise ValueError("late")

    with pytest.raises(ValueError, match="late"):
        timed(call, seconds=0.5)
    assert gc.isenabled()


def test_the_clock_tells_its_resolution_and_its_price():
    clock = check_clock()
    assert 1 <= clock.resolution_ns <= 1_000_000
    assert 0 < clock.reading_ns < 100_000


def test_calls_too_short_for_the_clock_are_timed_in_groups():
    clock = Clock(resolution_ns=1, reading_ns=50)
    assert clock.calls_per_sample(10_000) == 1
    assert clock.calls_per_sample(100) == 10
    assert Clock(resolution_ns=1_000_000, reading_ns=50).calls_per_sample(2_000_000) == 10


def test_a_sample_of_a_group_is_the_time_of_one_call(monkeypatch):
    """On a clock that moves a microsecond a call, and by steps of 100 µs."""
    now = [0]

    def call():
        now[0] += 1000

    monkeypatch.setattr(
        "serving.measuring.timing.perf_counter_ns", lambda: now[0] // 100_000 * 100_000
    )
    monkeypatch.setattr(
        "serving.measuring.timing.check_clock", lambda: Clock(resolution_ns=100_000, reading_ns=1)
    )
    monkeypatch.setattr("serving.measuring.timing.time_once", lambda _: 1000)
    samples = take_samples(call, 0.1)
    assert samples.num_calls == 2000 * len(samples.call_ns)
    assert np.median(samples.call_ns) == 1000


def test_turns_are_put_together_and_kept_apart():
    first = Samples(call_ns=np.array([1e6, 2e6, 3e6]), num_calls=3, elapsed_ns=6_000_000)
    second = Samples(call_ns=np.array([5e6]), num_calls=1, elapsed_ns=6_000_000)
    timing = timing_of([first, second], batch_size=3, warm=WarmUp(ms=7.0, steady=True))
    assert timing.turns_ms == (2.0, 5.0)
    assert timing.num_calls == 4
    assert timing.p50_ms == 2.5
    assert timing.max_ms == 5.0
    assert timing.rows_per_second == 1000
    assert (timing.warmup_ms, timing.steady) == (7.0, True)


def test_the_tail_is_the_rare_slow_call():
    times = np.full(10_000, 1e6)
    times[:20] = 50e6
    samples = Samples(call_ns=times, num_calls=10_000, elapsed_ns=11_000_000_000)
    timing = timing_of([samples], batch_size=1, warm=WarmUp(ms=1.0, steady=True))
    assert timing.p99_ms == 1.0
    assert timing.p999_ms == 50.0
