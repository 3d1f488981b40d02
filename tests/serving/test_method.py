"""The method of the benchmark held against systems whose answer is known.

Each test plants something that a careless benchmark gets wrong, and looks whether this one sees it.
"""

from collections.abc import Callable

import numpy as np
import pytest

from serving.measuring.pairing import orders, paired_ratio, ratio_of_turns, verdict
from serving.measuring.timing import Clock, take_samples, timing_of, warm_up


class Machine:
    """A clock of our own, and calls that move it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0
        for module in ("timing", "pairing"):
            monkeypatch.setattr(f"serving.measuring.{module}.perf_counter_ns", lambda: self.now)
        clock = Clock(resolution_ns=1, reading_ns=1)
        monkeypatch.setattr("serving.measuring.timing.check_clock", lambda: clock)

    def call(self, duration: Callable[[int], float]) -> Callable[[], None]:
        """A call that takes what `duration` says of the present time, in nanoseconds."""

        def run() -> None:
            self.now += int(duration(self.now))

        return run


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


def slower_every_second(now: int) -> float:
    """A machine that gets slower and slower, by a third in the end."""
    return 1 + 0.33 * min(1.0, now / 1e9)


def test_a_drift_of_the_machine_is_no_difference_between_two_calls(machine: Machine) -> None:
    first = machine.call(lambda now: 1e6 * slower_every_second(now))
    second = machine.call(lambda now: 1e6 * slower_every_second(now))
    ratio = paired_ratio(first, second, seconds=0.5, seed=1)
    assert abs(ratio.median - 1) < 0.002
    assert verdict(ratio) == "no difference"


def test_a_real_difference_is_seen_through_the_same_drift(machine: Machine) -> None:
    first = machine.call(lambda now: 1.1e6 * slower_every_second(now))
    second = machine.call(lambda now: 1.0e6 * slower_every_second(now))
    ratio = paired_ratio(first, second, seconds=0.5, seed=1)
    assert ratio.median == pytest.approx(1.1, rel=0.005)
    assert verdict(ratio) == "faster"


def test_the_order_within_a_pair_cancels_out(machine: Machine) -> None:
    """Whoever goes first finds cold caches and takes a tenth longer."""
    turn = [0]

    def cold_then_warm(_now: int) -> float:
        turn[0] += 1
        return 1.1e6 if turn[0] % 2 else 1.0e6

    call = machine.call(cold_then_warm)
    ratio = paired_ratio(call, call, seconds=0.4, seed=3)
    assert ratio.low <= 1 <= ratio.high


def test_rare_stalls_do_not_move_the_median_and_stand_in_the_tail(machine: Machine) -> None:
    calls = [0]

    def stalling(_now: int) -> float:
        calls[0] += 1
        return 200e6 if calls[0] % 500 == 0 else 1e6

    call = machine.call(stalling)
    warm = warm_up(call, 3)
    timing = timing_of([take_samples(call, 3)], batch_size=1, warm=warm)
    assert timing.p50_ms == pytest.approx(1.0)
    assert timing.p90_ms == pytest.approx(1.0)
    assert timing.p999_ms > 100
    assert timing.max_ms == pytest.approx(200.0)
    assert timing.rows_per_second < 800, "the time of the stalls counts in the rate"


def test_warm_up_goes_on_until_the_rate_is_steady(machine: Machine) -> None:
    """The first 150 calls get quicker one by one; then all take a millisecond."""
    calls = [0]

    def warming(_now: int) -> float:
        calls[0] += 1
        return 1e6 * (1 + max(0, 150 - calls[0]) / 15)

    call = machine.call(warming)
    warm = warm_up(call, 1.0)
    assert warm.steady
    assert warm.ms > 100
    assert take_samples(call, 0.05).call_ns.max() < 1.6e6


def test_a_warm_up_that_never_ends_is_cut_off_and_told(machine: Machine) -> None:
    calls = [0]

    def restless(_now: int) -> float:
        calls[0] += 1
        return 1e6 * 1.01 ** (calls[0] % 1000)

    warm = warm_up(machine.call(restless), 0.05)
    assert not warm.steady


def test_a_slow_call_is_not_measured_for_ever(machine: Machine) -> None:
    samples = take_samples(machine.call(lambda _: 1e9), 0.1)
    assert 1 <= samples.num_calls <= 3


@pytest.mark.parametrize("names", [["a", "b"], ["a", "b", "c"], list("abcdefg")])
@pytest.mark.parametrize("seed", range(5))
def test_no_one_goes_first_more_often_than_another(names: list[str], seed: int) -> None:
    found = orders(names, 10, np.random.default_rng(seed))
    for one in names:
        places = [order.index(one) for order in found]
        assert np.mean(places) == pytest.approx((len(names) - 1) / 2)


@pytest.mark.parametrize("noise", [0.001, 0.01, 0.05])
def test_a_against_a_is_rarely_a_difference(noise: float) -> None:
    """Of 200 comparisons of equals under that noise at most one in twenty may look like one."""
    rng = np.random.default_rng(7)
    wrong = 0
    for seed in range(200):
        weather = 1 + 0.2 * rng.random(10)
        first = weather * (1 + noise * rng.standard_normal(10))
        second = weather * (1 + noise * rng.standard_normal(10))
        wrong += verdict(ratio_of_turns(first, second, seed=seed)) != "no difference"
    assert wrong <= 10


@pytest.mark.parametrize("factor", [0.8, 1.25])
def test_a_real_difference_is_rarely_missed(factor: float) -> None:
    rng = np.random.default_rng(8)
    seen = 0
    for seed in range(100):
        weather = 1 + 0.2 * rng.random(10)
        first = factor * weather * (1 + 0.02 * rng.standard_normal(10))
        second = weather * (1 + 0.02 * rng.standard_normal(10))
        found = verdict(ratio_of_turns(first, second, seed=seed))
        seen += found == ("faster" if factor > 1 else "slower")
    assert seen >= 99
