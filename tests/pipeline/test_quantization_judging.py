"""What a variant costs, from answers counted by hand, and what is inside a budget."""

import math
from dataclasses import replace

import numpy as np
import pytest
from tries import BUDGET, judged, ratio

from pipeline.quantization.judging import too_slow_or_large
from pipeline.quantization.quality import (
    compare_answers,
    paired_loss,
    rows_needed,
    too_inaccurate,
    too_noisy,
    unsettled,
)
from pipeline.records.quantize import Quality


def scores(classes: list[int], count: int = 3) -> dict[str, np.ndarray]:
    table = np.zeros((len(classes), count), np.float32)
    table[np.arange(len(classes)), classes] = 1
    return {"logits": table}


def test_accuracy_that_is_lost_and_won() -> None:
    labels = np.array([0, 1, 2, 0, 1, 2, 0, 1, 2, 0])
    before, after = labels.copy(), labels.copy()
    before[0] = 1  # wrong before, right after
    after[1:4] = (labels[1:4] + 1) % 3  # three the other way round
    found = compare_answers(scores(list(before)), scores(list(after)), labels)
    assert found.measure == "accuracy"
    assert (found.reference, found.value) == (0.9, 0.7)
    assert found.loss == pytest.approx(20)
    assert found.flips == 4
    assert found.rows == 10
    assert found.low is not None
    assert found.high is not None
    assert found.low < 20 < found.high


def test_flips_between_wrong_answers_cost_nothing() -> None:
    found = compare_answers(scores([1, 1, 0]), scores([2, 1, 0]), np.array([0, 1, 0]))
    assert (found.loss, found.flips) == (0, 1)


def test_without_classes_agreement_counts() -> None:
    found = compare_answers(scores([0, 1, 2, 0]), scores([0, 1, 2, 1]), None)
    assert found.measure == "agreement"
    assert found.loss == pytest.approx(25)
    assert (found.reference, found.value) == (1, 0.75)


def test_the_one_table_of_an_unknown_model_holds_scores_if_its_rows_have_classes() -> None:
    one, other = scores([0, 1])["logits"], scores([0, 2])["logits"]
    found = compare_answers({"output_7": one}, {"output_7": other}, None)
    assert (found.measure, found.flips) == ("difference", None)
    found = compare_answers({"output_7": one}, {"output_7": other}, np.array([0, 1]))
    assert (found.measure, found.flips) == ("accuracy", 1)


def test_a_mean_error_that_grows() -> None:
    pictures = np.zeros((4, 2, 2, 1), np.float32)
    before = {"reconstruction": pictures, "error": np.array([1.0, 2.0, 3.0, 2.0], np.float32)}
    after = {**before, "error": before["error"] * 1.1}
    found = compare_answers(before, after, np.zeros(4, np.int64))
    assert found.measure == "mean error"
    assert found.loss == pytest.approx(10, rel=1e-5)
    assert found.flips is None
    assert (found.reference, found.value) == (2, pytest.approx(2.2))


def test_values_that_decide_nothing_differ_by_a_part_of_their_size() -> None:
    values = np.ones((5, 3, 3), np.float32)
    found = compare_answers({"map": values}, {"map": values * 0.98}, None)
    assert found.measure == "difference"
    assert found.loss == pytest.approx(2, rel=1e-4)


def test_texts_agree_or_do_not() -> None:
    one = {"label": np.array(["a", "b", "c", "d"], object)}
    other = {"label": np.array(["a", "b", "x", "d"], object)}
    found = compare_answers(one, other, None)
    assert (found.measure, found.loss) == ("agreement", 25)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_has_no_quality(value: float) -> None:
    broken = scores([0, 1, 2])
    broken["logits"][1, 1] = value
    found = compare_answers(scores([0, 1, 2]), broken, np.array([0, 1, 2]))
    assert (found.measure, found.loss, found.flips) == ("not finite", None, None)


