"""What is particular of each architecture: its layers, its size and in which order it reads."""

from typing import Any

import pytest
import torch
from model_cases import CASES, LENGTH, TABLE, TEXT, build, case, image, parameters, refused, rows
from torch import nn

from pipeline.models.cnn import ConvBlock
from pipeline.models.fast import Fast, Norm, Whitening
from pipeline.models.parts.vocabulary import PADDING, UNKNOWN
from pipeline.models.text_lstm import TextLstm

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


@pytest.mark.parametrize("name", ["sigmoid", "tanh", "relu", "gelu"])
def test_the_order_of_pooling_does_not_change_the_answer(name: Any) -> None:
    """Whether training pools first or last: with the same statistics the answer is the served."""
    torch.manual_seed(0)
    block = randomise(ConvBlock(3, 8, 3, pool=True, name=name))
    block.norm.eval()
    planes = torch.randn(4, 3, 8, 8)
    block.training = True
    trained = block(planes)
    block.training = False
    assert torch.equal(trained, block(planes))
    assert not block.norm.weight.requires_grad
    assert torch.equal(block.norm.weight, torch.ones(8))


def test_gelu_may_not_be_moved_across_a_maximum() -> None:
    assert ConvBlock(1, 1, 3, pool=True, name="relu").commutes
    assert not ConvBlock(1, 1, 3, pool=True, name="gelu").commutes
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


MLP = {"hidden": [20, 12], "activation": "relu", "dropout": 0.5}


def linear_sizes(network: nn.Module) -> list[tuple[int, int]]:
    return [(layer.in_features, layer.out_features) for layer in layers(network, nn.Linear)]


def test_the_layers_of_an_mlp() -> None:
    network = build("mlp", MLP, image(4, 5, 3, outputs=2))
    assert linear_sizes(network) == [(60, 20), (20, 12), (12, 2)]
    assert [layer.p for layer in layers(network, nn.Dropout)] == [0.5, 0.5]
    plain = build("mlp", MLP | {"dropout": 0}, image(4, 5, 3, outputs=2))
    assert not layers(plain, nn.Dropout)


def test_an_mlp_without_hidden_layers_is_one_unit() -> None:
    network = build("mlp", MLP | {"hidden": []}, TABLE)
    assert linear_sizes(network) == [(2, 1)]
    assert parameters(network) == 3
    corners = torch.tensor([[0.0, 0], [0, 1], [1, 0], [1, 1]])
    answers = network(corners).squeeze(1)
    # Linear: opposite corners of a square have the same sum.
    torch.testing.assert_close(answers[0] + answers[3], answers[1] + answers[2])


# gru and lstm


@pytest.mark.parametrize(("name", "gates"), [("gru", 3), ("lstm", 4)])
def test_the_size_of_a_recurrent_network(name: str, gates: int) -> None:
    network = build(name, {"hidden": [128], "dropout": 0}, image(28, 28))
    assert parameters(network) == gates * 128 * (28 + 128 + 2) + 1290


@pytest.mark.parametrize("name", ["gru", "lstm"])
def test_an_image_is_read_from_top_to_bottom(name: str) -> None:
    """Every row counts, colours belong to their row, and the order of rows does matter."""
    network = case(name).eval()
    planes = torch.randn(1, 3, 10, 6)
    answer = network(planes)
    for row in range(10):
        changed = planes.clone()
        changed[:, 2, row] += 1
        assert not torch.equal(network(changed), answer)
    assert not torch.allclose(network(planes.flip(2)), answer)
    steps = torch.cat([planes[:, channel] for channel in range(3)], dim=2)
    torch.testing.assert_close(network.linear(network.stack(steps)[:, -1]), answer)


# text_lstm


def text(**changes: object) -> TextLstm:
    network = case("text_lstm", **changes)
    assert isinstance(network, TextLstm)
    return network


def test_the_padding_is_never_read() -> None:
    network = text().eval()
    short = torch.tensor([[5, 6, 7]])
    padded = nn.functional.pad(short, (0, LENGTH - 3), value=PADDING)
    torch.testing.assert_close(network(padded), network(short))
    states = network.stack(network.embedding(short))
    torch.testing.assert_close(network(padded), network.linear(states[:, -1]))


def test_every_word_counts_and_their_order_too() -> None:
    network = text().eval()
    sentence = torch.arange(2, 2 + LENGTH)[None]
    answer = network(sentence)
    for place in range(LENGTH):
        changed = sentence.clone()
        changed[0, place] = 30
        assert not torch.equal(network(changed), answer)
    assert not torch.allclose(network(sentence.flip(1)), answer)


def test_a_sentence_without_words_has_an_answer() -> None:
    network = text().eval()
    empty = torch.zeros(2, LENGTH, dtype=torch.int64)
    assert torch.isfinite(network(empty)).all()
    assert torch.isfinite(network.train()(empty)).all()


def test_word_dropout_hides_words_and_leaves_the_padding() -> None:
    network = text(word_dropout=0.5)
    ids = rows(TEXT, 300)
    looked_up = []
    network.embedding.register_forward_hook(lambda _e, given, _o: looked_up.append(given[0]))
    network(ids)
    network.eval()(ids)
    trained, served = looked_up
    assert torch.equal(served, ids)
    real = ids != PADDING
    assert torch.equal(trained != PADDING, real)
    hidden = (trained == UNKNOWN) & (ids != UNKNOWN)
    assert 0.4 < hidden.sum() / (real & (ids != UNKNOWN)).sum() < 0.6
    assert torch.equal(trained[~hidden], ids[~hidden])


