"""The pictures of `ferry evaluate`: what is measured for them, and what is drawn of it."""

import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from project import REPOSITORY
from torch import nn
from trained_graphs import convolutional_graph, graph_of, linear_graph, stripes

from pipeline.config.params import load
from pipeline.models import Shape, build
from pipeline.models.insight.pictures import (
    MOST_TILES,
    FirstWeights,
    draw_gates,
    draw_mistakes,
    draw_planes,
    draw_reconstructions,
    draw_regions,
    draw_saliency,
    draw_units,
    feature_maps,
    first_weights,
    saliency,
)
from pipeline.models.insight.quality import calibrate, draw_errors, draw_reliability
from pipeline.models.insight.robustness import draw_attacks
from pipeline.models.parts.graph import CrossEntropy
from pipeline.records.evaluate import Attack, Robustness
from pipeline.records.ready import Split
from pipeline.tracking.figures import BLUE, ORANGE, as_svg

COLOUR = Shape(kind="image", row=(3, 8, 10), outputs=4)
MODELS = {"cnn": "digits-cnn", "resnet": "cifar10-resnet8", "mlp": "digits-mlp"}
MODELS |= {"gru": "mnist-gru", "lstm": "mnist-lstm"}


def network(name: str) -> nn.Module:
    config = load(REPOSITORY / "params.yaml").experiment(MODELS[name]).model
    return build(config, COLOUR, where="test")


def first(name: str) -> FirstWeights | None:
    return first_weights(graph_of(network(name), CrossEntropy()), (8, 10, 3))


@pytest.mark.parametrize("name", ["cnn", "resnet"])
def test_kernels_are_tiles_with_channels_last(name: str) -> None:
    found = first(name)
    assert found is not None
    assert not found.gates
    units, *rest = found.values.shape
    assert rest == [3, 3, 3]
    assert units > 1


@pytest.mark.parametrize(("name", "gates"), [("gru", 3), ("lstm", 4)])
def test_weights_of_a_recurrent_layer_are_told_by_gate(name: str, gates: int) -> None:
    found = first(name)
    assert found is not None
    assert len(found.gates) == gates
    assert found.values.shape[1] == 30
    assert len(found.values) % gates == 0


def test_a_unit_has_its_weight_where_its_pixel_is() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 10, 2))
    with torch.no_grad():
        net[1].weight.zero_()
        net[1].weight[1, 2 * 80 + 4 * 10 + 7] = 5.0  # channel 2, row 4, column 7
    found = first_weights(graph_of(net, CrossEntropy()), (8, 10, 3))
    assert found is not None
    assert np.argwhere(found.values).tolist() == [[1, 4, 7, 2]]


def test_weights_of_something_else_are_not_drawn() -> None:
    odd = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2))
    assert first_weights(graph_of(odd, CrossEntropy()), (8, 10, 3)) is None
    assert first_weights(graph_of(nn.Flatten(), CrossEntropy()), (8, 10, 3)) is None


def test_feature_maps_are_what_the_first_activation_gives() -> None:
    graph, image = convolutional_graph(), stripes(1).inputs[0]
    inputs = graph.inputs(graph.values(graph.tensor(image[None])))
    expected = graph.network[0](inputs).relu()[0]
    np.testing.assert_allclose(feature_maps(graph, image), expected.numpy())


def test_without_an_activation_they_are_what_the_convolution_gives() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(32, 2))
    found = feature_maps(graph_of(net, CrossEntropy()), stripes(1).inputs[0])
    assert found is not None
    assert found.shape == (2, 4, 4)
    assert found.min() < 0


def test_a_network_without_convolution_has_none() -> None:
    assert feature_maps(linear_graph(), stripes(1).inputs[0]) is None


def test_nothing_is_left_hanging_on_the_network() -> None:
    graph = convolutional_graph()
    feature_maps(graph, stripes(1).inputs[0])
    assert not any(layer._forward_hooks for layer in graph.network.modules())


