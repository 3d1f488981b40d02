"""Bins at deciles, whatever the values are, and counts that lose no row."""

import math

import numpy as np
import pytest

from serving.drift.quantities import (
    BINS,
    MOST_CLASSES,
    ClassBins,
    bin_edges,
    chi_square_quantile,
    count_in_bins,
    population_stability,
    psi_of_chance,
)

RNG = np.random.default_rng(0)


def counts(edges: tuple[float, ...], values: list[float]) -> list[int]:
    return count_in_bins(edges, np.array(values, np.float64)).tolist()


def test_edges_are_the_deciles_so_that_bins_are_of_equal_size() -> None:
    values = RNG.permutation(np.arange(1000.0))
    edges = bin_edges(values)
    assert edges == tuple(float(100 * part - 1) for part in range(1, BINS))
    assert counts(edges, values.tolist()) == [100] * BINS + [0]


def test_a_bin_is_over_one_edge_and_up_to_the_next() -> None:
    assert counts((1.0, 2.0), [0.5, 1.0, 1.5, 2.0, 2.5]) == [2, 2, 1, 0]


def test_a_constant_is_told_from_what_is_less_and_what_is_more() -> None:
    edges = bin_edges(np.full(50, 3.0))
    assert len(edges) == 2
    assert counts(edges, [3.0, 3.0, 2.999, 3.001, -1e300, np.inf]) == [2, 2, 2, 0]


def test_a_frequent_value_has_a_bin_of_its_own() -> None:
    values = np.concatenate([np.zeros(400), RNG.uniform(1, 2, 600)])
    edges = bin_edges(values)
    found = counts(edges, [*values.tolist(), -1.0, 0.5])
    assert sorted(edges) == list(edges)
    assert len(set(edges)) == len(edges)
    assert found[:2] == [1, 400]
    assert sum(found) == 1002


def test_what_is_no_number_is_counted_apart_and_gives_no_edge() -> None:
    values = np.array([1.0, np.nan, 2.0, np.inf, -np.inf, np.nan])
    edges = bin_edges(values)
    assert all(map(math.isfinite, edges))
    found = counts(edges, values.tolist())
    assert found[-1] == 2
    assert sum(found) == 6
    assert bin_edges(np.full(4, np.nan)) == ()
    assert counts((), [np.nan, 1.0]) == [1, 1]


def test_edges_are_finite_at_the_end_of_the_numbers() -> None:
    least = -np.finfo(np.float64).max
    assert all(map(math.isfinite, bin_edges(np.full(20, least))))


def test_each_class_has_a_bin_the_most_frequent_first() -> None:
    bins = ClassBins([5, 0, 9])
    assert bins.classes == (2, 0, 1)
    assert bins.count(np.array([0, 0, 1, 2])).tolist() == [1, 2, 1, 0]
    assert bins.expected.tolist() == [9, 5, 0, 0]


def test_rare_ones_of_many_classes_share_a_bin_with_those_never_counted() -> None:
    frequent = [1000 - one for one in range(MOST_CLASSES)]
    bins = ClassBins([*frequent, 3, 2])
    assert bins.expected.tolist() == [*frequent, 5]
    rare = np.array([MOST_CLASSES, MOST_CLASSES + 1, MOST_CLASSES + 2, 10_000])
    assert bins.count(rare)[-1] == 4


# Of tables: degrees of freedom, probability, quantile.
QUANTILES = [
    (1, 0.95, 3.841),
    (1, 0.999, 10.828),
    (4, 0.99, 13.277),
    (9, 0.5, 8.343),
    (9, 0.999, 27.877),
    (31, 0.999, 61.098),
]


def test_the_index_is_the_sum_over_the_bins() -> None:
    expected, found = np.array([10_000, 30_000, 60_000]), np.array([20_000, 30_000, 50_000])
    psi, bins = population_stability(expected, found)
    wanted = 0.1 * math.log(2) + 0 + -0.1 * math.log(5 / 6)
    assert psi == pytest.approx(wanted, rel=1e-3)
    assert bins == 3


def test_half_a_row_is_added_to_each_bin() -> None:
    psi, bins = population_stability(np.array([9, 0]), np.array([0, 9]))
    assert bins == 2
    assert psi == pytest.approx(2 * 0.9 * math.log(9.5 / 0.5))


def test_bins_that_are_empty_in_both_are_none() -> None:
    with_empty = population_stability(np.array([7, 0, 3, 0]), np.array([4, 0, 60, 0]))
    assert with_empty == population_stability(np.array([7, 3]), np.array([4, 60]))
    assert population_stability(np.array([0, 7]), np.array([0, 3])) == (0.0, 1)


@pytest.mark.parametrize(("degrees", "probability", "quantile"), QUANTILES)
def test_quantiles_are_those_of_tables(degrees: int, probability: float, quantile: float) -> None:
    assert chi_square_quantile(degrees, probability) == pytest.approx(quantile, rel=0.035)


def test_far_out_they_are_a_little_too_large() -> None:
    """For one degree it is the square of a normal quantile: 4.8916 at 1e-6 on both sides."""
    assert 4.8916**2 < chi_square_quantile(1, 1 - 1e-6) < 1.15 * 4.8916**2


@pytest.mark.parametrize("found", [20, 1000])
@pytest.mark.parametrize("expected", [180, 5000])
@pytest.mark.parametrize("shape", ["deciles", "skewed"])
def test_chance_stays_below_its_limit(shape: str, expected: int, found: int) -> None:
    rng = np.random.default_rng(4)
    weights = np.ones(10) if shape == "deciles" else 0.5 ** np.arange(10)
    shares = weights / weights.sum()
    over = 0
    draws = 2000
    for _ in range(draws):
        reference, rows = rng.multinomial(expected, shares), rng.multinomial(found, shares)
        psi, bins = population_stability(reference, rows)
        over += psi > psi_of_chance(bins, expected, found, 0.01)
    # 20 of 2,000 are wanted; four standard deviations more are not seen by chance.
    assert over <= 20 + 4 * 20**0.5


def test_with_many_rows_the_limit_is_as_tight_as_it_says() -> None:
    rng = np.random.default_rng(5)
    shares = np.full(10, 0.1)
    over = 0
    for _ in range(4000):
        reference, rows = rng.multinomial(5000, shares), rng.multinomial(5000, shares)
        psi, bins = population_stability(reference, rows)
        over += psi > psi_of_chance(bins, 5000, 5000, 0.05)
    assert 140 < over < 260


def test_without_rows_or_bins_there_is_no_noise() -> None:
    assert psi_of_chance(1, 10, 10, 0.01) == 0
    assert psi_of_chance(10, 10, 0, 0.01) == 0
