"""Long short-term memory that reads an image row by row: `name: lstm`.

Hochreiter and Schmidhuber, "Long short-term memory", 1997, with the forget gate of Gers,
Schmidhuber and Cummins, "Learning to forget", 2000. For sentences there is `text_lstm`.
"""

from torch import nn

from pipeline.models import Gives, Shape
from pipeline.models.parts.layers import ImageReader, RowSettings
from pipeline.records.ready import Kind

TAKES: tuple[Kind, ...] = ("image",)
GIVES: Gives = "logits"


def build(settings: RowSettings, shape: Shape) -> nn.Module:
    """The recurrent layers and a linear one."""
    return ImageReader(nn.LSTM, settings, shape)
