"""Gated recurrent units that read an image row by row: `name: gru`.

Cho et al., "Learning phrase representations using RNN encoder-decoder for statistical machine
translation", 2014.
"""

from torch import nn

from pipeline.models import Gives, Shape
from pipeline.models.parts.layers import ImageReader, RowSettings
from pipeline.records.ready import Kind

TAKES: tuple[Kind, ...] = ("image",)
GIVES: Gives = "logits"


def build(settings: RowSettings, shape: Shape) -> nn.Module:
    """The recurrent layers and a linear one."""
    return ImageReader(nn.GRU, settings, shape)
