"""The perceptrons, from one unit upwards."""

import torch
from model_cases import TABLE, build, image, parameters, rows
from torch import nn

MLP = {"hidden": [20, 12], "activation": "relu", "dropout": 0.5}


def linear_sizes(network: nn.Module) -> list[tuple[int, int]]:
    return [
        (layer.in_features, layer.out_features)
        for layer in network.modules()
        if isinstance(layer, nn.Linear)
    ]


def test_the_layers_of_an_mlp() -> None:
    network = build("mlp", MLP, image(4, 5, 3, outputs=2))
    assert linear_sizes(network) == [(60, 20), (20, 12), (12, 2)]
    assert [layer.p for layer in network if isinstance(layer, nn.Dropout)] == [0.5, 0.5]
    plain = build("mlp", MLP | {"dropout": 0}, image(4, 5, 3, outputs=2))
    assert not any(isinstance(layer, nn.Dropout) for layer in plain.modules())


def test_an_mlp_without_hidden_layers_is_one_unit() -> None:
    network = build("mlp", MLP | {"hidden": []}, TABLE)
    assert linear_sizes(network) == [(2, 1)]
    assert parameters(network) == 3
    corners = torch.tensor([[0.0, 0], [0, 1], [1, 0], [1, 1]])
    answers = network(corners).squeeze(1)
    # Linear: opposite corners of a square have the same sum.
    torch.testing.assert_close(answers[0] + answers[3], answers[1] + answers[2])


def test_an_mlp_takes_table_rows() -> None:
    network = build("mlp", MLP | {"hidden": [10], "dropout": 0}, TABLE)
    assert parameters(network) == 3 * 10 + 11
    assert network(rows(TABLE, 5)).shape == (5, 1)
