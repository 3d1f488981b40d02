"""A plain convolutional network: `name: cnn`, with one entry per block in each list of settings.

A linear layer on the flattened planes of the last block gives the logits.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import ConfigDict, Field
from torch import Tensor, nn

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
    """Of whole planes, before the linear layer."""


class Block(nn.Module):
    """Convolution, batch normalisation, ReLU and, where asked, a 2×2 max pooling.

    Normalisation only shifts and scales upwards, so that it and ReLU commute with the maximum. In
    training the pooling comes first, and they have a quarter of the values to go through; to be
    served it comes last, and they melt into the convolution. The answer is the same.
    """

    def __init__(self, before: int, after: int, kernel: int, *, pool: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(before, after, kernel, padding=kernel // 2, bias=False)
        self.norm = nn.BatchNorm2d(after)
        self.norm.weight.requires_grad_(False)  # it stays 1: a negative scale would not commute
        self.relu = nn.ReLU(inplace=True)
        self.pool = nn.MaxPool2d(2) if pool else nn.Identity()

    def forward(self, planes: Tensor) -> Tensor:
        """Float32 [batch, before, H, W] to [batch, after, H or H/2, W or W/2]."""
        convolved = self.conv(planes)
        if self.training:
            pooled: Tensor = self.relu(self.norm(self.pool(convolved)))
            return pooled
        served: Tensor = self.pool(self.relu(self.norm(convolved)))
        return served


def build(settings: Settings, shape: Shape) -> nn.Module:
    """Stack the blocks; ConfigError when the lists differ in length or the planes vanish."""
    _check(settings, shape)
    layers: list[nn.Module] = []
    channels, height, width = shape.channels, shape.height, shape.width
    for after, kernel, pool in zip(settings.widths, settings.kernels, settings.pools, strict=True):
        layers.append(Block(channels, after, kernel, pool=pool))
        channels = after
        if pool:
            height, width = height // 2, width // 2
    if settings.dropout:
        layers.append(nn.Dropout2d(settings.dropout))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * height * width, shape.classes))


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