def test_saliency_of_a_linear_network_is_its_weights() -> None:
    graph, images = linear_graph(), stripes(12).inputs
    found = saliency(graph, images)
    with torch.inference_mode():
        answered = graph(graph.tensor(images))[0].argmax(dim=1)
    weights = graph.network.linear.weight[answered].abs() * float(graph.scale)
    np.testing.assert_allclose(found, weights.view(12, 6, 6).numpy(), rtol=1e-5)


def test_saliency_of_a_single_logit() -> None:
    graph = linear_graph(binary=True)
    found = saliency(graph, stripes(3).inputs)
    weights = graph.network.linear.weight.abs().view(6, 6) * float(graph.scale)
    for row in found:
        np.testing.assert_allclose(row, weights.numpy(), rtol=1e-5)


def test_saliency_takes_the_largest_of_the_channels() -> None:
    torch.manual_seed(0)
    graph = graph_of(network("mlp").eval(), CrossEntropy())
    images = np.random.default_rng(0).integers(0, 256, (2, 8, 10, 3), dtype=np.uint8)
    values = graph.values(graph.tensor(images)).requires_grad_()
    output = graph.network(graph.inputs(values))
    output.max(dim=1).values.sum().backward()
    expected = values.grad.abs().max(dim=1).values
    np.testing.assert_allclose(saliency(graph, images), expected.numpy(), rtol=1e-5)


