"""What a trained classifier answers to the test set, row by row, and where it is wrong."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.graph import Graph
from pipeline.ready import Split
from pipeline.records.evaluate import Mistake

__all__ = ["Answers", "answer", "class_accuracy", "mistakes", "most_confident", "worst"]

BATCH = 200
MISTAKES = 8
"""That are told, of each order."""
CHARACTERS = 100
"""Of a sentence that is told."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """The answers to some rows."""

    probabilities: npt.NDArray[np.float64]
    """[rows, classes]."""
    losses: npt.NDArray[np.float64]
    """Cross-entropy of each row in nats, [rows]."""
    labels: npt.NDArray[np.int64]
    """The actual classes, [rows]."""

    @property
    def predicted(self) -> npt.NDArray[np.int64]:
        """The class of the largest probability, [rows]."""
        answered: npt.NDArray[np.int64] = self.probabilities.argmax(axis=1)
        return answered

    @property
    def wrong(self) -> npt.NDArray[np.int64]:
        """The indices of the rows that are answered wrongly."""
        return np.flatnonzero(self.predicted != self.labels)


def answer(graph: Graph, split: Split) -> Answers:
    """Let a classifier answer all rows of a split."""
    logits, _ = graph.answer(split.inputs, BATCH)
    logs = _log_probabilities(logits).numpy()
    labels = np.array(split.labels)
    losses = -logs[np.arange(len(labels)), labels]
    return Answers(probabilities=np.exp(logs), losses=losses, labels=labels)


def class_accuracy(answers: Answers, labels: tuple[str, ...]) -> Mapping[str, float | None]:
    """The part of each class's rows that is answered rightly; None for a class without rows."""
    right = answers.predicted == answers.labels
    found: dict[str, float | None] = {}
    for number, label in enumerate(labels):
        own = answers.labels == number
        found[label] = float(right[own].mean()) if own.any() else None
    return found


def most_confident(answers: Answers) -> npt.NDArray[np.int64]:
    """The wrong rows with the largest probability of what they were taken for, largest first."""
    wrong = answers.wrong
    order = np.argsort(-answers.probabilities.max(axis=1)[wrong], kind="stable")
    return wrong[order][:MISTAKES]


def worst(answers: Answers) -> npt.NDArray[np.int64]:
    """The wrong rows with the largest loss, largest first."""
    wrong = answers.wrong
    return wrong[np.argsort(-answers.losses[wrong], kind="stable")][:MISTAKES]


def mistakes(
    answers: Answers, rows: npt.NDArray[np.int64], split: Split, labels: tuple[str, ...]
) -> tuple[Mistake, ...]:
    """Tell the wrong answers of some rows; sentences are quoted."""
    is_text = split.inputs.dtype.kind == "U"
    return tuple(
        Mistake(
            row=row,
            actual=labels[answers.labels[row]],
            answered=labels[answers.predicted[row]],
            probability=float(answers.probabilities[row].max()),
            loss=float(answers.losses[row]),
            text=str(split.inputs[row])[:CHARACTERS] if is_text else None,
        )
        for row in rows.tolist()
    )


def _log_probabilities(logits: Tensor) -> Tensor:
    """Float64 [batch, classes], of one logit per class or of the second class's alone.

    From the logits, not from the probabilities: those of a very wrong answer are 0 in float32.
    """
    wide = logits.double()
    if wide.shape[1] == 1:
        wide = torch.cat([torch.zeros_like(wide), wide], dim=1)
    return wide.log_softmax(dim=1)