def test_the_interval_is_that_of_bonett_and_price() -> None:
    # By hand: (59 + 1 - 32 - 1) / 1602 and its deviation.
    low, high = paired_loss(59, 32, 1600)
    middle = (60 - 33) / 1602
    width = 1.959964 * np.sqrt((93 / 1602 - middle**2) / 1602)
    assert low == pytest.approx(middle - width)
    assert high == pytest.approx(middle + width)


def test_the_interval_holds_the_true_loss_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    lost, gained, rows, inside = 0.02, 0.01, 1000, 0
    for _ in range(2000):
        counts = rng.multinomial(rows, [lost, gained, 1 - lost - gained])
        low, high = paired_loss(int(counts[0]), int(counts[1]), rows)
        inside += low <= lost - gained <= high
    assert 0.93 < inside / 2000 < 0.975


def test_no_discordant_row_leaves_an_interval_all_the_same() -> None:
    low, high = paired_loss(0, 0, 100)
    assert low == -high
    assert 0.02 < high < 0.05
    assert paired_loss(0, 0, 1) >= (-1, 0)


def test_the_noisiest_output_decides_and_exact_ones_do_not() -> None:
    values = np.random.default_rng(0).standard_normal((400, 2)).astype(np.float32)
    wanted = {"a": values, "b": values}
    assert compare_answers(wanted, wanted, None).snr_db is None
    noisy = {"a": 1.1 * values, "b": 1.01 * values}
    found = compare_answers(wanted, noisy, None)
    assert found.snr_db == pytest.approx(20, abs=0.1)
    assert found.noisiest.startswith("a[:, ")
    found = compare_answers(wanted, {**noisy, "a": values}, None)
    assert found.snr_db == pytest.approx(40, abs=0.1)
    assert found.loss == pytest.approx(1, abs=0.01)


def test_scores_vary_as_one_and_other_tables_column_by_column() -> None:
    """A class that never comes has no variation that its noise could be held against."""
    rng = np.random.default_rng(0)
    values = rng.standard_normal((400, 3)) * [1, 1, 1e-3]
    off = values + 1e-3 * rng.standard_normal((400, 3))
    named, unknown = (
        compare_answers({name: values}, {name: off}, None).snr_db for name in ("logits", "boxes")
    )
    assert named == pytest.approx(58.2, abs=0.5)
    assert unknown == pytest.approx(0, abs=1)


def test_what_is_infinite_in_fp32_too_is_no_fault() -> None:
    masked = scores([0, 1, 2])
    masked["logits"][:, 2] = -np.inf
    assert compare_answers(masked, masked, None).loss == 0
    assert compare_answers(masked, scores([0, 1, 2]), None).loss is None
    assert compare_answers(scores([0, 1, 2]), masked, None).loss is None


# The budgets


@pytest.mark.parametrize(("loss", "inside"), [(-1.0, True), (0.3, True), (0.31, False)])
def test_the_loss_as_measured_counts(loss: float, inside: bool) -> None:
    assert (not list(too_inaccurate(judged(loss), BUDGET))) == inside


def test_a_refusal_names_loss_interval_and_limit() -> None:
    (line,) = too_inaccurate(judged(0.5), BUDGET)
    assert line == "0.50 points of accuracy lost (0.40 to 0.60), 0.3 allowed"


def test_errors_have_a_budget_of_their_own() -> None:
    error = replace(judged(4.0), measure="mean error", flips=None)
    assert not list(too_inaccurate(error, BUDGET))
    (line,) = too_inaccurate(replace(error, loss=6.0), BUDGET)
    assert line.startswith("mean error 6.00 % larger")


def test_no_numbers_are_never_accurate() -> None:
    broken = replace(judged(0.0), measure="not finite", loss=None)
    assert list(too_inaccurate(broken, BUDGET)) == ["answers what is no number"]


