"""A convolutional autoencoder: `name: autoencoder`, which learns to draw its images again.

What it has not learnt to draw comes back with a large error: so outliers are found among images.
"""

from dataclasses import dataclass
from itertools import pairwise
from math import prod, sqrt

from torch import nn

from pipeline.config.experiment import Counts, NaturalNumber, StrictSettings
from pipeline.errors import ConfigError
from pipeline.models import Gives, Shape
from pipeline.models.parts.layers import Activation, activation
from pipeline.records.ready import Kind

TAKES: tuple[Kind, ...] = ("image",)
GIVES: Gives = "reconstruction"


@dataclass(frozen=True, slots=True, kw_only=True)
class AutoencoderSettings(StrictSettings):
    """Its section of params.yaml."""

    widths: Counts
    """Channels of each convolution of the encoder, which halves the planes after it."""
    code: NaturalNumber
    """Planes of the narrowest place, between encoder and decoder; 0 leaves it out."""
    activation: Activation


def build(settings: AutoencoderSettings, shape: Shape) -> nn.Module:
    """Encoder and decoder, pixels from 0 to 1 in and out; ConfigError when sides do not halve."""
    _check(settings, shape)
    layers: list[nn.Module] = []
    for before, after in pairwise((shape.channels, *settings.widths)):
        convolution = _drawn(nn.Conv2d(before, after, 3, padding=1))
        layers += [convolution, activation(settings.activation), nn.MaxPool2d(2)]
    if settings.code:
        deepest = settings.widths[-1]
        narrow = _drawn(nn.Conv2d(deepest, settings.code, 1))
        wide = _drawn(nn.Conv2d(settings.code, deepest, 1))
        layers += [narrow, wide, activation(settings.activation)]
    for before, after in pairwise((*settings.widths[::-1], shape.channels)):
        doubled = nn.ConvTranspose2d(before, after, 4, stride=2, padding=1)
        layers += [_drawn(doubled), activation(settings.activation)]
    return nn.Sequential(*layers[:-1], nn.Sigmoid())


def _drawn(layer: nn.Conv2d | nn.ConvTranspose2d) -> nn.Module:
    """The layer with first weights that keep the spread of its values (He et al., 2015).

    As torch draws them the planes start faint, and before the weights have grown the shift of the
    last layer has made every pixel black, where the sigmoid is flat and nothing is learnt any more.
    """
    # Only one in stride² of a transposed kernel's values meets each pixel.
    values = layer.in_channels * prod(layer.kernel_size)
    met = values / prod(layer.stride) if layer.transposed else values
    nn.init.normal_(layer.weight, std=sqrt(2 / met))
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def _check(settings: AutoencoderSettings, shape: Shape) -> None:
    divisor = 2 ** len(settings.widths)
    if shape.height % divisor or shape.width % divisor:
        raise ConfigError(
            f"{len(settings.widths)} widths halve the planes as often: both sides must be "
            f"divisible by {divisor}, got {shape.height}×{shape.width} pixels"
        )
