import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from trained_graphs import drawing_graph, stripes

from pipeline.stages.insight.answers import auc, draw, fitting, quantiles


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
    found = draw(graph, images)
    assert found.reconstructions.shape == (230, 6, 6, 1)
    expected = np.square(found.reconstructions - images / 255).mean(axis=(1, 2, 3))
    np.testing.assert_allclose(found.errors, expected, rtol=1e-5)


def test_what_was_not_learnt_has_a_larger_error() -> None:
    graph = drawing_graph()
    own = draw(graph, stripes(50).inputs).errors
    strange = np.random.default_rng(0).integers(0, 2, (50, 6, 6, 1), dtype=np.uint8) * 255
    assert auc(own, draw(graph, strange).errors) > 0.95


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


def test_drawing_needs_no_gradient() -> None:
    assert torch.is_grad_enabled()
    draw(drawing_graph(), stripes(3).inputs)
    assert torch.is_grad_enabled()
