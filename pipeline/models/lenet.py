"""Convolutions with poolings between, then hidden linear layers: `name: lenet`, as in textbooks.

Nothing is padded and nothing normalised. The shape is that of LeNet-5 (LeCun, Bottou, Bengio and
Haffner, "Gradient-based learning applied to document recognition", 1998).
"""

from dataclasses import dataclass
from itertools import pairwise

from torch import nn

from pipeline.config.experiment import Count, Counts, Fraction, StrictSettings
from pipeline.errors import ConfigError
from pipeline.models import Gives, Shape
from pipeline.models.parts.layers import Activation, Widths, activation
from pipeline.records.ready import Kind

TAKES: tuple[Kind, ...] = ("image",)
GIVES: Gives = "logits"


@dataclass(frozen=True, slots=True, kw_only=True)
class LenetSettings(StrictSettings):
    """Its section of params.yaml."""

    widths: Counts
    """Output channels of each convolution; a 2×2 max pooling stands between two of them."""
    kernel: Count
    """Side of every kernel; a convolution takes this less one off the planes."""
    hidden: Widths
    """Units of each hidden linear layer."""
    activation: Activation
    dropout: Fraction
    """Before each linear layer."""


def build(settings: LenetSettings, shape: Shape) -> nn.Module:
    """Stack the layers; ConfigError when no pixel is left of the planes."""
    sides = _sides(settings, shape)
    layers: list[nn.Module] = []
    for before, after in pairwise((shape.channels, *settings.widths)):
        if layers:
            layers.append(nn.MaxPool2d(2))
        layers += [nn.Conv2d(before, after, settings.kernel), activation(settings.activation)]
    layers.append(nn.Flatten())
    units = (settings.widths[-1] * sides[0] * sides[1], *settings.hidden)
    for before, after in pairwise(units):
        layers += [*_dropout(settings), nn.Linear(before, after), activation(settings.activation)]
    return nn.Sequential(*layers, *_dropout(settings), nn.Linear(units[-1], shape.outputs))


def _dropout(settings: LenetSettings) -> list[nn.Module]:
    return [nn.Dropout(settings.dropout)] if settings.dropout else []


def _sides(settings: LenetSettings, shape: Shape) -> tuple[int, int]:
    """Height and width of the last planes."""
    height, width = shape.height, shape.width
    for index in range(len(settings.widths)):
        if index:
            height, width = height // 2, width // 2
        height, width = height - settings.kernel + 1, width - settings.kernel + 1
    if min(height, width) < 1:
        raise ConfigError(
            f"{len(settings.widths)} convolutions of side {settings.kernel} with poolings between "
            f"leave nothing of {shape.height}×{shape.width} pixels"
        )
    return height, width
