"""How good the answers to the test rows are, against sums by hand and other libraries."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torchmetrics.functional.classification import multiclass_calibration_error
from trained_graphs import drawing_graph, linear_graph, stripes

from pipeline.models.insight.quality import (
    BINS,
    MISTAKES,
    Answers,
    answer,
    auc,
    calibrate,
    class_accuracy,
    fitting,
    mistakes,
    most_confident,
    quantiles,
    redraw,
    worst,
)
from pipeline.records.ready import Split


def answers(probabilities: list[list[float]], labels: list[int]) -> Answers:
    table, actual = np.array(probabilities), np.array(labels)
    losses = -np.log(table[np.arange(len(actual)), actual])
    return Answers(probabilities=table, losses=losses, labels=actual)


THREE = answers(
    [[0.90, 0.08, 0.02], [0.20, 0.70, 0.10], [0.55, 0.44, 0.01], [0.2, 0.2, 0.6]], [1, 1, 2, 2]
)
LABELS = ("cat", "dog", "owl")


@pytest.mark.parametrize("binary", [False, True])
def test_answers_are_those_of_the_graph(binary: bool) -> None:
    graph, split = linear_graph(binary=binary), stripes(450, seed=1)
    found = answer(graph, split)
    with torch.inference_mode():
        expected = graph(graph.tensor(split.inputs))[1].numpy()
    np.testing.assert_allclose(found.probabilities, expected, atol=1e-6)
    picked = found.probabilities[np.arange(450), split.labels]
    np.testing.assert_allclose(found.losses, -np.log(picked))
    assert (found.predicted == split.labels).mean() > 0.9


def test_the_loss_of_an_utterly_wrong_answer_is_finite() -> None:
    graph, split = linear_graph(), stripes(20)
    for weight in graph.network.parameters():
        weight.mul_(1e3)
    found = answer(graph, replace_labels(split, 1 - answer(graph, split).predicted))
    assert np.isfinite(found.losses).all()
    assert found.losses.max() > 200


def replace_labels(split: Split, labels: np.ndarray) -> Split:
    return replace(split, labels=labels)


def test_accuracy_of_each_class() -> None:
    assert class_accuracy(THREE, LABELS) == {"cat": None, "dog": 0.5, "owl": 0.5}


def test_the_most_confident_and_the_worst_mistakes_differ_in_order() -> None:
    assert most_confident(THREE).tolist() == [0, 2]
    assert worst(THREE).tolist() == [2, 0]


def test_only_some_are_told() -> None:
    many = answers([[0.9, 0.1]] * 30, [1] * 30)
    assert most_confident(many).tolist() == list(range(MISTAKES))


def test_a_mistake_is_told_in_words() -> None:
    images = Split(np.zeros((4, 2, 2, 1), np.uint8), THREE.labels)
    first, second = mistakes(THREE, most_confident(THREE), images, LABELS)
    assert (first.row, first.actual, first.answered) == (0, "dog", "cat")
    assert first.probability == 0.9
    assert first.loss == pytest.approx(-np.log(0.08))
    assert first.text is None
    assert (second.actual, second.answered) == ("owl", "cat")


def test_of_a_sentence_the_beginning_is_quoted() -> None:
    sentences = Split(np.array(["a " * 80, "b", "short one", "d"]), THREE.labels)
    first, second = mistakes(THREE, most_confident(THREE), sentences, LABELS)
    assert first.text == "a " * 50
    assert second.text == "short one"


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


def test_a_bin_without_rows_has_neither_confidence_nor_accuracy() -> None:
    first = calibrate(two_classes([0.9]), np.array([0])).bins[0]
    assert (first.rows, first.confidence, first.accuracy) == (0, None, None)


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


def test_the_area_by_hand() -> None:
    own = np.array([0.1, 0.2, 0.3, 0.4])
    assert auc(own, np.array([0.5, 0.9])) == 1
    assert auc(own, np.array([0.0])) == 0
    assert auc(own, np.array([0.25, 0.35])) == (2 + 3) / 8
    assert auc(own, np.array([0.2])) == 1.5 / 4
    assert auc(own, own) == 0.5


def test_scikit_learn_finds_the_same_area() -> None:
    generator = np.random.default_rng(0)
    own, other = generator.integers(0, 40, 300) / 40, generator.integers(10, 60, 200) / 40
    truth = np.repeat([0, 1], [300, 200])
    expected = roc_auc_score(truth, np.concatenate([own, other]))
    assert auc(own, other) == pytest.approx(expected)


def test_drawn_images_come_with_their_errors() -> None:
    graph, images = drawing_graph(), stripes(230).inputs
    found = redraw(graph, images)
    assert found.reconstructions.shape == (230, 6, 6, 1)
    expected = np.square(found.reconstructions - images / 255).mean(axis=(1, 2, 3))
    np.testing.assert_allclose(found.errors, expected, rtol=1e-5)


def test_what_was_not_learnt_has_a_larger_error() -> None:
    graph = drawing_graph()
    own = redraw(graph, stripes(50).inputs).errors
    strange = np.random.default_rng(0).integers(0, 2, (50, 6, 6, 1), dtype=np.uint8) * 255
    assert auc(own, redraw(graph, strange).errors) > 0.95


def test_colours_become_grey_by_luma() -> None:
    pure = np.zeros((4, 2, 2, 3), np.uint8)
    for channel in range(3):
        pure[channel, ..., channel] = 255
    pure[3] = 200
    grey = fitting(pure, (2, 2, 1))
    assert grey.shape == (4, 2, 2, 1)
    assert grey[:, 0, 0, 0].tolist() == [76, 150, 29, 200]


def test_grey_becomes_colour_without_any() -> None:
    images = stripes(3).inputs
    assert np.array_equal(fitting(images, (6, 6, 3)), np.repeat(images, 3, axis=3))


def test_images_that_fit_stay_as_they_are() -> None:
    images = stripes(3).inputs
    assert np.array_equal(fitting(images, (6, 6, 1)), images)


@pytest.mark.parametrize("side", [3, 5, 12])
def test_a_resized_even_image_is_even(side: int) -> None:
    even = np.full((2, 8, 8, 1), 93, np.uint8)
    found = fitting(even, (side, side, 1))
    assert found.shape == (2, side, side, 1)
    assert found.dtype == np.uint8
    assert (found == 93).all()


def test_resizing_is_that_of_pillow() -> None:
    from PIL import Image

    image = np.random.default_rng(1).integers(0, 256, (1, 32, 32, 1), dtype=np.uint8)
    small = Image.fromarray(image[0, ..., 0]).resize((28, 28), Image.Resampling.BILINEAR)
    difference = fitting(image, (28, 28, 1))[0, ..., 0].astype(int) - np.asarray(small, dtype=int)
    assert np.abs(difference).max() <= 1


def test_quantiles_are_named_by_their_part() -> None:
    found = quantiles(np.linspace(0, 1, 101))
    assert list(found) == ["0.01", "0.05", "0.25", "0.5", "0.75", "0.95", "0.99"]
    assert found["0.5"] == pytest.approx(0.5)
    assert found["0.99"] == pytest.approx(0.99)
