import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import multiclass_calibration_error

from pipeline.stages.insight.answers import BINS, calibrate


def two_classes(confident: list[float]) -> np.ndarray:
    """Rows that answer class 0 with these probabilities."""
    first = np.array(confident)
    return np.stack([first, 1 - first], axis=1)


def test_by_hand() -> None:
    # Bin 10, (0.6, 0.667]: two rows, one right. Bin 14, (0.933, 1]: two rows, both right.
    found = calibrate(two_classes([0.62, 0.66, 0.95, 0.99]), np.array([0, 1, 0, 0]))
    assert [one.rows for one in found.bins] == [0] * 9 + [2] + [0] * 4 + [2]
    assert found.bins[9].accuracy == 0.5
    assert found.bins[9].confidence == pytest.approx(0.64)
    assert found.bins[14].accuracy == 1
    assert found.error == pytest.approx((2 * 0.14 + 2 * 0.03) / 4)
    assert found.mean_confidence == pytest.approx(0.805)
    squares = 2 * (0.38**2 + 0.66**2 + 0.05**2 + 0.01**2)
    assert found.brier == pytest.approx(squares / 4)


def test_a_perfect_classifier_has_no_error() -> None:
    labels = np.arange(30) % 3
    found = calibrate(np.eye(3)[labels], labels)
    assert (found.error, found.brier, found.mean_confidence) == (0, 0, 1)
    assert found.bins[-1].rows == 30


def test_one_that_is_sure_and_always_wrong_has_the_largest() -> None:
    labels = np.zeros(10, dtype=np.int64)
    found = calibrate(np.eye(2)[labels + 1], labels)
    assert (found.error, found.brier) == (1, 2)


def test_a_constant_guess_that_is_right_as_often_as_it_says_is_calibrated() -> None:
    found = calibrate(two_classes([0.75] * 8), np.array([0, 0, 0, 1] * 2))
    assert found.error == 0
    assert found.brier == pytest.approx((6 * 2 * 0.25**2 + 2 * 2 * 0.75**2) / 8)


def test_a_bin_without_rows_has_neither_confidence_nor_accuracy() -> None:
    first = calibrate(two_classes([0.9]), np.array([0])).bins[0]
    assert (first.rows, first.confidence, first.accuracy) == (0, None, None)


def test_every_row_is_in_one_bin_even_at_the_ends() -> None:
    edges = np.linspace(0.5, 1, 31)
    found = calibrate(two_classes(edges.tolist()), np.zeros(31, dtype=np.int64))
    assert sum(one.rows for one in found.bins) == 31
    assert len(found.bins) == BINS


@pytest.mark.parametrize("classes", [2, 10])
@pytest.mark.parametrize("sureness", [0.3, 2.0, 8.0])
def test_torchmetrics_finds_the_same_error(classes: int, sureness: float) -> None:
    generator = np.random.default_rng(classes)
    logits = torch.from_numpy(generator.normal(size=(700, classes)) * sureness)
    labels = generator.integers(0, classes, 700)
    probabilities = logits.softmax(dim=1)
    expected = multiclass_calibration_error(
        probabilities, torch.from_numpy(labels), classes, n_bins=BINS, norm="l1"
    )
    assert calibrate(probabilities.numpy(), labels).error == pytest.approx(
        float(expected), abs=1e-6
    )
