"""What the outputs of a model are by their names and shapes, and the labels that it carries.

`serving.model` runs it. The names are those that `ferry export` gives.

What a classifier says of some rows: scores, the class with the highest one, and its name.

`serving.model` makes it; `serving.batch.answers` writes it out in columns.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from serving.errors import ModelError
from serving.runtime.tensors import TensorInfo

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


FLOATS = ("float32", "float16", "float64")
LOGITS = "logits"
RECONSTRUCTION, ERROR = "reconstruction", "error"


def is_reconstruction(outputs: Sequence[TensorInfo]) -> bool:
    """Whether they are what an autoencoder gives: the rows again, and how far off each is."""
    return {RECONSTRUCTION, ERROR} <= {info.name for info in outputs}


def scores_of(outputs: Sequence[TensorInfo]) -> TensorInfo | None:
    """The output with the scores: `probabilities`, else `logits`, else the only one that can be."""
    tables = {info.name: info for info in outputs if _is_table(info)}
    for name in (PROBABILITIES, LOGITS):
        if name in tables:
            return tables[name]
    return next(iter(tables.values())) if len(tables) == 1 else None


def no_scores(outputs: Sequence[TensorInfo]) -> str:
    """Why none of them holds scores."""
    message = ", ".join(f"{info.name} {info.dtype} {list(info.shape)}" for info in outputs)
    return (
        f"of its outputs ({message}) none is named {PROBABILITIES} or {LOGITS}, and not exactly "
        f"one is a float [batch, classes]"
    )


def labels_of(path: Path, metadata: Mapping[str, str]) -> tuple[str, ...] | None:
    """The class names that an exported model carries, or None; ModelError for what is none."""
    text = metadata.get("ferry.labels")
    if text is None:
        return None
    try:
        labels = json.loads(text)
    except ValueError as error:
        raise ModelError(f"{path}: its ferry.labels is not JSON: {text[:60]!r}") from error
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise ModelError(f"{path}: its ferry.labels is not a list of names: {text[:60]!r}")
    if len(set(labels)) != len(labels):
        raise ModelError(f"{path}: two of its classes have the same label")
    return tuple(labels)


def _is_table(info: TensorInfo) -> bool:
    return info.dtype in FLOATS and len(info.shape) == 2 and info.shape[1] != 1
