"""Ratios of turns, their intervals and verdicts."""

import itertools
import time

import numpy as np
import pytest

from serving.measuring.pairing import (
    PairedRatio,
    interval_of_median,
    orders,
    paired_ratio,
    ratio_of_separate_turns,
    ratio_of_turns,
    verdict,
)
from serving.measuring.timing import MIN_CALLS


def sleeper(milliseconds):
    return lambda: time.sleep(milliseconds / 1000)


def test_a_ratio_is_that_of_first_to_second():
    ratio = paired_ratio(sleeper(4), sleeper(2), seconds=0.2, seed=1)
    assert 1.3 < ratio.median < 2.6
    assert ratio.low <= ratio.median <= ratio.high
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


def test_turns_are_compared_pair_by_pair():
    """Both slow down together: the ratio does not see it, the medians alone would."""
    weather = np.array([1, 1, 3, 3, 1, 2, 5, 1])
    ratio = ratio_of_turns(2.0 * weather, 1.0 * weather, seed=1)
    assert ratio == PairedRatio(median=2.0, low=2.0, high=2.0, num_pairs=8)


def test_turns_that_were_not_together_see_the_noise_of_both():
    rng = np.random.default_rng(3)
    now, before = rng.normal(11, 1, 12), rng.normal(10, 1, 12)
    ratio = ratio_of_separate_turns(now, before, seed=1)
    assert ratio.median == pytest.approx(np.median(now) / np.median(before), rel=1e-4)
    assert ratio.low < ratio.median < ratio.high
    assert ratio.high - ratio.low > 0.02
    calm = ratio_of_separate_turns([1.1] * 5, [1.0] * 7, seed=1)
    assert (calm.low, calm.high, calm.num_pairs) == (1.1, 1.1, 5)


def test_the_same_seed_gives_the_same_interval():
    first, second = np.linspace(1, 2, 11), np.linspace(2, 1, 11)
    assert ratio_of_turns(first, second, seed=4) == ratio_of_turns(first, second, seed=4)


def test_the_interval_covers_the_true_median_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        low, high = interval_of_median(rng.normal(1.0, 0.1, 30), rng)
        covered += low <= 1.0 <= high
    assert covered >= 180


@pytest.mark.parametrize(
    ("low", "high", "found"),
    [
        (0.99, 1.01, "no difference"),
        (1.005, 1.05, "no difference"),
        (1.03, 1.05, "faster"),
        (0.90, 0.97, "slower"),
        (0.90, 0.99, "no difference"),
        (1.02, 1.5, "no difference"),
        (0.5, 0.98, "no difference"),
    ],
)
def test_only_an_interval_outside_of_the_margin_is_a_difference(low, high, found):
    ratio = PairedRatio(median=(low + high) / 2, low=low, high=high, num_pairs=9)
    assert verdict(ratio) == found


def test_every_order_is_followed_by_its_reverse():
    found = orders(["a", "b", "c"], 6, np.random.default_rng(1))
    assert len(found) == 6
    for order, back in zip(found[::2], found[1::2], strict=True):
        assert sorted(order) == ["a", "b", "c"]
        assert back == order[::-1]
    for one, other in itertools.permutations("abc", 2):
        before = sum(order.index(one) < order.index(other) for order in found)
        assert before == 3


def test_orders_are_those_of_the_seed_and_not_always_the_same():
    def drawn(seed):
        return orders(list("abcd"), 8, np.random.default_rng(seed))

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)
    assert len({tuple(order) for order in drawn(1)}) > 2
    assert orders(["a", "b"], 3, np.random.default_rng(0))[2]
