"""A residual network for small images: `name: resnet`, with the width of each stack of blocks.

With widths 16, 32 and 64 and one block in each it is the ResNet-8 of the image classification task
in MLPerf Tiny (Banbury et al., "MLPerf Tiny Benchmark", 2021). The blocks are those of He, Zhang,
Ren and Sun, "Deep residual learning for image recognition", 2015, with a projection (their B).
"""

from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor, nn

from pipeline.config.experiment import Count, Counts, Fraction, StrictSettings
from pipeline.models import Gives, Shape
from pipeline.models.parts.layers import Activation, activation
from pipeline.records.ready import Kind

TAKES: tuple[Kind, ...] = ("image",)
GIVES: Gives = "logits"


@dataclass(frozen=True, slots=True, kw_only=True)
class ResnetSettings(StrictSettings):
    """Its section of params.yaml."""

    widths: Counts
    """Channels of each stack; every stack but the first halves the planes."""
    blocks: Count
    """Residual blocks of each stack."""
    activation: Activation
    dropout: Fraction
    """Before the linear layer."""


class ResidualBlock(nn.Module):
    """Two 3×3 convolutions, each normalised, whose result is added to what came in."""

    def __init__(self, before: int, after: int, stride: int, name: Activation) -> None:
        super().__init__()
        self.first = _convolution(before, after, 3, stride)
        self.between = activation(name)
        self.second = _convolution(after, after, 3, 1)
        same = before == after and stride == 1
        self.shortcut = nn.Identity() if same else _convolution(before, after, 1, stride)
        self.after = activation(name)

    def forward(self, planes: Tensor) -> Tensor:
        """Float32 [batch, before, H, W] to [batch, after, H/stride, W/stride], rounded up."""
        change = self.second(self.between(self.first(planes)))
        answer: Tensor = self.after(change + self.shortcut(planes))
        return answer


def build(settings: ResnetSettings, shape: Shape) -> nn.Module:
    """A convolution, the stacks, the mean of each plane and a linear layer."""
    width = settings.widths[0]
    layers: list[nn.Module] = [
        _convolution(shape.channels, width, 3, 1),
        activation(settings.activation),
    ]
    for stack, (before, after) in enumerate(pairwise((width, *settings.widths))):
        for block in range(settings.blocks):
            first = block == 0
            stride = 2 if first and stack else 1
            layers.append(
                ResidualBlock(before if first else after, after, stride, settings.activation)
            )
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    if settings.dropout:
        layers.append(nn.Dropout(settings.dropout))
    return nn.Sequential(*layers, nn.Linear(settings.widths[-1], shape.outputs))


def _convolution(before: int, after: int, kernel: int, stride: int) -> nn.Module:
    """A convolution and its batch normalisation; its weights start as He et al. draw them."""
    conv = nn.Conv2d(before, after, kernel, stride, padding=kernel // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(conv, nn.BatchNorm2d(after))
