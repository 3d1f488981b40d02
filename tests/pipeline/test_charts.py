import xml.etree.ElementTree as ET

import numpy as np
import pytest
from matplotlib.colors import to_hex

from pipeline.records.evaluate import Attack, Robustness
from pipeline.stages.insight.answers import calibrate
from pipeline.stages.insight.drawing import attacks, errors, regions, reliability
from pipeline.stages.page.figures import BLUE, ORANGE, as_svg


def robustness(*points: tuple[str, float, float]) -> Robustness:
    return Robustness(
        rows=50,
        largest=16,
        steps=10,
        seed=1,
        accuracy=0.9,
        attacks=tuple(Attack(name=name, strength=at, accuracy=to) for name, at, to in points),
    )


def test_reliability_draws_accuracy_and_rows_of_each_bin() -> None:
    first = np.array([0.62, 0.66, 0.95, 0.99])
    found = calibrate(np.stack([first, 1 - first], axis=1), np.array([0, 1, 0, 0]))
    above, below = reliability(found).axes
    bars = {round(bar.get_x() + bar.get_width() / 2, 3): bar.get_height() for bar in above.patches}
    assert bars == pytest.approx({0.633: 0.5, 0.967: 1.0})
    assert sum(bar.get_height() for bar in below.patches) == 4
    gaps = [line.get_ydata() for line in above.get_lines()[1:]]
    np.testing.assert_allclose(gaps, [[0.5, 0.64], [1.0, 0.97]])
    assert f"{found.error:.4f}" in above.get_title(loc="left")


def test_attacks_begin_at_the_accuracy_without_one() -> None:
    found = robustness(("FGSM", 0.1, 0.5), ("PGD", 0.1, 0.3), ("FGSM", 0.05, 0.7))
    (axes,) = attacks(found).axes
    first, second = axes.get_lines()
    assert list(first.get_xdata()) == [0, 0.05, 0.1]
    assert list(first.get_ydata()) == [0.9, 0.7, 0.5]
    assert list(second.get_ydata()) == [0.9, 0.3]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["FGSM", "PGD"]
    assert "16" in axes.get_xlabel()


def test_no_strength_at_all_is_an_empty_chart() -> None:
    assert as_svg(attacks(robustness()), "none").endswith("</svg>")


def test_errors_are_parts_of_their_group() -> None:
    own, other = np.geomspace(1e-3, 1e-2, 50), np.geomspace(5e-2, 1e-1, 10)
    (axes,) = errors({"mine": own, "theirs": other}, "Mean").axes
    heights = {}
    for bar in axes.patches:
        color = to_hex(bar.get_facecolor())
        heights[color] = heights.get(color, 0) + bar.get_height()
    assert heights == pytest.approx({BLUE: 1, ORANGE: 1})


def test_an_error_of_zero_can_be_drawn() -> None:
    assert as_svg(errors({"mine": np.zeros(5)}, "Mean"), "zero")


def test_regions_are_coloured_by_the_answer_and_deeper_where_it_is_sure() -> None:
    across = up = np.linspace(0, 1, 4)
    probabilities = np.zeros((4, 4, 2))
    probabilities[:, :2] = [0.9, 0.1]
    probabilities[:, 2:] = [0.4, 0.6]
    rows, labels = np.array([[0.1, 0.2], [0.8, 0.9], [0.7, 0.1]]), np.array([0, 1, 1])
    figure = regions((across, up), probabilities, rows, ("upper", "lower"), labels)
    (axes,) = figure.axes
    image = axes.get_images()[0].get_array()
    assert to_hex(image[0, 0, :3]) == BLUE
    assert to_hex(image[0, 3, :3]) == ORANGE
    assert image[0, 0, 3] > image[0, 3, 3]
    upper, lower = axes.collections
    assert upper.get_offsets().tolist() == [[0.1, 0.2]]
    assert len(lower.get_offsets()) == 2
    words = "".join(ET.fromstring(as_svg(figure, "x")).itertext())
    assert "upper" in words
    assert "actual class" in words
