"""Every architecture of the registry, and what each refuses of its settings."""

from dataclasses import fields
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from pipeline import models, registry
from pipeline.config import ModelConfig
from pipeline.errors import ConfigError, UnknownNameError
from pipeline.models import Shape
from pipeline.params import load

ROOT = Path(__file__).parents[2]
SHAPES = [(8, 8, 1), (28, 28, 1), (32, 32, 3)]
WHERE = "experiments.mine.model"
SETTINGS: dict[str, dict[str, Any]] = {
    experiment.model.name: dict(experiment.model.settings)
    for experiment in load(ROOT / "params.yaml").experiments.values()
}
"""Of each architecture that params.yaml uses, those of one experiment."""
CNN = {"widths": [4, 6], "kernels": [3, 5], "pools": [True, False], "dropout": 0}
MLP = {"hidden": [16], "dropout": 0}


def module_of(name: str) -> ModuleType:
    return registry.load("model", "pipeline.models", models.FOLDER, name)


def build(
    name: str, settings: dict[str, Any], shape: tuple[int, int, int] = (8, 8, 1), classes: int = 10
) -> nn.Module:
    height, width, channels = shape
    described = Shape(height=height, width=width, channels=channels, classes=classes)
    return models.build(ModelConfig(name=name, settings=settings), described, where=WHERE)


