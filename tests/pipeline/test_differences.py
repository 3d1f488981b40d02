"""Differences: the streamed figures against numpy over everything at once."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.proof.differences import Differences, ulp_bins, units_in_the_last_place
from pipeline.records.parity import OutputDifference

FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)


def report(wanted: np.ndarray, found: np.ndarray, step: int = 17) -> OutputDifference:
    """Added in pieces, as a stream brings them."""
    differences = Differences("logits")
    numbers = np.arange(len(wanted))
    for start in range(0, len(wanted), step):
        piece = slice(start, start + step)
        differences.add(wanted[piece], found[piece], numbers[piece])
    return differences.report()


@pytest.fixture
def pair() -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(7)
    wanted = (10 * generator.standard_normal((1000, 5))).astype(np.float32)
    noise = generator.standard_normal((1000, 5)) * 10 ** generator.uniform(-7, -3, (1000, 5))
    return wanted, (wanted + noise).astype(np.float32)


def test_the_figures_are_those_of_numpy(pair: tuple[np.ndarray, np.ndarray]) -> None:
    wanted, found = pair
    message = report(wanted, found)
    left, right = wanted.astype(np.float64), found.astype(np.float64)
    errors = np.abs(left - right)
    assert message.values == 5000
    assert message.max_abs_diff == errors.max()
    assert message.max_abs_at == np.unravel_index(errors.argmax(), errors.shape)
    assert message.mean_abs_diff == pytest.approx(errors.mean(), rel=1e-12)
    assert message.snr_db == pytest.approx(10 * np.log10((left**2).sum() / (errors**2).sum()))
    cosine = (left * right).sum() / np.linalg.norm(left) / np.linalg.norm(right)
    assert message.cosine == pytest.approx(cosine, abs=1e-14)
    assert sum(message.ulps) == 5000


def test_the_quantiles_are_at_most_one_percent_too_large(
    pair: tuple[np.ndarray, np.ndarray],
) -> None:
    wanted, found = pair
    errors = np.sort(np.abs(wanted.astype(np.float64) - found.astype(np.float64)).ravel())
    for quantile in report(wanted, found).quantiles:
        exact = errors[math.ceil(quantile.part * errors.size) - 1]
        assert exact <= quantile.diff <= exact * 1.01


def test_the_order_and_the_pieces_do_not_matter(pair: tuple[np.ndarray, np.ndarray]) -> None:
    wanted, found = pair
    whole, pieces = report(wanted, found, 1000), report(wanted, found, 3)
    assert whole.max_abs_at == pieces.max_abs_at
    assert whole.quantiles == pieces.quantiles
    assert whole.ulps == pieces.ulps
    assert whole.snr_db == pytest.approx(pieces.snr_db)


def test_relative_differences_do_not_divide_by_next_to_nothing() -> None:
    wanted = np.array([[100.0, 0.0, 10.0], [1.0, 1.0, 1e-9]], np.float32)
    found = np.array([[100.0, 0.5, 10.0], [1.0, 1.1, 2e-9]], np.float32)
    message = report(wanted, found)
    # 0.5 beside 100 is divided by 1, a hundredth of it; 0.1 by its own 1.
    assert message.max_rel_diff == pytest.approx(0.5)
    assert message.max_rel_at == (0, 1)


def test_a_row_of_zeros_still_gives_a_number() -> None:
    message = report(np.zeros((2, 3), np.float32), np.full((2, 3), 0.25, np.float32))
    assert math.isfinite(message.max_rel_diff)
    assert message.snr_db is not None
    assert message.snr_db < -1000
    assert message.cosine is None


def test_what_does_not_differ_has_no_noise() -> None:
    same = np.ones((4, 2), np.float32)
    message = report(same, same)
    assert message.snr_db is None
    assert message.max_abs_at == ()
    assert message.ulps == (8,)
    assert {one.diff for one in message.quantiles} == {0.0}


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", ["wanted", "found", "both"])
def test_what_is_no_number_is_the_worst(bad: float, where: str) -> None:
    wanted, found = np.ones((40, 3), np.float32), np.full((40, 3), 1.5, np.float32)
    if where != "found":
        wanted[21, 2] = bad
    if where != "wanted":
        found[21, 2] = bad
    message = report(wanted, found)
    assert message.nonfinite == 1
    assert message.max_abs_at == (21, 2)
    assert message.max_abs_diff == 0.5
    assert message.mean_abs_diff == pytest.approx(0.5)
    assert sum(message.ulps) == 119


def test_rows_keep_their_own_numbers() -> None:
    differences = Differences("logits")
    wanted = np.zeros((3, 2), np.float32)
    found = wanted.copy()
    found[1, 1] = 1
    differences.add(wanted, found, np.array([5, 90, 700]))
    assert differences.report().max_abs_at == (90, 1)


def test_images_are_told_by_row_and_place() -> None:
    wanted = np.zeros((3, 4, 5, 1), np.float32)
    found = wanted.copy()
    found[2, 3, 1, 0] = 2
    assert report(wanted, found).max_abs_at == (2, 3, 1, 0)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_one_unit_is_the_next_float(dtype: type) -> None:
    values = np.array([1.0, -3.5, 0.0, 1000.0, 6e-8], dtype)
    up = np.nextafter(values, dtype(np.inf))
    assert units_in_the_last_place(values, up).tolist() == [1] * 5
    assert units_in_the_last_place(up, values).tolist() == [1] * 5
    further = np.nextafter(np.nextafter(up, dtype(np.inf)), dtype(np.inf))
    assert units_in_the_last_place(values, further).tolist() == [3] * 5


def test_units_are_counted_across_zero() -> None:
    tiny = np.float32(1e-45)  # the smallest there is
    left, right = np.array([-tiny, -0.0], np.float32), np.array([tiny, 0.0], np.float32)
    assert units_in_the_last_place(left, right).tolist() == [2, 0]


def test_the_ends_of_float64_are_further_apart_than_int64_holds() -> None:
    largest = np.finfo(np.float64).max
    found = units_in_the_last_place(np.array([-largest]), np.array([largest]))
    assert int(found[0]) == 2 * 0x7FEFFFFFFFFFFFFF


def test_the_units_are_those_of_the_wanted_precision() -> None:
    wanted = np.array([1.0], np.float16)
    assert units_in_the_last_place(wanted, np.array([1.0001], np.float32)).tolist() == [0]
    assert units_in_the_last_place(wanted, np.array([1.001], np.float32)).tolist() == [1]


@given(left=FLOATS, right=FLOATS)
def test_units_are_the_same_both_ways_and_zero_for_equals(left: float, right: float) -> None:
    one, two = np.array([left], np.float32), np.array([right], np.float32)
    there, back = units_in_the_last_place(one, two), units_in_the_last_place(two, one)
    assert there.tolist() == back.tolist()
    assert (there[0] == 0) == (left == right)


def test_bins_double() -> None:
    units = np.array([0, 1, 2, 3, 4, 5, 8, 9, 16, 17, 2**20, 2**20 + 1], np.uint64)
    assert ulp_bins(units).tolist() == [0, 1, 2, 3, 3, 4, 4, 5, 5, 6, 21, 22]


def test_whole_numbers_and_texts_are_compared_too() -> None:
    message = report(np.array([3, 200], np.uint8), np.array([5, 199], np.uint8))
    assert message.max_abs_diff == 2
    assert message.ulps == (0, 1, 1)
    message = report(np.array(["a", "b"], object), np.array(["a", "c"], object))
    assert message.max_abs_diff == 1
    assert message.max_abs_at == (1,)
    message = report(np.array([True, False]), np.array([True, True]))
    assert message.max_abs_diff == 1


def test_the_memory_does_not_grow_with_the_rows() -> None:
    import tracemalloc

    differences = Differences("pixels")
    wanted = np.random.default_rng(0).random((2000, 1000), dtype=np.float32)
    found = wanted + np.float32(1e-3)
    tracemalloc.start()
    for start in range(0, 20_000, 2000):
        differences.add(wanted, found, np.arange(start, start + 2000))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert differences.report().values == 20_000_000
    # Twenty million values of each side are 160 MB; about a million are looked at at a time.
    assert peak < 160 * 2**20
