"""Sentences as ids of words: in Python for training, and as nodes of the exported graph.

A word is what stands between blanks. Id 0 fills a sentence up, 1 is any word that the vocabulary
lacks, and the words follow in order of frequency.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from pipeline.records.ready import words

PADDING, UNKNOWN = 0, 1
RESERVED = 2
"""The ids that are no words."""


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The words that a network knows, and how many of a sentence it reads."""

    words: tuple[str, ...]
    length: int
    _ids: dict[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        ids = {word: RESERVED + rank for rank, word in enumerate(self.words)}
        object.__setattr__(self, "_ids", ids)

    @classmethod
    def of(cls, known: tuple[str, ...], network: Any) -> Self:
        """The most frequent of the words, as many as the network's table of embeddings holds."""
        return cls(known[: network.vocabulary - RESERVED], network.length)

    def encode(self, sentences: Iterable[str] | npt.NDArray[Any]) -> npt.NDArray[np.int64]:
        """Ids of the first words of each sentence, int64 [sentences, length]."""
        rows = [self._encode(str(sentence)) for sentence in sentences]
        return np.array(rows, dtype=np.int64).reshape(len(rows), self.length)

    def _encode(self, sentence: str) -> list[int]:
        ids = [self._ids.get(word, UNKNOWN) for word in words(sentence)[: self.length]]
        return ids + [PADDING] * (self.length - len(ids))
