"""Bins at deciles, whatever the values are, and counts that lose no row."""

import math

import numpy as np
import pytest

from serving.drift.bins import BINS, MOST_CLASSES, ClassBins, Counter, bin_edges

RNG = np.random.default_rng(0)


def counts(edges: tuple[float, ...], values: list[float]) -> list[int]:
    (found,) = Counter([edges]).count([np.array(values, np.float64)])
    return found.tolist()


def test_edges_are_the_deciles_so_that_bins_are_of_equal_size() -> None:
    values = RNG.permutation(np.arange(1000.0))
    edges = bin_edges(values)
    assert edges == tuple(float(100 * part - 1) for part in range(1, BINS))
    (found,) = Counter([edges]).count([values])
    assert found.tolist() == [100] * BINS + [0]


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


@pytest.mark.parametrize("kind", ["two values", "integers", "three rows", "one row"])
def test_every_row_is_in_one_bin(kind: str) -> None:
    values = {
        "two values": RNG.integers(0, 2, 100).astype(np.float64),
        "integers": RNG.poisson(2, 100).astype(np.float64),
        "three rows": np.array([1.0, 2.0, 3.0]),
        "one row": np.array([7.0]),
    }[kind]
    edges = bin_edges(values)
    found = counts(edges, values.tolist())
    assert sum(found) == len(values)
    assert found[-1] == 0


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


def test_quantities_with_other_numbers_of_bins_are_counted_side_by_side() -> None:
    edges = [(0.0,), (), (1.0, 2.0, 3.0)]
    values = [np.array([-1.0, 1.0]), np.array([5.0, np.nan]), np.array([2.5, np.nan])]
    found = [one.tolist() for one in Counter(edges).count(values)]
    assert found == [[1, 1, 0], [1, 1], [0, 0, 1, 0, 1]]


def test_batches_add_up_to_the_whole() -> None:
    values = [RNG.normal(size=1000), RNG.integers(0, 4, 1000).astype(np.float64)]
    counter = Counter([bin_edges(one) for one in values])
    whole = counter.count(values)
    for index in range(2):
        parts = [counter.count([one[at : at + 7] for one in values]) for at in range(0, 1000, 7)]
        assert sum(part[index] for part in parts).tolist() == whole[index].tolist()


def test_no_quantities_at_all() -> None:
    assert Counter([]).count([]) == []


def test_each_class_has_a_bin_the_most_frequent_first() -> None:
    bins = ClassBins([5, 0, 9])
    assert bins.classes == (2, 0, 1)
    assert bins.count(np.array([0, 0, 1, 2])).tolist() == [1, 2, 1, 0]
    assert bins.group([5, 0, 9]).tolist() == [9, 5, 0, 0]


def test_rare_ones_of_many_classes_share_a_bin_with_those_never_counted() -> None:
    frequent = [1000 - one for one in range(MOST_CLASSES)]
    bins = ClassBins([*frequent, 3, 2])
    assert bins.group([*frequent, 3, 2]).tolist() == [*frequent, 5]
    rare = np.array([MOST_CLASSES, MOST_CLASSES + 1, MOST_CLASSES + 2, 10_000])
    assert bins.count(rare)[-1] == 4
