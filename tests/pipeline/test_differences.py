"""Differences and decisions: the streamed figures are those of numpy and scipy over everything."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from pipeline.proof.differences import (
    Decided,
    DecisionCount,
    DecisionRule,
    Differences,
    decided_by,
    largest_difference,
    mcnemar,
    ulp_bins,
    units_in_the_last_place,
    wilson,
)
from pipeline.proof.variation import variation_of
from pipeline.records.parity import Decisions, OutputDifference

NEAR = 2e-4
FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)


def report(wanted: np.ndarray, found: np.ndarray, step: int = 17) -> OutputDifference:
    """Added in pieces, as a stream brings them."""
    differences = Differences("logits", variation_of([wanted]))
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
    figures = report(wanted, found)
    left, right = wanted.astype(np.float64), found.astype(np.float64)
    errors = np.abs(left - right)
    assert figures.values == 5000
    assert figures.max_abs_diff == errors.max()
    assert figures.max_abs_at == np.unravel_index(errors.argmax(), errors.shape)
    assert figures.mean_abs_diff == pytest.approx(errors.mean(), rel=1e-12)
    ratios = left.var(axis=0) / (errors**2).mean(axis=0)
    assert figures.snr_db == pytest.approx(10 * np.log10(ratios.min()))
    scaled = errors / left.std(axis=0)
    assert figures.max_scaled_diff == pytest.approx(scaled.max())
    assert figures.max_scaled_at == np.unravel_index(scaled.argmax(), scaled.shape)
    cosine = (left * right).sum() / np.linalg.norm(left) / np.linalg.norm(right)
    assert figures.cosine == pytest.approx(cosine, abs=1e-14)
    assert sum(figures.ulps) == 5000


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
    figures = report(wanted, found)
    # 0.5 beside 100 is divided by 1, a hundredth of it; 0.1 by its own 1.
    assert figures.max_rel_diff == pytest.approx(0.5)
    assert figures.max_rel_at == (0, 1)


def test_a_row_of_zeros_still_gives_a_number() -> None:
    figures = report(np.zeros((2, 3), np.float32), np.full((2, 3), 0.25, np.float32))
    assert math.isfinite(figures.max_rel_diff)
    assert figures.snr_db is not None
    assert figures.snr_db < -1000
    assert figures.cosine is None


def test_the_next_float_is_no_noise_of_a_model_that_hardly_varies() -> None:
    wanted = np.float32(0.5) + np.linspace(0, 0.01, 100, dtype=np.float32)[:, None]
    found = np.nextafter(wanted, np.float32(1))
    assert report(wanted, found).snr_db is None
    assert report(wanted, np.nextafter(found, np.float32(1))).snr_db is not None
    faint = np.float32(0.5) + np.linspace(0, 1e-5, 100, dtype=np.float32)[:, None]
    assert report(faint, np.nextafter(faint, np.float32(1))).snr_db is not None


def test_what_does_not_differ_has_no_noise() -> None:
    same = np.ones((4, 2), np.float32)
    figures = report(same, same)
    assert figures.snr_db is None
    assert figures.max_abs_at == ()
    assert figures.ulps == (8,)
    assert {one.diff for one in figures.quantiles} == {0.0}


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", ["wanted", "found", "both"])
def test_what_is_no_number_is_the_worst(bad: float, where: str) -> None:
    wanted, found = np.ones((40, 3), np.float32), np.full((40, 3), 1.5, np.float32)
    if where != "found":
        wanted[21, 2] = bad
    if where != "wanted":
        found[21, 2] = bad
    figures = report(wanted, found)
    assert figures.nonfinite == 1
    assert figures.max_abs_at == (21, 2)
    assert figures.max_abs_diff == 0.5
    assert figures.mean_abs_diff == pytest.approx(0.5)
    assert sum(figures.ulps) == 119


def test_places_are_told_by_the_rows_own_numbers_and_all_other_axes() -> None:
    wanted = np.zeros((3, 4, 5, 1), np.float32)
    differences = Differences("pixels", variation_of([wanted]))
    found = wanted.copy()
    found[1, 3, 1, 0] = 2
    differences.add(wanted, found, np.array([5, 90, 700]))
    assert differences.report().max_abs_at == (90, 3, 1, 0)


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
    figures = report(np.array([3, 200], np.uint8), np.array([5, 199], np.uint8))
    assert figures.max_abs_diff == 2
    assert figures.ulps == (0, 1, 1)
    figures = report(np.array(["a", "b"], object), np.array(["a", "c"], object))
    assert figures.max_abs_diff == 1
    assert figures.max_abs_at == (1,)
    figures = report(np.array([True, False]), np.array([True, True]))
    assert figures.max_abs_diff == 1


def test_single_texts_and_other_shapes_differ_too() -> None:
    """Of two texts without an axis numpy gives a bool of Python's, which has no `any`."""
    one, other = np.array("cat", object), np.array("dog", object)
    assert (largest_difference(one, other), largest_difference(one, one)) == (1, 0)
    assert largest_difference(np.array(["a", "b"], object), np.array(["a"], object)) == math.inf
    assert largest_difference(np.zeros(2), np.zeros((2, 1))) == math.inf