# What is drawn

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
        "first layer": draw_units(weights),
        "gates": draw_gates(weights.reshape(-1, 25)[:112], ("a", "b", "c", "d")),
        "feature maps": draw_planes(eight[0], 255, waves(64, 32)),
        "mistakes": draw_mistakes([("first", eight, notes), ("second", eight, notes)], 255),
        "saliency": draw_saliency(eight, 255, MAKE.random((8, 32, 32)), notes),
        "reconstructions": draw_reconstructions(
            images(10), 255, MAKE.random((10, 28, 28, 1)), ["0\n0.0031"] * 10
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
    svg = as_svg(draw_mistakes([("x", twice, ["a", "b"])], 255), "twice")
    assert svg.count("data:image/png") == 2
    assert "<image " in svg
    assert ' id="image' not in svg


def test_pixels_are_embedded_and_stay_pixels(svgs: dict[str, str]) -> None:
    for name, svg in svgs.items():
        assert 'href="data:image/png;base64,' in svg, name
        assert "pixelated" in svg, name
        assert 'href="http' not in svg


def test_an_image_keeps_its_own_resolution() -> None:
    (shown, *_) = drawn(draw_mistakes([("x", images(2, side=9), ["a", "b"])], 255))
    assert shown.shape == (9, 9)


def test_white_is_the_largest_value_of_the_data() -> None:
    image = np.array([[[0], [8]], [[16], [16]]], dtype=np.uint8)
    (shown,) = drawn(draw_mistakes([("x", image[None], ["a"])], 16))
    assert shown.tolist() == [[0, 0.5], [1, 1]]


def test_weights_of_grey_images_share_one_scale_about_zero() -> None:
    weights = np.zeros((2, 3, 3, 1), np.float32)
    weights[0, 1, 1], weights[1, 0, 0] = 2.0, -4.0
    first, second = (axes.get_images()[0] for axes in draw_units(weights).axes if axes.get_images())
    assert first.get_clim() == second.get_clim() == (-4, 4)


def test_weights_of_colour_images_are_colours_about_grey() -> None:
    weights = np.zeros((1, 2, 2, 3), np.float32)
    weights[0, 0, 0] = [3.0, -3.0, 0.0]
    (tile,) = drawn(draw_units(weights))
    assert tile[0, 0].tolist() == [1, 0, 0.5]
    assert tile[1, 1].tolist() == [0.5] * 3


def test_of_many_units_some_are_drawn_and_it_says_so() -> None:
    figure = draw_units(MAKE.normal(size=(100, 3, 3, 1)).astype(np.float32))
    assert len(drawn(figure)) == MOST_TILES
    assert "32 of 100 units" in texts(figure)


def test_zeros_can_be_drawn() -> None:
    for figure in (
        draw_units(np.zeros((1, 3, 3, 3), np.float32)),
        draw_planes(images(1)[0], 255, np.zeros((1, 3, 3), np.float32)),
        draw_saliency(images(1) * 0, 0, np.zeros((1, 28, 28)), ["0"]),
        draw_errors({"mine": np.zeros(5)}, "Mean"),
    ):
        assert as_svg(figure, "zeros")


def test_the_row_stands_first_beside_its_planes() -> None:
    image, planes = images(1, side=6)[0], MAKE.random((20, 4, 4)).astype(np.float32)
    shown = drawn(draw_planes(image, 255, planes))
    np.testing.assert_allclose(shown[0], image[..., 0] / 255)
    assert len(shown) == 21
    by_content = {one.tobytes() for one in shown[1:]}
    assert by_content == {plane.tobytes() for plane in planes}


def test_each_mistake_has_its_note() -> None:
    notes = ["cat\n→ dog 97.1%", "owl\n→ cat 64.0%"]
    found = texts(draw_mistakes([("most confident", images(2), notes)], 255))
    assert {"cat", "→ dog 97.1%", "owl", "→ cat 64.0%", "most confident"} <= set(found)


def test_orders_of_unequal_length() -> None:
    figure = draw_mistakes([("one", images(3), ["a", "b", "c"]), ("two", images(1), ["d"])], 255)
    assert len(drawn(figure)) == 4


def test_labels_cannot_break_out_of_a_picture() -> None:
    svg = as_svg(draw_mistakes([("x", images(1), ["<script>&"])], 255), "x")
    assert "<script>" not in svg
    ET.fromstring(svg)


def test_errors_of_reconstructions_are_squared_differences() -> None:
    image = np.full((1, 2, 2, 1), 255, np.uint8)
    half = np.full((1, 2, 2, 1), 0.5, np.float32)
    _, made, error = drawn(draw_reconstructions(image, 255, half, ["a"]))
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
    above, below = draw_reliability(found).axes
    bars = {round(bar.get_x() + bar.get_width() / 2, 3): bar.get_height() for bar in above.patches}
    assert bars == pytest.approx({0.633: 0.5, 0.967: 1.0})
    assert sum(bar.get_height() for bar in below.patches) == 4
    gaps = [line.get_ydata() for line in above.get_lines()[1:]]
    np.testing.assert_allclose(gaps, [[0.5, 0.64], [1.0, 0.97]])
    assert f"{found.error:.4f}" in above.get_title(loc="left")


def test_attacks_begin_at_the_accuracy_without_one() -> None:
    found = robustness(("FGSM", 0.1, 0.5), ("PGD", 0.1, 0.3), ("FGSM", 0.05, 0.7))
    (axes,) = draw_attacks(found).axes
    first, second = axes.get_lines()
    assert list(first.get_xdata()) == [0, 0.05, 0.1]
    assert list(first.get_ydata()) == [0.9, 0.7, 0.5]
    assert list(second.get_ydata()) == [0.9, 0.3]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["FGSM", "PGD"]
    assert "16" in axes.get_xlabel()


def test_errors_are_parts_of_their_group() -> None:
    own, other = np.geomspace(1e-3, 1e-2, 50), np.geomspace(5e-2, 1e-1, 10)
    (axes,) = draw_errors({"mine": own, "theirs": other}, "Mean").axes
    heights = {}
    for bar in axes.patches:
        color = to_hex(bar.get_facecolor())
        heights[color] = heights.get(color, 0) + bar.get_height()
    assert heights == pytest.approx({BLUE: 1, ORANGE: 1})


def test_regions_are_coloured_by_the_answer_and_deeper_where_it_is_sure() -> None:
    across = up = np.linspace(0, 1, 4)
    probabilities = np.zeros((4, 4, 2))
    probabilities[:, :2] = [0.9, 0.1]
    probabilities[:, 2:] = [0.4, 0.6]
    test = Split(np.array([[0.1, 0.2], [0.8, 0.9], [0.7, 0.1]]), np.array([0, 1, 1]))
    figure = draw_regions((across, up), probabilities, test, ("upper", "lower"))
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
