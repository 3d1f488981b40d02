"""Layers that several architectures share, by the names that params.yaml gives them."""

from typing import Final, Literal

from torch import nn

from pipeline.config import Count

__all__ = ["NEVER_FALLING", "Activation", "Widths", "activation"]

Activation = Literal["sigmoid", "tanh", "relu", "gelu"]
NEVER_FALLING: Final[tuple[Activation, ...]] = ("sigmoid", "tanh", "relu")
"""Those that a maximum may be taken before as well as after."""
Widths = tuple[Count, ...]
"""One entry per layer; there may be none."""


def activation(name: Activation) -> nn.Module:
    """The function between two layers; it may overwrite what it is given."""
    match name:
        case "sigmoid":
            return nn.Sigmoid()
        case "tanh":
            return nn.Tanh()
        case "relu":
            return nn.ReLU(inplace=True)
        case "gelu":
            return nn.GELU()
