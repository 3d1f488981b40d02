"""What is measured of images, tables, texts and answers, against plain numpy."""

import numpy as np
import pytest

from serving.drift.quantities import MOST_FEATURES, measure_answers, measure_rows

RNG = np.random.default_rng(1)


def test_gray_images_give_brightness_and_contrast() -> None:
    rows = RNG.integers(0, 256, (7, 6, 5, 1)).astype(np.uint8)
    found = measure_rows(rows)
    assert list(found) == ["mean brightness", "contrast"]
    np.testing.assert_allclose(found["mean brightness"], rows.mean(axis=(1, 2, 3)), rtol=1e-6)
    np.testing.assert_allclose(found["contrast"], rows.std(axis=(1, 2, 3)), rtol=1e-5)


def test_colours_are_measured_one_by_one() -> None:
    rows = RNG.integers(0, 256, (7, 6, 5, 3)).astype(np.uint8)
    rows[..., 2] //= 4
    found = measure_rows(rows)
    assert list(found)[2:] == ["mean red", "mean green", "mean blue"]
    for channel, name in enumerate(list(found)[2:]):
        wanted = rows[..., channel].mean(axis=(1, 2))
        np.testing.assert_allclose(found[name], wanted, rtol=1e-5)


def test_a_flat_image_has_no_contrast_at_all() -> None:
    found = measure_rows(np.full((2, 28, 28, 1), 173, np.uint8))
    assert found["contrast"].tolist() == [0, 0]
    assert found["mean brightness"].tolist() == [173, 173]


def test_a_large_image_is_looked_at_on_a_grid() -> None:
    rows = RNG.integers(0, 256, (2, 130, 70, 3)).astype(np.uint8)
    found = measure_rows(rows)
    grid = rows[:, ::5, ::3]
    np.testing.assert_allclose(found["mean brightness"], grid.mean(axis=(1, 2, 3)), rtol=1e-5)
    np.testing.assert_allclose(found["mean blue"], grid[..., 2].mean(axis=(1, 2)), rtol=1e-5)


def test_a_table_gives_each_feature() -> None:
    rows = RNG.normal(size=(9, 3)).astype(np.float32)
    found = measure_rows(rows)
    assert list(found) == ["feature 0", "feature 1", "feature 2"]
    np.testing.assert_array_equal(found["feature 1"], rows[:, 1].astype(np.float64))
    assert list(measure_rows(rows[:, 0])) == ["feature 0"]


def test_a_wide_table_gives_some_from_the_first_to_the_last() -> None:
    found = measure_rows(np.arange(2000.0).reshape(2, 1000))
    names = [int(name.split()[1]) for name in found]
    assert len(names) == MOST_FEATURES
    assert (names[0], names[-1]) == (0, 999)
    assert set(np.diff(names)) <= {15, 16}
    assert found["feature 999"].tolist() == [999, 1999]


def test_other_rows_give_mean_and_spread() -> None:
    rows = RNG.normal(size=(4, 10, 3)).astype(np.float32)
    found = measure_rows(rows)
    assert list(found) == ["mean value", "spread of values"]
    np.testing.assert_allclose(found["mean value"], rows.mean(axis=(1, 2)), atol=1e-6)


def test_values_that_are_not_finite_are_no_numbers_and_no_warning() -> None:
    rows = np.zeros((3, 4, 4), np.float32)
    rows[0, 0, 0], rows[1, 0, 0] = np.nan, np.inf
    rows[1, 0, 1] = -np.inf
    found = measure_rows(rows)
    assert np.isnan(found["mean value"]).tolist() == [True, True, False]


def test_texts_give_characters_words_and_those_unknown() -> None:
    rows = np.array(["a good  film", "", "naïve\tbut good"])
    found = measure_rows(rows, frozenset({"a", "good"}))
    assert found["characters"].tolist() == [12, 0, 14]
    # A tab ends no word, as in the graph.
    assert found["words"].tolist() == [3, 0, 2]
    assert found["unknown words"][0] == pytest.approx(1 / 3)
    assert np.isnan(found["unknown words"][1])
    assert found["unknown words"][2] == 0.5


def test_without_a_vocabulary_no_word_is_unknown() -> None:
    rows = np.array([["one", "two"], ["three", ""]], object)
    assert {name: one.tolist() for name, one in measure_rows(rows).items()} == {
        "characters": [7, 6],
        "words": [2, 1],
    }


def test_what_processors_round_otherwise_is_the_same_confidence() -> None:
    probability = np.array([1.0, 0.9999999, 0.99997, 0.25], np.float32)
    found = measure_answers("classifier", {"probability": probability})
    assert found["confidence"].tolist() == [1, 1, 1, 0.25]


def test_scores_of_another_kind_are_taken_as_they_are() -> None:
    found = measure_answers("classifier", {"score": np.array([7.25, -1], np.float32)})
    assert found["score"].tolist() == [7.25, -1]


def test_a_reconstruction_gives_its_error() -> None:
    columns = {"error": np.array([0.5, 1]), "reconstruction": np.zeros((2, 3))}
    assert measure_answers("reconstruction", columns)["error"].tolist() == [0.5, 1]


def test_any_other_model_gives_the_means_of_its_numbers() -> None:
    columns = {
        "id": np.array(["a", "b"], object),
        "boxes": np.arange(8.0).reshape(2, 2, 2),
        "name": np.array(["x", "y"], object),
        "none": np.zeros((2, 0), np.float32),
    }
    found = measure_answers("other", columns)
    assert list(found) == ["mean of boxes", "mean of none"]
    assert found["mean of boxes"].tolist() == [1.5, 5.5]
    assert np.isnan(found["mean of none"]).all()
