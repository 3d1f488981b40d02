"""A plain convolutional network: `name: cnn`, with one entry per block in each list of settings.

A block is convolution, batch normalisation, ReLU and, where asked, a 2×2 max pooling; a linear
layer on the flattened planes of the last block gives the logits.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import ConfigDict, Field
from torch import nn

from pipeline.config import STRICT, Counts, Fraction
from pipeline.errors import ConfigError
from pipeline.models import Shape

__all__ = ["Settings", "build"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Its section of params.yaml."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    widths: Counts
    """Output channels of each block."""
    kernels: Counts
    """Side of each block's kernel, odd: the planes keep their size."""
    pools: Annotated[tuple[bool, ...], Field(min_length=1)]
    """Whether each block ends by halving its planes."""
    dropout: Fraction
    """Before the linear layer."""


def build(settings: Settings, shape: Shape) -> nn.Module:
    """Stack the blocks; ConfigError when the lists differ in length or the planes vanish."""
    _check(settings, shape)
    layers: list[nn.Module] = []
    channels, height, width = shape.channels, shape.height, shape.width
    for after, kernel, pool in zip(settings.widths, settings.kernels, settings.pools, strict=True):
        layers += block(channels, after, kernel, pool=pool)
        channels = after
        if pool:
            height, width = height // 2, width // 2
    head = nn.Linear(channels * height * width, shape.classes)
    return nn.Sequential(*layers, nn.Flatten(), nn.Dropout(settings.dropout), head)


def block(before: int, after: int, kernel: int, *, pool: bool) -> list[nn.Module]:
    """The layers of one block."""
    layers: list[nn.Module] = [
        nn.Conv2d(before, after, kernel, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(after),
        nn.ReLU(),
    ]
    return [*layers, nn.MaxPool2d(2)] if pool else layers


def _check(settings: Settings, shape: Shape) -> None:
    lengths = len(settings.widths), len(settings.kernels), len(settings.pools)
    if len(set(lengths)) > 1:
        raise ConfigError(
            "widths, kernels and pools must be equally long, got {}, {} and {}".format(*lengths)
        )
    if even := [kernel for kernel in settings.kernels if kernel % 2 == 0]:
        raise ConfigError(f"kernels must be odd, got {even[0]}")
    if min(shape.height, shape.width) >> sum(settings.pools) == 0:
        raise ConfigError(
            f"{sum(settings.pools)} poolings leave nothing of {shape.height}×{shape.width} pixels"
        )
