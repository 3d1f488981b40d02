"""The convolutional networks: their layers, their sizes and what they make of an image."""

from typing import Any

import pytest
import torch
from model_cases import CASES, build, case, image, parameters, refused
from torch import nn

from pipeline.models.cnn import Block

CNN = CASES["cnn"][0]
CIFAR = image(32, 32, 3)


def layers(network: nn.Module, kind: type[nn.Module]) -> list[Any]:
    return [layer for layer in network.modules() if isinstance(layer, kind)]


def randomise(network: nn.Module) -> nn.Module:
    """Give the normalisations statistics and shifts as if they had been trained."""
    for norm in layers(network, nn.BatchNorm2d):
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
        norm.bias.data.normal_()
    return network


# cnn


def test_the_blocks_of_a_cnn() -> None:
    network = build("cnn", CNN | {"dropout": 0.25}, image(10, 6, 3))
    assert [
        (c.in_channels, c.out_channels, c.kernel_size[0]) for c in layers(network, nn.Conv2d)
    ] == [(3, 4, 3), (4, 6, 5)]
    assert len(layers(network, nn.MaxPool2d)) == 1
    assert [layer.p for layer in layers(network, nn.Dropout2d)] == [0.25]
    assert [layer.in_features for layer in layers(network, nn.Linear)] == [6 * 5 * 3]


def test_the_average_head_sees_one_value_of_each_plane() -> None:
    network = build("cnn", CNN | {"head": "average"}, image(10, 6, 3)).eval()
    assert [layer.in_features for layer in layers(network, nn.Linear)] == [6]
    planes = torch.randn(2, 3, 10, 6)
    blocks = network[:2](planes)
    expected = network[-1](blocks.mean(dim=(2, 3)))
    torch.testing.assert_close(network(planes), expected)


def test_too_many_poolings_for_the_image() -> None:
    pools = CNN | {"widths": [2] * 4, "kernels": [3] * 4, "pools": [True] * 4}
    assert refused("cnn", pools, image()).endswith(": 4 poolings leave nothing of 8×8 pixels")
    assert build("cnn", pools, image(16, 16)) is not None
    assert "leave nothing of 40×8" in refused("cnn", pools, image(40, 8))


def test_an_odd_side_is_pooled_as_torch_pools_it() -> None:
    settings = CNN | {"widths": [3, 3], "kernels": [3, 3], "pools": [True, True]}
    network = build("cnn", settings, image(7, 13, 2, outputs=4))
    assert network(torch.randn(2, 2, 7, 13)).shape == (2, 4)


@pytest.mark.parametrize("name", ["sigmoid", "tanh", "relu", "gelu"])
def test_the_order_of_pooling_does_not_change_the_answer(name: Any) -> None:
    """Whether training pools first or last: with the same statistics the answer is the served."""
    torch.manual_seed(0)
    block = randomise(Block(3, 8, 3, pool=True, name=name))
    block.norm.eval()
    planes = torch.randn(4, 3, 8, 8)
    block.training = True
    trained = block(planes)
    block.training = False
    assert torch.equal(trained, block(planes))
    assert not block.norm.weight.requires_grad
    assert torch.equal(block.norm.weight, torch.ones(8))


def test_gelu_may_not_be_moved_across_a_maximum() -> None:
    assert Block(1, 1, 3, pool=True, name="relu").commutes
    assert not Block(1, 1, 3, pool=True, name="gelu").commutes
    falling = torch.tensor([-2.0, -0.8])
    assert nn.GELU()(falling.max()) != nn.GELU()(falling).max()


# lenet


def test_the_textbook_network_for_cifar10() -> None:
    settings = CASES["lenet"][0] | {"widths": [32, 64, 64], "hidden": [64]}
    network = build("lenet", settings, CIFAR)
    kinds = [type(layer).__name__ for layer in network]
    assert kinds == [
        *("Conv2d", "ReLU", "MaxPool2d", "Conv2d", "ReLU", "MaxPool2d", "Conv2d", "ReLU"),
        *("Flatten", "Linear", "ReLU", "Linear"),
    ]
    assert parameters(network) == 896 + 18496 + 36928 + 65600 + 650


def test_a_lenet_without_hidden_layers_and_with_dropout() -> None:
    network = build("lenet", CASES["lenet"][0] | {"hidden": [], "dropout": 0.3}, image(12, 14))
    assert [layer.in_features for layer in layers(network, nn.Linear)] == [6 * 3 * 4]
    assert [layer.p for layer in layers(network, nn.Dropout)] == [0.3]


# resnet


def test_the_network_of_mlperf_tiny() -> None:
    settings = CASES["resnet"][0] | {"widths": [16, 32, 64]}
    network = build("resnet", settings, CIFAR)
    assert parameters(network) == 78_042
    assert len([c for c in layers(network, nn.Conv2d) if c.kernel_size == (3, 3)]) == 7
    assert len([c for c in layers(network, nn.Conv2d) if c.kernel_size == (1, 1)]) == 2
    shapes = []
    for block in network[2:5]:
        block.register_forward_hook(lambda _b, _i, planes: shapes.append(tuple(planes.shape[1:])))
    network(torch.randn(2, 3, 32, 32))
    assert shapes == [(16, 32, 32), (32, 16, 16), (64, 8, 8)]


def test_more_blocks_make_a_deeper_network() -> None:
    settings = CASES["resnet"][0] | {"widths": [4, 8], "blocks": 3}
    network = build("resnet", settings, image())
    assert len(layers(network, nn.Conv2d)) == 1 + 2 * 3 * 2 + 1


def test_a_block_adds_its_change_to_what_came_in() -> None:
    block = build("resnet", CASES["resnet"][0], image())[2].eval()
    nn.init.zeros_(block.second[0].weight)
    planes = torch.rand(2, 4, 6, 6)
    assert torch.equal(block(planes), planes)


# autoencoder


def test_an_autoencoder_of_digits() -> None:
    settings = CASES["autoencoder"][0] | {"widths": [32, 64], "code": 0}
    network = build("autoencoder", settings, image(28, 28, outputs=0)).eval()
    plain = layers(network, nn.Conv2d)
    assert [(c.in_channels, c.out_channels) for c in plain] == [(1, 32), (32, 64)]
    back = layers(network, nn.ConvTranspose2d)
    assert [(c.in_channels, c.out_channels) for c in back] == [(64, 32), (32, 1)]
    assert network[:6](torch.rand(1, 1, 28, 28)).shape == (1, 64, 7, 7)


def test_the_code_is_the_narrowest_place() -> None:
    network = case("autoencoder")
    sizes = []
    for layer in layers(network, nn.Conv2d):
        layer.register_forward_hook(lambda _l, _i, planes: sizes.append(planes[0].numel()))
    network(torch.rand(1, 3, 8, 12))
    assert min(sizes) == 3 * 2 * 3