def test_the_lower_end_of_the_speedup_counts_at_every_batch_size() -> None:
    fast, unsure, slow = ratio(1.2), ratio(1.01, 0.95), ratio(0.7)
    assert not list(too_slow_or_large({"1": fast, "32": fast}, 0.3, BUDGET))
    (line,) = too_slow_or_large({"1": fast, "32": unsure}, 0.3, BUDGET)
    assert line == "1.01 times as fast as fp32 at batch 32 (0.95 to 1.07), 1 asked"
    assert len(list(too_slow_or_large({"1": slow, "32": slow}, 0.3, BUDGET))) == 2


def test_a_file_that_is_no_smaller_is_refused() -> None:
    assert list(too_slow_or_large({"1": ratio(2.0)}, 1.0, BUDGET)) == [
        "1.00 times the size of fp32"
    ]


@pytest.mark.parametrize(
    ("snr_db", "least", "refused"),
    [(18.0, 25.0, True), (25.0, 25.0, False), (None, 25.0, False), (18.0, None, False)],
)
def test_noise_is_held_to_what_is_asked(
    snr_db: float | None, least: float | None, refused: bool
) -> None:
    noise = replace(judged(0.0), snr_db=snr_db, noisiest="boxes[:, 2]")
    lines = list(too_noisy(noise, least))
    told = "18 dB of signal over the noise at boxes[:, 2], 25 dB asked"
    assert lines == ([told] if refused else [])


# What so few rows can tell


def decided(lost: int, gained: int, rows: int) -> Quality:
    labels = np.zeros(rows, np.int64)
    before, after = labels.copy(), labels.copy()
    after[:lost] = 1
    before[lost : lost + gained] = 1
    return compare_answers(scores(list(before)), scores(list(after)), labels)


def test_few_rows_settle_nothing_and_the_message_says_how_many_would() -> None:
    told = unsettled(decided(0, 0, 180), BUDGET)
    assert told == "not settled on 180 rows, -1.52 to 1.52: about 940 rows would settle it"
    assert unsettled(decided(0, 0, 940), BUDGET) == ""
    assert unsettled(decided(9, 0, 180), BUDGET) == "", "a loss beyond the budget is refused"


@pytest.mark.parametrize(("lost", "gained", "rows"), [(0, 0, 24), (1, 1, 700), (5, 3, 2000)])
def test_as_many_rows_like_these_do_settle_it(lost: int, gained: int, rows: int) -> None:
    needed = rows_needed(decided(lost, gained, rows), 0.3)
    assert needed is not None
    assert needed > rows
    assert unsettled(decided(lost, gained, rows), BUDGET) != ""
    times = math.ceil(needed / rows)
    assert unsettled(decided(times * lost, times * gained, times * rows), BUDGET) == ""


def test_no_number_of_rows_settles_a_loss_at_its_limit() -> None:
    at_limit = decided(3, 0, 1000)
    assert at_limit.loss == pytest.approx(0.3)
    exact = replace(BUDGET, accuracy_loss=0.3000001)
    assert unsettled(at_limit, exact).endswith("no number of rows settles it")


def test_agreement_and_differences_have_numbers_of_rows_too() -> None:
    rng = np.random.default_rng(0)
    values = rng.standard_normal((50, 1))
    noise = rng.standard_normal((50, 1)) * rng.exponential(0.03, (50, 1))
    off = compare_answers({"y": values}, {"y": values + noise}, None)
    assert off.measure == "difference"
    assert off.loss is not None
    assert off.loss < 5 < (off.high or 0)
    assert "rows would settle it" in unsettled(off, BUDGET)
    one = compare_answers({"y": np.full((1, 1), 300.0)}, {"y": np.full((1, 1), 300.3)}, None)
    assert unsettled(one, BUDGET).startswith("not settled on 1 row: ")
    same = compare_answers(scores([0, 1] * 12), scores([0, 1] * 12), None)
    assert unsettled(same, BUDGET) == (
        "not settled on 24 rows, 0.00 to 13.80: about 1,300 rows would settle it"
    )
