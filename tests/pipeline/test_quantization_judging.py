"""What a variant costs, from answers counted by hand, and what is inside a budget."""

from dataclasses import replace

import numpy as np
import pytest
from tries import BUDGET, judged, ratio

from pipeline.quantization.judging import (
    compare_answers,
    lowest_snr_db,
    paired_loss,
    too_inaccurate,
    too_noisy,
    too_slow_or_large,
)


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


def test_the_faintest_output_decides_and_exact_ones_do_not() -> None:
    wanted = {"a": np.ones((4, 2), np.float32), "b": np.ones((4, 2), np.float32)}
    assert lowest_snr_db(wanted, wanted) is None
    noisy = {"a": 1.1 * wanted["a"], "b": 1.01 * wanted["b"]}
    assert lowest_snr_db(wanted, noisy) == pytest.approx(20, abs=0.1)
    assert lowest_snr_db(wanted, {**noisy, "a": wanted["a"]}) == pytest.approx(40, abs=0.1)


# The budgets


@pytest.mark.parametrize(("loss", "inside"), [(-1.0, True), (0.3, True), (0.31, False)])
def test_the_loss_as_measured_counts(loss: float, inside: bool) -> None:
    assert (not list(too_inaccurate(judged(loss), BUDGET))) == inside


def test_a_refusal_names_loss_interval_and_limit() -> None:
    (line,) = too_inaccurate(judged(0.5), BUDGET)
    assert line == "loses 0.50 points of accuracy (0.40 to 0.60), 0.3 allowed"


def test_errors_have_a_budget_of_their_own() -> None:
    error = replace(judged(4.0), measure="mean error", flips=None)
    assert not list(too_inaccurate(error, BUDGET))
    (line,) = too_inaccurate(replace(error, loss=6.0), BUDGET)
    assert line.startswith("loses 6.00 % of mean error")


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
    ("snr_db", "limit", "refused"),
    [(18.0, 25.0, True), (25.5, 25.0, True), (26.5, 25.0, False), (None, 25.0, False)],
)
def test_what_parity_would_refuse_is_not_kept(
    snr_db: float | None, limit: float, refused: bool
) -> None:
    assert bool(list(too_noisy(snr_db, limit))) == refused
    assert list(too_noisy(snr_db, None)) == []


def test_the_noise_and_what_is_asked_are_told() -> None:
    assert list(too_noisy(18.2, 25.0)) == ["18 dB of signal over the noise, parity asks 25 dB"]