def refused(name: str, settings: dict[str, Any], **shape: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        build(name, settings, **shape)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    return message


@pytest.mark.parametrize("name", models.names())
def test_every_architecture_is_used_by_an_experiment(name: str) -> None:
    assert name in SETTINGS


@pytest.mark.parametrize("name", models.names())
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_architecture_builds_for_every_shape(name: str, shape: tuple[int, int, int]) -> None:
    network = build(name, SETTINGS[name], shape, classes=7).eval()
    height, width, channels = shape
    logits = network(torch.randn(3, channels, height, width))
    assert logits.shape == (3, 7)
    assert logits.dtype == torch.float32
    assert torch.isfinite(logits).all()


@pytest.mark.parametrize("name", models.names())
def test_rows_do_not_depend_on_their_batch(name: str) -> None:
    network = build(name, SETTINGS[name]).eval()
    planes = torch.randn(5, 1, 8, 8)
    together = network(planes)
    alone = torch.cat([network(planes[row : row + 1]) for row in range(5)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", models.names())
def test_every_parameter_is_trained(name: str) -> None:
    network = build(name, SETTINGS[name] | {"dropout": 0})
    network(torch.randn(16, 1, 8, 8)).square().sum().backward()
    for key, parameter in network.named_parameters():
        if not parameter.requires_grad:
            assert key.endswith("norm.weight")
            continue
        assert parameter.grad is not None, key
        assert parameter.grad.abs().sum() > 0, key


@pytest.mark.parametrize("name", models.names())
def test_every_architecture_tells_its_settings(name: str) -> None:
    module = module_of(name)
    assert set(module.__all__) >= {"Settings", "build"}
    assert set(SETTINGS[name]) == {field.name for field in fields(module.Settings)}


@pytest.mark.parametrize("name", models.names())
def test_an_unknown_a_missing_and_a_mistyped_setting(name: str) -> None:
    settings = SETTINGS[name]
    key = next(iter(settings))
    assert f"{WHERE}.{key}s is not a key; did you mean {key!r}?" in refused(
        name, {f"{key}s": settings[key], **{k: v for k, v in settings.items() if k != key}}
    )
    without = {k: v for k, v in settings.items() if k != key}
    assert refused(name, without) == f"{WHERE}.{key} is missing"
    assert refused(name, settings | {key: "x"}).startswith(f"{WHERE}.{key} must be ")
    assert refused(name, settings | {"dropout": 1}) == f"{WHERE}.dropout must be less than 1, got 1"


def test_an_unknown_architecture() -> None:
    with pytest.raises(UnknownNameError, match="no model named 'mpl'; did you mean 'mlp'"):
        build("mpl", MLP)


WRONG = [
    ("mlp", MLP | {"hidden": []}, ".hidden must not be empty"),
    ("mlp", MLP | {"hidden": [8, 0]}, ".hidden.1 must be greater than or equal to 1, got 0"),
    ("mlp", MLP | {"hidden": 8}, ".hidden must be a list, got 8"),
    ("cnn", CNN | {"pools": [1, 0]}, ".pools.0 must be a boolean, got 1"),
    ("cnn", CNN | {"pools": []}, ".pools must not be empty"),
    (
        "cnn",
        CNN | {"widths": [4]},
        "widths, kernels and pools must be equally long, got 1, 2 and 2",
    ),
    ("cnn", CNN | {"kernels": [3, 3, 3]}, "must be equally long, got 2, 3 and 2"),
    ("cnn", CNN | {"kernels": [3, 4]}, "kernels must be odd, got 4"),
]


@pytest.mark.parametrize(
    ("name", "settings", "expected"), WRONG, ids=lambda value: str(value)[-30:]
)
def test_wrong_settings_are_refused_by_path(
    name: str, settings: dict[str, Any], expected: str
) -> None:
    message = refused(name, settings)
    assert message.startswith(WHERE)
    assert expected in message


def test_too_many_poolings_for_the_image() -> None:
    pools = {"widths": [2] * 4, "kernels": [3] * 4, "pools": [True] * 4, "dropout": 0}
    assert refused("cnn", pools) == f"{WHERE}: 4 poolings leave nothing of 8×8 pixels"
    assert build("cnn", pools, (16, 16, 1)) is not None
    assert "leave nothing of 40×8" in refused("cnn", pools, shape=(40, 8, 1))


def test_an_odd_side_is_pooled_as_torch_pools_it() -> None:
    settings = {"widths": [3, 3], "kernels": [3, 3], "pools": [True, True], "dropout": 0}
    network = build("cnn", settings, (7, 13, 2), classes=4)
    assert network(torch.randn(2, 2, 7, 13)).shape == (2, 4)


def test_the_blocks_of_a_cnn() -> None:
    network = build("cnn", CNN | {"dropout": 0.25}, (10, 6, 3))
    convolutions = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d)]
    assert [(c.in_channels, c.out_channels, c.kernel_size[0]) for c in convolutions] == [
        (3, 4, 3),
        (4, 6, 5),
    ]
    assert sum(isinstance(layer, nn.MaxPool2d) for layer in network.modules()) == 1
    assert [layer.p for layer in network.modules() if isinstance(layer, nn.Dropout2d)] == [0.25]
    head = [layer for layer in network.modules() if isinstance(layer, nn.Linear)]
    assert [layer.in_features for layer in head] == [6 * 5 * 3]


def test_the_layers_of_an_mlp() -> None:
    network = build("mlp", {"hidden": [20, 12], "dropout": 0.5}, (4, 5, 3), classes=2)
    linear = [layer for layer in network.modules() if isinstance(layer, nn.Linear)]
    assert [(layer.in_features, layer.out_features) for layer in linear] == [
        (60, 20),
        (20, 12),
        (12, 2),
    ]
    assert sum(isinstance(layer, nn.Dropout) for layer in network.modules()) == 2
    plain = build("mlp", {"hidden": [20, 12], "dropout": 0}, (4, 5, 3), classes=2)
    assert not any(isinstance(layer, nn.Dropout) for layer in plain.modules())


def test_the_order_of_pooling_does_not_change_the_answer():
    """The cnn pools first in training and last when served; with the same statistics, alike."""
    from pipeline.models.cnn import Block

    torch.manual_seed(0)
    block = Block(3, 8, 3, pool=True)
    block.norm.running_mean.normal_()
    block.norm.running_var.uniform_(0.5, 2)
    block.norm.bias.data.normal_()
    planes = torch.randn(4, 3, 8, 8)
    block.norm.eval()
    block.training = True
    first = block(planes)
    block.training = False
    last = block(planes)
    assert torch.equal(first, last)
    assert not block.norm.weight.requires_grad
    assert torch.equal(block.norm.weight, torch.ones(8))
