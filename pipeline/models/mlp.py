"""A multi-layer perceptron: `name: mlp`, with the widths of its hidden layers.

Without any it is the linear model: for one output, a single unit.
"""

from dataclasses import dataclass
from itertools import pairwise

from torch import nn

from pipeline.config.experiment import Fraction, StrictSettings
from pipeline.models import Gives, Shape
from pipeline.models.parts.layers import Activation, Widths, activation
from pipeline.records.ready import Kind

TAKES: tuple[Kind, ...] = ("image", "table")
GIVES: Gives = "logits"


@dataclass(frozen=True, slots=True, kw_only=True)
class MlpSettings(StrictSettings):
    """Its section of params.yaml."""

    hidden: Widths
    """Units of each hidden layer."""
    activation: Activation
    dropout: Fraction
    """After each hidden layer."""


def build(settings: MlpSettings, shape: Shape) -> nn.Module:
    """Linear layers over the flattened row, with the activation between them."""
    widths = (shape.features, *settings.hidden)
    layers: list[nn.Module] = [nn.Flatten()]
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), activation(settings.activation)]
        if settings.dropout:
            layers.append(nn.Dropout(settings.dropout))
    return nn.Sequential(*layers, nn.Linear(widths[-1], shape.outputs))
