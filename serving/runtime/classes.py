"""Which output of a model tells the class of a row: the one judgement, for every command.

    class_outputs(session.outputs, task)

An output *is* the label where it is one number or text a row, and its name or its place beside
scores says so. An output holds the scores of classes where its name says so, as `ferry export` and
the usual converters name it, or where the classes are known otherwise: by labels that the model or
its bundle carries, by labels of the rows, or by the user's word (`--task classification`). A table
of floats alone is never taken for scores: it may be an embedding, a regression, or distances.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from serving.runtime.tensors import LOGITS, PROBABILITIES, Array, TensorInfo, is_table

Task = Literal["classification", "regression"]
"""What the user says of a model: it tells classes, or it tells none."""

PROBABILITY_NAMES = (
    *(PROBABILITIES, "output_probability", "probability", "probs", "prob", "softmax"),
    *("classlabelprobs", "classprobability"),
)
"""How ferry and the usual converters name probabilities, in small letters."""
SCORE_NAMES = (*PROBABILITY_NAMES, LOGITS)
"""The same for all scores whose largest is the class; the first that is there counts."""
LABEL_NAMES = (
    *("label", "output_label", "class_label", "classlabel", "predicted_label"),
    "predicted_class",
)
LABEL_DTYPES = ("int64", "object")


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassOutputs:
    """Which outputs of a model tell the class of a row, and what is known of it.

    Bundles keep it in their manifest, for their runner.
    """

    label: TensorInfo | None
    """The class by the model's own word, int64 or text: [rows] or [rows, 1]; or None."""
    scores: TensorInfo | None
    """Floats [rows, classes], or None; without a `label` the class is the largest."""
    are_probabilities: bool
    """Whether the scores are probabilities by the model's own word; softmax is never guessed."""
    values: tuple[str, ...]
    """What the model calls the class of each column of the scores; none where nobody knows."""

    @property
    def complete(self) -> bool:
        """Whether each row has a class, and each class a score."""
        return self.scores is not None and (self.label is None or bool(self.values))


def class_outputs(
    outputs: Sequence[TensorInfo],
    task: Task | None = None,
    *,
    labels: Sequence[str] | None = None,
    values: Sequence[str] | None = None,
) -> ClassOutputs:
    """Judge the outputs of a model.

    `task` is "classification" where something else says that there are classes, as `labels`, what
    they are called outside, do. `values` is what the graph calls them.
    """
    if task == "regression":
        return ClassOutputs(label=None, scores=None, are_probabilities=False, values=())
    tables = [one for one in outputs if is_table(one)]
    scores = _named(tables, SCORE_NAMES)
    if scores is None and (task or labels) and len(tables) == 1:
        scores = tables[0]
    label = _label(outputs, tables, scores)
    return ClassOutputs(
        label=label,
        scores=scores,
        are_probabilities=scores is not None and _stem(scores.name) in PROBABILITY_NAMES,
        values=_values(label, scores, tuple(labels or ()), tuple(values or ())),
    )


def _values(
    label: TensorInfo | None,
    scores: TensorInfo | None,
    labels: tuple[str, ...],
    values: tuple[str, ...],
) -> tuple[str, ...]:
    if scores is None:
        return ()
    if label and not values:  # a label that is a number is that of its class
        values = labels if label.is_text else tuple(map(str, range(len(labels))))
    columns = scores.shape[1]
    return values if not isinstance(columns, int) or columns == len(values) else ()


def can_be_label(output: TensorInfo) -> bool:
    """Whether an output is one number or text a row."""
    shape = output.shape
    one_a_row = len(shape) == 1 or (len(shape) == 2 and shape[1] == 1)
    return output.dtype in LABEL_DTYPES and one_a_row


def _label(
    outputs: Sequence[TensorInfo], tables: Sequence[TensorInfo], scores: TensorInfo | None
) -> TensorInfo | None:
    """The label: by its name, else the only output that can be.

    A number must stand beside scores, as there are other numbers, lengths for instance; a text
    beside any table.
    """
    fitting = [one for one in outputs if can_be_label(one)]
    named = _named(fitting, LABEL_NAMES)
    if named or len(fitting) != 1:
        return named
    return fitting[0] if scores or (tables and fitting[0].is_text) else None


def _named(outputs: Iterable[TensorInfo], names: Sequence[str]) -> TensorInfo | None:
    """The output with the first of the names that is there."""
    found = {_stem(one.name): one for one in outputs}
    return next((found[name] for name in names if name in found), None)


def _stem(name: str) -> str:
    """A name without what TensorFlow puts around it: "softmax" of "model/Softmax:0"."""
    return name.lower().removesuffix(":0").rpartition("/")[2]


def margins(scores: Array) -> npt.NDArray[np.float64]:
    """How far the largest score of each row, [rows, classes], is above the second: float64 [rows].

    The one logit of two classes stands for the scores of both, itself and its negative, so the
    margin is twice its size. NaN where infinite scores have no difference.
    """
    values = scores.astype(np.float64)
    if values.shape[1] == 1:
        return 2 * np.abs(values[:, 0])
    largest = np.partition(values, -2, axis=1)[:, -2:]
    with np.errstate(invalid="ignore"):
        found: npt.NDArray[np.float64] = largest[:, 1] - largest[:, 0]
    return found