def test_the_padding_has_no_embedding_to_learn() -> None:
    network = text()
    network(rows(TEXT, 8)).sum().backward()
    gradient = network.embedding.weight.grad
    assert gradient is not None
    assert not network.embedding.weight[PADDING].any()
    assert not gradient[PADDING].any()


def test_the_first_weights_remember_and_say_little() -> None:
    network = text(vocabulary=2000, hidden=[50, 40])
    assert 0.09 < network.embedding.weight.std().item() < 0.11
    for layer in network.stack.layers:
        given, forgotten, cell, output = layer.bias_ih_l0.detach().view(4, -1).mean(dim=1)
        assert abs(forgotten - 1) < 0.2
        assert max(abs(given), abs(cell), abs(output)) < 0.2


FAST = CASES["fast"][0] | {"widths": [64, 256, 256], "mirror": False, "shift": 0}


def patches(planes: torch.Tensor) -> torch.Tensor:
    return nn.functional.unfold(planes, 2).transpose(1, 2).flatten(end_dim=1)


def test_whitening_makes_the_values_of_patches_independent() -> None:
    torch.manual_seed(0)
    rough = torch.randn(64, 3, 17, 17)
    planes = (
        nn.functional.avg_pool2d(rough, 3, stride=1)
        + rough.mean(dim=1, keepdim=True)[..., 1:-1, 1:-1]
    )
    whitening = Whitening(3, 2)
    nn.init.zeros_(whitening.conv.bias)
    whitening.initialise(planes)
    values = whitening(planes).transpose(0, 1).flatten(start_dim=1)
    kept, negative = values.chunk(2)
    torch.testing.assert_close(kept, -negative)
    moments = kept @ kept.T / kept.shape[1]
    torch.testing.assert_close(moments, torch.eye(12), atol=5e-2, rtol=0)
    spread = patches(planes).T @ patches(planes)
    assert (spread - spread.diag().diag()).abs().max() > 0.1 * spread.diag().min()


def test_whitening_does_not_blow_up_what_never_varies() -> None:
    whitening = Whitening(3, 2)
    whitening.initialise(torch.ones(4, 3, 8, 8))
    assert torch.isfinite(whitening.conv.weight).all()
    assert whitening.conv.weight.abs().max() < 50


def test_the_whitening_is_kept_with_the_weights_and_never_trained() -> None:
    network = case("fast")
    assert isinstance(network, Fast)
    before = network.state_dict()["whitening.conv.weight"].clone()
    network.initialise(torch.randn(200, 3, 9, 12))
    after = network.state_dict()["whitening.conv.weight"]
    assert not torch.equal(before, after)
    assert not network.whitening.conv.weight.requires_grad
    other = case("fast", seed=5).eval()
    other.load_state_dict(network.state_dict())
    planes = torch.randn(2, 3, 9, 12)
    assert torch.equal(other(planes), network.eval()(planes))


def test_the_size_of_the_fast_network() -> None:
    network = build("fast", FAST, CIFAR)
    convolutions = 24 * 64 + 64 * 64 + 64 * 256 + 3 * 256 * 256
    assert parameters(network) == (12 + 1) * 24 + 9 * convolutions + 2 * (64 + 512) + 2560
    deep = build("fast", FAST | {"depth": 3}, CIFAR)
    assert parameters(deep) - parameters(network) == 9 * (64**2 + 2 * 256**2) + 64 + 512


def test_a_convolution_at_first_hands_its_planes_on() -> None:
    conv = case("fast").blocks[0].convs[1]
    planes = torch.randn(1, 6, 5, 5)
    assert torch.equal(conv(planes), planes)


def test_a_norm_is_batch_normalisation_with_a_faster_shift() -> None:
    torch.manual_seed(0)
    norm, usual = Norm(5), nn.BatchNorm2d(5, momentum=0.4)
    planes = torch.randn(6, 5, 4, 4)
    torch.testing.assert_close(norm(planes), usual(planes))
    torch.testing.assert_close(norm.eval()(planes), usual.eval()(planes))
    assert set(norm.state_dict()) == {"shift", "mean", "variance"}
    norm(planes).sum().backward()
    usual(planes).sum().backward()
    # The step of the shift itself is its gain times as large again.
    torch.testing.assert_close(norm.shift.grad, usual.bias.grad * 8)


@pytest.mark.parametrize(("mirror", "shift"), [(True, 0), (True, 1), (False, 2)])
def test_views_are_averaged_when_served(mirror: bool, shift: int) -> None:
    network = case("fast", mirror=mirror, shift=shift).eval()
    alone = case("fast", mirror=False, shift=0).eval()
    planes = torch.randn(3, 3, 9, 12)
    views = [planes]
    if shift:
        wide = nn.functional.pad(planes, [shift] * 4, mode="replicate")
        views += [wide[:, :, 2 * shift :, 2 * shift :], wide[:, :, : -2 * shift, : -2 * shift]]
    if mirror:
        views += [view.flip(3) for view in views]
    expected = sum(alone(view) for view in views) / len(views)
    torch.testing.assert_close(network(planes), expected, atol=1e-6, rtol=1e-5)
