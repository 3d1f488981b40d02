"""The population stability index against its definition, and its noise against chance."""

import math

import numpy as np
import pytest

from serving.drift.bins import chi_square_quantile, population_stability, psi_of_chance

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


def test_it_does_not_matter_which_is_which() -> None:
    first, second = np.array([5, 50, 500]), np.array([100, 10, 1])
    assert population_stability(first, second) == population_stability(second, first)


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


@pytest.mark.parametrize("found", [20, 100, 1000, 20_000])
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


def test_the_mean_is_what_the_formula_says() -> None:
    rng = np.random.default_rng(6)
    shares = np.full(10, 0.1)
    draws = [
        population_stability(rng.multinomial(5000, shares), rng.multinomial(500, shares))[0]
        for _ in range(2000)
    ]
    assert np.mean(draws) == pytest.approx(9 * (1 / 5000 + 1 / 500), rel=0.05)


def test_without_rows_or_bins_there_is_no_noise() -> None:
    assert psi_of_chance(1, 10, 10, 0.01) == 0
    assert psi_of_chance(10, 10, 0, 0.01) == 0
