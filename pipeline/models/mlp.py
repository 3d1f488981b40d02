"""A multi-layer perceptron: `name: mlp`, with the widths of its hidden layers."""

from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

from pydantic import ConfigDict
from torch import nn

from pipeline.config import STRICT, Counts, Fraction
from pipeline.models import Shape

__all__ = ["Settings", "build"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Its section of params.yaml."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    hidden: Counts
    """Units of each hidden layer."""
    dropout: Fraction


def build(settings: Settings, shape: Shape) -> nn.Module:
    """Linear and ReLU layers over the flattened image."""
    widths = (shape.height * shape.width * shape.channels, *settings.hidden)
    layers: list[nn.Module] = [nn.Flatten()]
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU()]
        if settings.dropout:
            layers.append(nn.Dropout(settings.dropout))
    return nn.Sequential(*layers, nn.Linear(widths[-1], shape.classes))
