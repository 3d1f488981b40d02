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

from serving.runtime.tensors import LOGITS, PROBABILITIES, TensorInfo, is_table

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
    """Which outputs tell the class of a row; both None where none does."""

    label: TensorInfo | None
    """The class by the model's own word, int64 or text: [rows] or [rows, 1]."""
    scores: TensorInfo | None
    """Floats [rows, classes]; without a `label` the class is the largest."""


def class_outputs(outputs: Sequence[TensorInfo], task: Task | None = None) -> ClassOutputs:
    """Judge the outputs of a model; `task` is "classification" where its classes are known."""
    if task == "regression":
        return ClassOutputs(label=None, scores=None)
    tables = [one for one in outputs if is_table(one)]
    scores = _named(tables, SCORE_NAMES)
    if scores is None and task == "classification" and len(tables) == 1:
        scores = tables[0]
    return ClassOutputs(label=_label(outputs, tables, scores), scores=scores)


def are_probabilities(scores: TensorInfo | None) -> bool:
    """Whether scores are probabilities by the model's own word; softmax is never guessed."""
    return scores is not None and _stem(scores.name) in PROBABILITY_NAMES


def _label(
    outputs: Sequence[TensorInfo], tables: Sequence[TensorInfo], scores: TensorInfo | None
) -> TensorInfo | None:
    """The label: by its name, else the only output that can be.

    A number must stand beside scores, as there are other numbers, lengths for instance; a text
    beside any table.
    """
    fitting = [one for one in outputs if one.dtype in LABEL_DTYPES and _one_a_row(one)]
    named = _named(fitting, LABEL_NAMES)
    if named or len(fitting) != 1:
        return named
    return fitting[0] if scores or (tables and fitting[0].is_text) else None


def _one_a_row(output: TensorInfo) -> bool:
    return len(output.shape) == 1 or (len(output.shape) == 2 and output.shape[1] == 1)


def _named(outputs: Iterable[TensorInfo], names: Sequence[str]) -> TensorInfo | None:
    """The output with the first of the names that is there."""
    found = {_stem(one.name): one for one in outputs}
    return next((found[name] for name in names if name in found), None)


def _stem(name: str) -> str:
    """A name without what TensorFlow puts around it: "softmax" of "model/Softmax:0"."""
    return name.lower().removesuffix(":0").rpartition("/")[2]
