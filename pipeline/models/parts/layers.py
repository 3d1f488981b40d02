"""Layers that several architectures share: activations, and stacks of recurrent layers."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Final, Literal

from torch import Tensor, nn

from pipeline.config.experiment import Count, Counts, Fraction, StrictSettings
from pipeline.models import Shape

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


Cell = type[nn.LSTM] | type[nn.GRU]


@dataclass(frozen=True, slots=True, kw_only=True)
class RowSettings(StrictSettings):
    """The section of params.yaml of a network that reads images row by row."""

    hidden: Counts
    """Units of each recurrent layer; each reads all states of the one below."""
    dropout: Fraction
    """After each recurrent layer."""


class Stack(nn.Module):
    """Recurrent layers of one cell, each with its own width, and dropout after each."""

    def __init__(self, cell: Cell, widths: tuple[int, ...], dropout: float) -> None:
        """`widths` begins with the features of a step."""
        super().__init__()
        self.layers = nn.ModuleList(
            cell(before, after, batch_first=True) for before, after in pairwise(widths)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, steps: Tensor) -> Tensor:
        """Float32 [batch, steps, features] to the last layer's states, [batch, steps, units]."""
        for layer in self.layers:
            steps = self.dropout(layer(steps)[0])
        return steps


class ImageReader(nn.Module):
    """Each row of pixels is one step; the state after the last row gives the logits."""

    def __init__(self, cell: Cell, settings: RowSettings, shape: Shape) -> None:
        super().__init__()
        features = shape.channels * shape.width
        self.stack = Stack(cell, (features, *settings.hidden), settings.dropout)
        self.linear = nn.Linear(settings.hidden[-1], shape.outputs)

    def forward(self, planes: Tensor) -> Tensor:
        """Float32 [batch, C, H, W] to logits [batch, outputs]."""
        steps = planes.transpose(1, 2).flatten(start_dim=2)
        logits: Tensor = self.linear(self.stack(steps)[:, -1])
        return logits
