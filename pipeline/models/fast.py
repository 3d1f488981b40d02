"""A network that learns small colour images in seconds on one GPU: `name: fast`.

It gathers ideas of the short CIFAR-10 recipes (Page, "How to train your ResNet", 2018; Jordan,
"94% on CIFAR-10 in 3.29 seconds on a single GPU", 2024): a first layer that whitens patches and is
computed instead of trained, few wide blocks, shifts that learn faster than weights, and the mean
over several views of a row when it is served.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.config.experiment import Count, Counts, NaturalNumber, PositiveNumber, StrictSettings
from pipeline.errors import ConfigError
from pipeline.models import Gives, Shape
from pipeline.models.parts.layers import Activation, activation
from pipeline.records.ready import Kind

TAKES: tuple[Kind, ...] = ("image",)
GIVES: Gives = "logits"
SHIFT_GAIN = 8.0
"""What each normalisation multiplies its shift by: its steps grow by the square, 64."""
FLATTEST = 5e-4
"""Added to the variance along each direction of the patches, so that noise is not blown up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FastSettings(StrictSettings):
    """Its section of params.yaml."""

    whiten: Count
    """Side of the patches that the first layer whitens."""
    widths: Counts
    """Channels of each block; each halves the planes."""
    depth: Literal[2, 3]
    """Convolutions of each block; a third one is added to the first one's result."""
    activation: Activation
    scale: PositiveNumber
    """What the logits are multiplied by."""
    mirror: bool
    """Whether a row is also seen from the other side when it is served."""
    shift: NaturalNumber
    """Pixels by which a row is also seen up left and down right when it is served; 0: not."""


class Whitening(nn.Module):
    """A convolution whose filters are the main directions of patches, each divided by its spread.

    Its weights are given by `initialise` and never trained; only its shifts are.
    """

    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__()
        size = channels * kernel * kernel
        self.planes = 2 * size
        self.conv = nn.Conv2d(channels, self.planes, kernel)
        self.conv.weight.requires_grad_(False)

    @torch.no_grad()
    def initialise(self, planes: Tensor) -> None:
        """Compute the filters of float32 [rows, C, H, W], and their negatives.

        Principal component whitening of their second moments, as in Kessy, Lewin and Strimmer,
        "Optimal whitening and decorrelation", 2018.
        """
        kernel = self.conv.kernel_size
        patches = functional.unfold(planes.float(), kernel[0]).transpose(1, 2).flatten(end_dim=1)
        moments = (patches.T @ patches / len(patches)).double().cpu()
        variances, directions = torch.linalg.eigh(moments)
        filters = (directions / (variances + FLATTEST).sqrt()).T.flip(0)
        both = torch.cat([filters, -filters]).view(self.conv.weight.shape)
        self.conv.weight.copy_(both)

    def forward(self, planes: Tensor) -> Tensor:
        """Float32 [batch, C, H, W] to [batch, planes, H - kernel + 1, W - kernel + 1]."""
        whitened: Tensor = self.conv(planes)
        return whitened


class Norm(nn.Module):
    """Batch normalisation without a learnt scale, whose shift takes large steps."""

    mean: Tensor
    variance: Tensor
    scale: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(width))
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("variance", torch.ones(width))
        # torch's CUDA kernel for channels last gives a shift without a scale no gradient.
        self.register_buffer("scale", torch.ones(width), persistent=False)

    def forward(self, planes: Tensor) -> Tensor:
        """Float32 [batch, width, H, W] to the same; the statistics keep 0.6 of their last value."""
        return functional.batch_norm(
            planes,
            self.mean,
            self.variance,
            self.scale,
            self.shift * SHIFT_GAIN,
            training=self.training,
            momentum=0.4,
        )


class WideBlock(nn.Module):
    """Two or three 3×3 convolutions; the planes are halved after the first."""

    def __init__(self, before: int, after: int, settings: FastSettings) -> None:
        super().__init__()
        widths = (before, *[after] * settings.depth)
        self.convs = nn.ModuleList(_convolution(*pair) for pair in pairwise(widths))
        self.norms = nn.ModuleList(Norm(after) for _ in range(settings.depth))
        self.pool = nn.MaxPool2d(2)
        self.activation = activation(settings.activation)

    def forward(self, planes: Tensor) -> Tensor:
        """Float32 [batch, before, H, W] to [batch, after, H/2, W/2]."""
        first = planes = self.activation(self.norms[0](self.pool(self.convs[0](planes))))
        for conv, norm in zip(self.convs[1:-1], self.norms[1:-1], strict=True):
            planes = self.activation(norm(conv(planes)))
        planes = self.norms[-1](self.convs[-1](planes))
        if len(self.convs) > 2:
            planes = planes + first
        answer: Tensor = self.activation(planes)
        return answer


class Fast(nn.Module):
    """Whitening, blocks, the maximum of each plane and a scaled linear layer."""

    def __init__(self, settings: FastSettings, shape: Shape) -> None:
        super().__init__()
        self.settings = settings
        self.whitening = Whitening(shape.channels, settings.whiten)
        self.activation = activation(settings.activation)
        widths = (self.whitening.planes, *settings.widths)
        self.blocks = nn.Sequential(*(WideBlock(*pair, settings) for pair in pairwise(widths)))
        self.linear = nn.Linear(settings.widths[-1], shape.outputs, bias=False)

    def initialise(self, planes: Tensor) -> None:
        """Compute the whitening of some thousand standardised rows, float32 [rows, C, H, W]."""
        self.whitening.initialise(planes)

    def forward(self, planes: Tensor) -> Tensor:
        """Float32 [batch, C, H, W] to logits [batch, outputs], of all views if served."""
        if self.training:
            return self._logits(planes)
        views = torch.stack(self._views(planes), dim=1)
        # All in one batch, so that the exported graph holds each layer once.
        logits = self._logits(views.flatten(end_dim=1))
        mean: Tensor = logits.unflatten(0, (-1, views.shape[1])).mean(dim=1)
        return mean

    def _logits(self, planes: Tensor) -> Tensor:
        seen = self.blocks(self.activation(self.whitening(planes)))
        logits: Tensor = self.linear(seen.amax(dim=(2, 3))) * self.settings.scale
        return logits

    def _views(self, planes: Tensor) -> list[Tensor]:
        """The rows as they are, moved and mirrored."""
        views = [planes]
        if by := self.settings.shift:
            height, width = planes.shape[2:]
            padded = functional.pad(planes, (by, by, by, by), mode="replicate")
            views += [padded[..., 2 * by :, 2 * by :], padded[..., :height, :width]]
        if self.settings.mirror:
            views += [view.flip(3) for view in views]
        return views


def build(settings: FastSettings, shape: Shape) -> nn.Module:
    """The network, to be given rows once by `initialise`; ConfigError when the planes vanish."""
    side = min(shape.height, shape.width)
    if side - settings.whiten + 1 >> len(settings.widths) < 1:
        raise ConfigError(
            f"patches of side {settings.whiten} and {len(settings.widths)} halvings leave nothing "
            f"of {shape.height}×{shape.width} pixels"
        )
    return Fast(settings, shape)


def _convolution(before: int, after: int) -> nn.Module:
    """A 3×3 convolution that at first hands on as many planes as it can, unchanged."""
    conv = nn.Conv2d(before, after, 3, padding=1, bias=False)
    nn.init.dirac_(conv.weight[: min(before, after)].detach())
    return conv
