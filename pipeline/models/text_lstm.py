"""Long short-term memory over the words of a sentence: `name: text_lstm`.

The state after the last word gives the logits; what fills the sentence up is never read.
"""

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from pipeline.config.experiment import LARGEST, Count, Counts, Fraction, StrictSettings
from pipeline.models import Gives, Shape
from pipeline.models.parts.layers import Stack
from pipeline.models.parts.vocabulary import PADDING, UNKNOWN
from pipeline.records.ready import Kind

TAKES: tuple[Kind, ...] = ("text",)
GIVES: Gives = "logits"
SPREAD = 0.1
"""Standard deviation of the first embeddings: a word that training hardly sees keeps its own."""
FORGET = 1
"""Place of the forget gate among torch's four: input, forget, cell, output."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TextLstmSettings(StrictSettings):
    """Its section of params.yaml."""

    vocabulary: Annotated[int, Field(ge=UNKNOWN + 2, le=LARGEST)]
    """Rows of the table of embeddings: the most frequent words, the padding and the unknown."""
    length: Count
    """Words of a sentence that are read."""
    embedding: Count
    """Values that stand for a word."""
    hidden: Counts
    """Units of each recurrent layer."""
    dropout: Fraction
    """Of the embeddings' values and after each recurrent layer."""
    word_dropout: Fraction
    """Of words in training, which are then read as unknown."""


class TextLstm(nn.Module):
    """Embeddings, recurrent layers, and a linear layer over the state of the last word."""

    def __init__(self, settings: TextLstmSettings, outputs: int) -> None:
        super().__init__()
        self.vocabulary = settings.vocabulary
        self.length = settings.length
        self.word_dropout = settings.word_dropout
        self.embedding = nn.Embedding(settings.vocabulary, settings.embedding, padding_idx=PADDING)
        self.dropout = nn.Dropout(settings.dropout)
        self.stack = Stack(nn.LSTM, (settings.embedding, *settings.hidden), settings.dropout)
        self.linear = nn.Linear(settings.hidden[-1], outputs)
        self._first_weights()

    @torch.no_grad()
    def _first_weights(self) -> None:
        """Let the recurrent layers remember at first, and rare words say little.

        A forget gate that starts open: Jozefowicz, Zaremba and Sutskever, "An empirical exploration
        of recurrent network architectures", 2015.
        """
        self.embedding.weight.mul_(SPREAD)
        for key, parameter in self.stack.named_parameters():
            if key.endswith("bias_ih_l0"):
                parameter.view(4, -1)[FORGET] += 1

    def forward(self, ids: Tensor) -> Tensor:
        """Ids of words, int64 [batch, length], to logits [batch, outputs]."""
        # A sentence without words is read as one of padding.
        words = (ids != PADDING).sum(dim=1).clamp(min=1)
        if self.training:
            ids = self._dropped(ids)
        states = self.stack(self.dropout(self.embedding(ids)))
        last = (words - 1).view(-1, 1, 1).expand(-1, 1, states.shape[2])
        logits: Tensor = self.linear(states.gather(1, last).squeeze(1))
        return logits

    def _dropped(self, ids: Tensor) -> Tensor:
        if not self.word_dropout:
            return ids
        chosen = torch.rand(ids.shape, device=ids.device) < self.word_dropout
        return ids.masked_fill(chosen & (ids != PADDING), UNKNOWN)


def build(settings: TextLstmSettings, shape: Shape) -> nn.Module:
    """The network, whose `vocabulary` and `length` say what it reads."""
    return TextLstm(settings, shape.outputs)
