"""A plain convolutional network: `name: cnn`, with one entry per block in each list of settings.

A linear layer gives the logits, of the flattened planes of the last block or of their averages.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor, nn

from pipeline.config.experiment import Counts, Fraction, StrictSettings
from pipeline.errors import ConfigError
from pipeline.models import Gives, Shape
from pipeline.models.parts.layers import NEVER_FALLING, Activation, activation
from pipeline.records.ready import Kind

TAKES: tuple[Kind, ...] = ("image",)
GIVES: Gives = "logits"


@dataclass(frozen=True, slots=True, kw_only=True)
class CnnSettings(StrictSettings):
    """Its section of params.yaml."""

    widths: Counts
    """Output channels of each block."""
    kernels: Counts
    """Side of each block's kernel, odd: the planes keep their size."""
    pools: Annotated[tuple[bool, ...], Field(min_length=1)]
    """Whether each block ends by halving its planes."""
    activation: Activation
    head: Literal["flatten", "average"]
    """What the linear layer sees: every value of the last planes, or one mean of each plane."""
    dropout: Fraction
    """Of whole planes, before the linear layer."""


class ConvBlock(nn.Module):
    """Convolution, batch normalisation, activation and, where asked, a 2×2 max pooling.

    Normalisation only shifts and scales upwards, so that it and an activation that never falls
    commute with the maximum. In training the pooling then comes first, and they have a quarter of
    the values to go through; to be served it comes last, and they melt into the convolution. The
    answer is the same.
    """

    def __init__(
        self, before: int, after: int, kernel: int, *, pool: bool, name: Activation
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(before, after, kernel, padding=kernel // 2, bias=False)
        self.norm = nn.BatchNorm2d(after)
        self.norm.weight.requires_grad_(False)  # it stays 1: a negative scale would not commute
        self.activation = activation(name)
        self.pool = nn.MaxPool2d(2) if pool else nn.Identity()
        self.commutes = name in NEVER_FALLING

    def forward(self, planes: Tensor) -> Tensor:
        """Float32 [batch, before, H, W] to [batch, after, H or H/2, W or W/2]."""
        convolved = self.conv(planes)
        if self.training and self.commutes:
            pooled: Tensor = self.activation(self.norm(self.pool(convolved)))
            return pooled
        served: Tensor = self.pool(self.activation(self.norm(convolved)))
        return served


def build(settings: CnnSettings, shape: Shape) -> nn.Module:
    """Stack the blocks; ConfigError when the lists differ in length or the planes vanish."""
    _check(settings, shape)
    layers: list[nn.Module] = []
    channels, height, width = shape.channels, shape.height, shape.width
    for after, kernel, pool in zip(settings.widths, settings.kernels, settings.pools, strict=True):
        layers.append(ConvBlock(channels, after, kernel, pool=pool, name=settings.activation))
        channels = after
        if pool:
            height, width = height // 2, width // 2
    if settings.head == "average":
        layers.append(nn.AdaptiveAvgPool2d(1))
        height, width = 1, 1
    if settings.dropout:
        layers.append(nn.Dropout2d(settings.dropout))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * height * width, shape.outputs))


def _check(settings: CnnSettings, shape: Shape) -> None:
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
