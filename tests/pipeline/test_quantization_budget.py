"""What is inside a budget, what is best, and how the refusal reads."""

from dataclasses import replace

import pytest
from tries import BUDGET, attempt, judged, ratio

from pipeline.quantization.quality import (
    best_of,
    describe,
    reason_of,
    too_inaccurate,
    too_noisy,
    too_slow_or_large,
)


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


def test_the_fastest_or_the_smallest_is_best() -> None:
    quick, small = attempt("static-u8s8", 2.0, 0.4), attempt("weights-int4", 1.2, 0.2)
    outside = attempt("static-s8s8", 9.0, 0.1, loss=5.0)
    assert best_of([quick, small, outside], "speed") == quick
    assert best_of([quick, small, outside], "size") == small
    assert best_of([outside], "speed") is None


def test_of_nearly_equal_ones_the_first_is_best() -> None:
    first, second = attempt("static-u8s8", 1.50, 0.300), attempt("static-s8s8", 1.52, 0.298)
    assert best_of([first, second], "speed") == first
    assert best_of([second, first], "speed") == second
    assert best_of([first, second], "size") == first


def test_the_reason_gives_the_figures() -> None:
    kept, other = attempt("static-u8s8", 2.0, 0.3), attempt("static-s8s8", 1.1, 0.3)
    reason = reason_of(kept, [kept, other], "speed")
    assert reason.startswith("static-u8s8 is the fastest of 2 recipes inside both budgets, of 2")
    assert "2.00 times as fast at batch 1" in reason
    slow = attempt("static-u8s8", 0.7, 0.3)
    wrong = attempt("dynamic", 0.5, 0.3, loss=2.0)
    reason = reason_of(None, [wrong, slow], "speed")
    assert "none of 2 recipes is inside both budgets, so fp32 ships" in reason
    assert "nearest is static-u8s8: 0.70 times as fast" in reason
    assert reason_of(None, [], "speed") == "no recipe fits the model, so fp32 ships"


def test_figures_that_are_unknown_are_not_told() -> None:
    failed = replace(
        attempt("dynamic", 1.0, 0.3),
        quality=None,
        size_ratio=None,
        speedup={},
        verdict="cannot be applied: no kernel",
    )
    assert describe(failed) == "cannot be applied: no kernel"


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
