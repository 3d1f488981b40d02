"""One small network of every architecture, and rows for it."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipeline import models
from pipeline.config.experiment import ModelConfig
from pipeline.errors import ConfigError
from pipeline.models import Shape

WHERE = "experiments.mine.model"
LENGTH, VOCABULARY = 12, 40


def image(height: int = 8, width: int = 8, channels: int = 1, *, outputs: int = 10) -> Shape:
    return Shape(kind="image", row=(channels, height, width), outputs=outputs)


TEXT = Shape(kind="text", row=(), outputs=1)
TABLE = Shape(kind="table", row=(2,), outputs=1)
CASES: dict[str, tuple[dict[str, Any], Shape]] = {
    "mlp": ({"hidden": [16], "activation": "tanh", "dropout": 0}, image()),
    "cnn": (
        {
            "widths": [4, 6],
            "kernels": [3, 5],
            "pools": [True, False],
            "activation": "relu",
            "head": "flatten",
            "dropout": 0,
        },
        image(),
    ),
    "lenet": (
        {"widths": [4, 6], "kernel": 3, "hidden": [9], "activation": "relu", "dropout": 0},
        image(12, 12, 3),
    ),
    "resnet": (
        {"widths": [4, 6, 8], "blocks": 1, "activation": "relu", "dropout": 0},
        image(9, 12, 3),
    ),
    "gru": ({"hidden": [12, 7], "dropout": 0}, image(10, 6, 3)),
    "lstm": ({"hidden": [12, 7], "dropout": 0}, image(10, 6, 3)),
    "text_lstm": (
        {
            "vocabulary": VOCABULARY,
            "length": LENGTH,
            "embedding": 6,
            "hidden": [8, 5],
            "dropout": 0,
            "word_dropout": 0,
        },
        TEXT,
    ),
    "autoencoder": (
        {"widths": [6, 8], "code": 3, "activation": "relu"},
        image(8, 12, 3, outputs=0),
    ),
    "fast": (
        {
            "whiten": 2,
            "widths": [6, 8],
            "depth": 2,
            "activation": "gelu",
            "scale": 0.5,
            "mirror": True,
            "shift": 1,
        },
        image(9, 12, 3),
    ),
}
"""Of each architecture, settings without dropout and a shape."""


def build(name: str, settings: dict[str, Any], shape: Shape, *, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return models.build(ModelConfig(name=name, settings=settings), shape, where=WHERE)


def case(name: str, *, seed: int = 0, **changes: Any) -> nn.Module:
    """The small network of that name, with changed settings."""
    settings, shape = CASES[name]
    return build(name, settings | changes, shape, seed=seed)


def refused(name: str, settings: dict[str, Any], shape: Shape) -> str:
    """The one line of the ConfigError."""
    with pytest.raises(ConfigError) as caught:
        build(name, settings, shape)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert message.startswith(WHERE)
    return message


def rows(shape: Shape, count: int) -> Tensor:
    """Random rows: of text, sentences from no word at all to as many as are read."""
    if shape.kind != "text":
        return torch.randn(count, *shape.row)
    ids = torch.randint(1, VOCABULARY, (count, LENGTH))
    words = torch.arange(count) * (LENGTH // 2) % (LENGTH + 1)
    return ids * (torch.arange(LENGTH) < words[:, None])


def parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())
