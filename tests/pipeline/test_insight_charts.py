"""The figures of `ferry evaluate`: what is drawn of given numbers and images."""

import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from pipeline.records.evaluate import Attack, Robustness
from pipeline.stages.insight import charts
from pipeline.stages.insight.charts import attacks, errors, regions, reliability
from pipeline.stages.insight.quality import calibrate
from pipeline.tracking.figures import BLUE, ORANGE, as_svg

MAKE = np.random.default_rng(0)
MOST_BYTES = 150_000


def images(count: int, channels: int = 1, side: int = 28) -> np.ndarray:
    return MAKE.integers(0, 256, (count, side, side, channels), dtype=np.uint8)


def waves(count: int, side: int) -> np.ndarray:
    """Planes as even as those of photographs, which noise is not."""
    phases = np.arange(1, count + 1)[:, None, None] * np.linspace(0, 1, side)
    return (np.sin(phases) * np.cos(phases.transpose(0, 2, 1))).astype(np.float32)


def drawn(figure: Figure) -> list[np.ndarray]:
    """The images of a figure, in order."""
    return [np.asarray(one.get_array()) for axes in figure.axes for one in axes.get_images()]


def texts(figure: Figure) -> list[str]:
    root = ET.fromstring(as_svg(figure, "test"))
    return ["".join(node.itertext()).strip() for node in root.iter() if node.tag.endswith("text")]


def every_picture() -> dict[str, Figure]:
    weights = MAKE.normal(size=(40, 5, 5, 3)).astype(np.float32)
    eight, notes = images(8, 3, 32), ["cat\n→ dog 97.1%"] * 8
    return {
        "first layer": charts.first_layer(weights),
        "gates": charts.first_layer_gates(weights.reshape(-1, 25)[:112], ("a", "b", "c", "d")),
        "feature maps": charts.feature_maps(eight[0], 255, waves(64, 32)),
        "mistakes": charts.mistakes([("first", eight, notes), ("second", eight, notes)], 255),
        "saliency": charts.saliency(eight, 255, MAKE.random((8, 32, 32)), notes),
        "reconstructions": charts.reconstructions(
            images(10), MAKE.random((10, 28, 28, 1)), ["0\n0.0031"] * 10, 255
        ),
    }


@pytest.fixture(scope="module")
def svgs() -> dict[str, str]:
    return {name: as_svg(figure, name) for name, figure in every_picture().items()}


def test_each_is_one_small_element_without_double_ids(svgs: dict[str, str]) -> None:
    seen: set[str] = set()
    for name, svg in svgs.items():
        assert ET.fromstring(svg).attrib["aria-label"] == name
        ids = re.findall(r' id="([^"]+)"', svg)
        assert len(ids) == len(set(ids)), name
        assert not seen & set(ids), name
        seen |= set(ids)
        assert len(svg.encode()) < MOST_BYTES, (name, len(svg.encode()))


def test_the_same_image_twice_has_no_id_twice() -> None:
    twice = np.concatenate([images(1)] * 2)
    svg = as_svg(charts.mistakes([("x", twice, ["a", "b"])], 255), "twice")
    assert svg.count("data:image/png") == 2
    assert "<image " in svg
    assert ' id="image' not in svg


def test_pixels_are_embedded_and_stay_pixels(svgs: dict[str, str]) -> None:
    for name, svg in svgs.items():
        assert 'href="data:image/png;base64,' in svg, name
        assert "pixelated" in svg, name
        assert 'href="http' not in svg


def test_an_image_keeps_its_own_resolution() -> None:
    (shown, *_) = drawn(charts.mistakes([("x", images(2, side=9), ["a", "b"])], 255))
    assert shown.shape == (9, 9)


def test_white_is_the_largest_value_of_the_data() -> None:
    image = np.array([[[0], [8]], [[16], [16]]], dtype=np.uint8)
    (shown,) = drawn(charts.mistakes([("x", image[None], ["a"])], 16))
    assert shown.tolist() == [[0, 0.5], [1, 1]]


def test_weights_of_grey_images_share_one_scale_about_zero() -> None:
    weights = np.zeros((2, 3, 3, 1), np.float32)
    weights[0, 1, 1], weights[1, 0, 0] = 2.0, -4.0
    first, second = (
        axes.get_images()[0] for axes in charts.first_layer(weights).axes if axes.get_images()
    )
    assert first.get_clim() == second.get_clim() == (-4, 4)


def test_weights_of_colour_images_are_colours_about_grey() -> None:
    weights = np.zeros((1, 2, 2, 3), np.float32)
    weights[0, 0, 0] = [3.0, -3.0, 0.0]
    (tile,) = drawn(charts.first_layer(weights))
    assert tile[0, 0].tolist() == [1, 0, 0.5]
    assert tile[1, 1].tolist() == [0.5] * 3


def test_of_many_units_some_are_drawn_and_it_says_so() -> None:
    figure = charts.first_layer(MAKE.normal(size=(100, 3, 3, 1)).astype(np.float32))
    assert len(drawn(figure)) == charts.MOST_TILES
    assert "32 of 100 units" in texts(figure)


def test_a_network_of_zeros_can_be_drawn() -> None:
    for figure in (
        charts.first_layer(np.zeros((1, 3, 3, 3), np.float32)),
        charts.feature_maps(images(1)[0], 255, np.zeros((1, 3, 3), np.float32)),
        charts.saliency(images(1) * 0, 0, np.zeros((1, 28, 28)), ["0"]),
    ):
        assert as_svg(figure, "zeros")


def test_the_row_stands_first_beside_its_planes() -> None:
    image, planes = images(1, side=6)[0], MAKE.random((20, 4, 4)).astype(np.float32)
    shown = drawn(charts.feature_maps(image, 255, planes))
    np.testing.assert_allclose(shown[0], image[..., 0] / 255)
    assert len(shown) == 21
    by_content = {one.tobytes() for one in shown[1:]}
    assert by_content == {plane.tobytes() for plane in planes}


def test_each_mistake_has_its_note() -> None:
    notes = ["cat\n→ dog 97.1%", "owl\n→ cat 64.0%"]
    found = texts(charts.mistakes([("most confident", images(2), notes)], 255))
    assert {"cat", "→ dog 97.1%", "owl", "→ cat 64.0%", "most confident"} <= set(found)


def test_orders_of_unequal_length() -> None:
    figure = charts.mistakes([("one", images(3), ["a", "b", "c"]), ("two", images(1), ["d"])], 255)
    assert len(drawn(figure)) == 4


def test_labels_cannot_break_out_of_a_picture() -> None:
    svg = as_svg(charts.mistakes([("x", images(1), ["<script>&"])], 255), "x")
    assert "<script>" not in svg
    ET.fromstring(svg)


def test_errors_of_reconstructions_are_squared_differences() -> None:
    image = np.full((1, 2, 2, 1), 255, np.uint8)
    half = np.full((1, 2, 2, 1), 0.5, np.float32)
    _, made, error = drawn(charts.reconstructions(image, half, ["a"], 255))
    assert (made == 0.5).all()
    assert (error == 0.25).all()


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