# What two classifiers decide


def softmax(logits: np.ndarray) -> np.ndarray:
    raised = np.exp(logits - logits.max(axis=1, keepdims=True))
    return raised / raised.sum(axis=1, keepdims=True)


def answers(logits: np.ndarray) -> dict[str, np.ndarray]:
    return {"logits": logits, "probabilities": softmax(logits)}


def decided(answered: dict[str, np.ndarray]) -> Decided:
    found = decided_by(answered)
    assert found is not None
    return found


def decide(
    wanted: np.ndarray, found: np.ndarray, labels: np.ndarray | None = None, step: int = 7
) -> Decisions:
    count = DecisionCount("logits", NEAR)
    for start in range(0, len(wanted), step):
        piece = slice(start, start + step)
        known = None if labels is None else labels[piece]
        numbers = np.arange(start, min(start + step, len(wanted)))
        before, after = (decided(answers(one[piece])) for one in (wanted, found))
        count.add(before, after, numbers, known)
    return count.report()


@pytest.fixture
def logits() -> np.ndarray:
    return 3 * np.random.default_rng(3).standard_normal((100, 4))


def test_nothing_flips_where_nothing_differs(logits: np.ndarray) -> None:
    logits[[3, 5]] = [2.0, 2.0 + 1e-5, 0.0, 0.0]
    decisions = decide(logits, logits)
    assert (decisions.rows, decisions.flips, decisions.near_ties) == (100, 0, 0)
    assert decisions.near_tie_rows == 2, "near-ties that hold are counted as well"
    assert decisions.named == ()
    assert decisions.classes == {}
    assert decisions.accuracy is None
    assert decisions.mcnemar is None


def test_a_planted_flip_is_named(logits: np.ndarray) -> None:
    found = logits.copy()
    before = int(logits[41].argmax())
    after = (before + 1) % 4
    found[41, after] = logits[41].max() + 1
    decisions = decide(logits, found, labels=logits.argmax(1))
    assert decisions.flips == 1
    assert decisions.near_ties == 0
    (flip,) = decisions.named
    assert (flip.row, flip.reference, flip.other) == (41, before, after)
    assert flip.label == before
    two = np.sort(logits[41])[-2:]
    assert flip.margin == pytest.approx(two[1] - two[0])
    assert decisions.classes == {str(before): 1}


def test_a_near_tie_that_flips_is_told_and_not_counted(logits: np.ndarray) -> None:
    logits[12] = [1.0, 1.0 + 1.5e-4, 0.0, 0.0]
    found = logits.copy()
    found[12, 0] += 3e-4
    decisions = decide(logits, found)
    assert decisions.flips == 0
    assert decisions.near_ties == 1
    assert decisions.near_tie_rows == 1
    assert decisions.named[0].near_tie
    logits[12, 1] = 1.0 + 2.5e-4  # beyond the margin, the same change is a real flip
    assert decide(logits, found).flips == 1


def test_an_answer_that_is_no_number_is_a_real_flip(logits: np.ndarray) -> None:
    reference = logits.copy()
    reference[8] = [1.0, 5.0, 0.0, 0.0]
    found = reference.copy()
    found[8] = np.nan
    assert decide(reference, found).flips == 1
    # The other way round the margin is no number either, and no excuse.
    decisions = decide(found, reference)
    assert decisions.flips == 1
    assert decisions.named[0].margin is None


def test_all_are_counted_and_some_are_named() -> None:
    logits = np.tile([3.0, 0.0], (500, 1))
    decisions = decide(logits, -logits)
    assert decisions.flips == 500
    assert [flip.row for flip in decisions.named] == list(range(20))
    assert decisions.classes == {"0": 500}


