import numpy as np
import pytest
import torch
from project import REPOSITORY
from torch import nn
from trained_graphs import convolutional_graph, graph_of, linear_graph, stripes

from pipeline.config.params import load
from pipeline.models import Shape, build
from pipeline.network.graph import CrossEntropy
from pipeline.stages.insight.pictures import Gates, Tiles, feature_maps, first_weights, saliency

COLOUR = Shape(kind="image", row=(3, 8, 10), outputs=4)
MODELS = {"cnn": "digits-cnn", "resnet": "cifar10-resnet8", "mlp": "digits-mlp"}
MODELS |= {"gru": "mnist-gru", "lstm": "mnist-lstm"}


def network(name: str) -> nn.Module:
    config = load(REPOSITORY / "params.yaml").experiment(MODELS[name]).model
    return build(config, COLOUR, where="test")


def first(name: str) -> Tiles | Gates | None:
    return first_weights(graph_of(network(name), CrossEntropy()), (8, 10, 3))


@pytest.mark.parametrize("name", ["cnn", "resnet"])
def test_kernels_are_tiles_with_channels_last(name: str) -> None:
    found = first(name)
    assert isinstance(found, Tiles)
    units, *rest = found.weights.shape
    assert rest == [3, 3, 3]
    assert units > 1


@pytest.mark.parametrize(("name", "gates"), [("gru", 3), ("lstm", 4)])
def test_weights_of_a_recurrent_layer_are_told_by_gate(name: str, gates: int) -> None:
    found = first(name)
    assert isinstance(found, Gates)
    assert len(found.names) == gates
    assert found.weights.shape[1] == 30
    assert len(found.weights) % gates == 0


def test_a_unit_has_its_weight_where_its_pixel_is() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 10, 2))
    with torch.no_grad():
        net[1].weight.zero_()
        net[1].weight[1, 2 * 80 + 4 * 10 + 7] = 5.0  # channel 2, row 4, column 7
    found = first_weights(graph_of(net, CrossEntropy()), (8, 10, 3))
    assert isinstance(found, Tiles)
    assert np.argwhere(found.weights).tolist() == [[1, 4, 7, 2]]


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
