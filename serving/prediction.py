"""What a classifier says of some rows: scores, the class with the highest one, and its name.

`serving.model` makes it; `serving.answers` writes it out in columns.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from serving.errors import ModelError

__all__ = ["PROBABILITIES", "Prediction"]

PROBABILITIES = "probabilities"


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """The answers to some rows."""

    labels: tuple[str, ...]
    """The name of every class."""
    label_index: npt.NDArray[np.int64]
    """int64 [rows], the class with the highest score."""
    scores: npt.NDArray[np.float32]
    """float32 [rows, classes], as the model gave them."""
    are_probabilities: bool
    """Whether the scores are the output named `probabilities`; softmax is never guessed."""

    def __len__(self) -> int:
        return len(self.label_index)

    @property
    def label(self) -> list[str]:
        """The name of each row's class."""
        return [self.labels[index] for index in self.label_index]

    @property
    def score(self) -> npt.NDArray[np.float32]:
        """float32 [rows], of each row's class."""
        return self.scores[np.arange(len(self)), self.label_index]

    @property
    def probabilities(self) -> npt.NDArray[np.float32]:
        """float32 [rows, classes]; ModelError when the model gives scores of another kind."""
        if not self.are_probabilities:
            raise ModelError(
                f"the model has no output named {PROBABILITIES!r}; `scores` holds what it gives"
            )
        return self.scores

    @property
    def probability(self) -> npt.NDArray[np.float32]:
        """float32 [rows], of each row's class; ModelError when there are only scores."""
        return self.probabilities[np.arange(len(self)), self.label_index]