def test_accuracy_and_what_was_lost_and_gained(logits: np.ndarray) -> None:
    labels = logits.argmax(1)
    labels[:10] = (labels[:10] + 1) % 4  # ten that the reference gets wrong
    found = logits.copy()
    for row in (0, 1, 2):  # three of them the other one gets right
        found[row, labels[row]] = 50
    for row in (50, 51, 52, 53, 54):  # and five more wrong
        found[row, (labels[row] + 1) % 4] = 50
    decisions = decide(logits, found, labels)
    assert decisions.reference_accuracy == pytest.approx(0.90)
    assert decisions.accuracy == pytest.approx(0.88)
    assert decisions.mcnemar is not None
    assert (decisions.mcnemar.lost, decisions.mcnemar.gained) == (5, 3)
    assert decisions.mcnemar.p_value == pytest.approx(stats.binomtest(5, 8).pvalue)


def test_one_logit_of_two_classes_has_twice_its_size_as_margin() -> None:
    logits = np.array([[0.4], [-3.0], [1e-4]])
    both = 1 / (1 + np.exp(np.concatenate([logits, -logits], axis=1)))
    found = decided({"logits": logits, "probabilities": both})
    assert found.output == "logits"
    assert found.margins().tolist() == pytest.approx([0.8, 6.0, 2e-4])
    assert found.classes.tolist() == [1, 0, 1]


def test_a_logit_within_the_limit_of_zero_is_a_near_tie() -> None:
    """Two answers within 1e-4 of each other can part only where the logit is below that."""
    count = DecisionCount("logits", NEAR)
    before = np.array([[0.9e-4], [1.1e-4]])
    after = np.array([[-0.1e-4], [-0.1e-4]])

    def binary(logits: np.ndarray) -> dict[str, np.ndarray]:
        classes = np.concatenate([-logits, logits], axis=1)
        return {"logits": logits, "probabilities": 1 / (1 + np.exp(-classes))}

    count.add(decided(binary(before)), decided(binary(after)), np.arange(2), None)
    assert (count.flips, count.near_ties) == (1, 1)


@given(st.integers(0, 300), st.integers(1, 300))
def test_the_interval_is_wilsons(count: int, more: int) -> None:
    total = count + more
    found = wilson(count, total)
    # Wilson (1927), written out.
    z, rate = stats.norm.ppf(0.975), count / total
    middle = (rate + z**2 / (2 * total)) / (1 + z**2 / total)
    half = z / (1 + z**2 / total) * np.sqrt(rate * (1 - rate) / total + (z / (2 * total)) ** 2)
    assert found.low == pytest.approx(max(0.0, middle - half), abs=1e-12)
    assert found.high == pytest.approx(middle + half, abs=1e-12)


def test_without_rows_any_rate_may_be() -> None:
    assert (wilson(0, 0).low, wilson(0, 0).high) == (0, 1)


@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_is_the_exact_binomial_test(lost: int, gained: int) -> None:
    found = mcnemar(lost, gained)
    if lost + gained:
        # Both tails of a fair coin, which are alike.
        tail = stats.binom.cdf(min(lost, gained), lost + gained, 0.5)
        assert found.p_value == pytest.approx(min(1.0, 2 * tail))
    else:
        assert found.p_value == 1
    assert mcnemar(gained, lost).p_value == pytest.approx(found.p_value)


def test_the_label_of_the_model_decides_and_not_its_largest_score() -> None:
    """Of k-means the scores are distances: the largest one is the farthest cluster's."""
    distances = np.array([[0.1, 2.0], [3.0, 0.2]], np.float32)
    found = decided({"label": np.array([[0], [1]]), "scores": distances})
    assert (found.output, found.classes.tolist()) == ("label", [0, 1])
    assert np.isnan(found.margins()).all()


def test_labels_that_are_texts_flip_by_name_and_have_no_accuracy() -> None:
    count = DecisionCount("label", NEAR)
    scores = np.array([[0.9, 0.1], [0.2, 0.8]], np.float32)
    before, after = (
        decided({"label": np.array(names, object), "probabilities": scores})
        for names in (["cat", "dog"], ["cat", "cat"])
    )
    count.add(before, after, np.arange(2), np.array([0, 1]))
    found = count.report()
    assert (found.flips, found.classes, found.accuracy) == (1, {"dog": 1}, None)
    assert (found.named[0].reference, found.named[0].other) == ("dog", "cat")
    assert found.named[0].margin == pytest.approx(0.6)


def test_every_table_of_a_module_decides_with_a_margin_of_its_own() -> None:
    rule = DecisionRule(near=None, every_table=True)
    table, row = np.zeros((2, 3), np.float32), np.zeros(2, np.float32)
    found = rule.decided({"hidden": table, "loss": row, "logits": table})
    assert list(found) == ["hidden", "logits"]
    fifty = variation_of([np.full((2, 3), 50, np.float32)])
    assert rule.margin(fifty) == pytest.approx(10 * 50 * 2**-23)
    assert DecisionRule(near=2e-4).margin(fifty) == 2e-4
