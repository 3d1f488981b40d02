"""The answers of a model as named columns, which is what `ferry predict` writes.

A classifier gives a label and its score, any other model its outputs as they are; one of them may
be the label by the model's own word.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from serving.errors import UsageError
from serving.inputs.sources import NumberedIds
from serving.model import ERROR, PREDICTION, RECONSTRUCTION, Model, Prediction
from serving.runtime.tensors import Array

Column = Array | NumberedIds
"""An array of [rows] or, for a list a row, of [rows, ...], where text is object; or ids."""
Columns = dict[str, Column]
"""The columns by name, in order."""

ID, LABEL = "id", "label"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a model says of some rows."""

    columns: Columns
    finite: npt.NDArray[np.bool_]
    """Whether all numbers of each row are finite, bool [rows]."""

    def finite_columns(self) -> Columns:
        """The columns of the rows whose numbers are; another has no highest one, nor would JSON."""
        if self.finite.all():
            return self.columns
        return {name: _kept(values, self.finite) for name, values in self.columns.items()}


def answer(
    model: Model,
    ids: Sequence[str],
    rows: Array,
    *,
    batch_rows: int | None = None,
    parallel: int = 1,
    all_classes: bool = False,
    top_k: int | None = None,
) -> Answer:
    """Run rows in batches of `batch_rows`, `parallel` at a time; by default all rows at once.

    A classifier gives id, label, label_index, probability (score where it is none), with `top_k`
    the best classes and their scores as lists, best first, and with `all_classes` one column per
    class; a reconstruction id, error and reconstruction; a regression id and each target; any other
    model id and its outputs in their order, after the label if one of them is that. Raises what
    `Model.predict` and `Model.answers` raise, and UsageError for a `top_k` of more classes than
    there are.
    """
    size = batch_rows or len(rows)
    columns: Columns = {ID: ids if isinstance(ids, NumberedIds) else np.array(ids, object)}
    if model.kind == "classifier":
        prediction = model.predict(rows, batch_rows=size, parallel=parallel)
        columns |= _classes(prediction, all_classes=all_classes, top_k=top_k)
        return Answer(columns=columns, finite=_finite([prediction.scores], len(rows)))
    outputs = model.answers(rows, batch_rows=size, parallel=parallel)
    if model.classes.label:
        columns[LABEL] = outputs.pop(model.classes.label.name).reshape(-1)
    if model.targets:
        outputs = dict(zip(model.targets, outputs[PREDICTION].T.copy(), strict=True))
    first = [ERROR, RECONSTRUCTION] if model.kind == "reconstruction" else []
    for name in dict.fromkeys([*first, *outputs]):
        columns[f"output_{name}" if name in columns else name] = outputs[name]
    return Answer(columns=columns, finite=_finite(outputs.values(), len(rows)))


def _kept(values: Column, kept: npt.NDArray[np.bool_]) -> Array:
    whole = np.array(values[:], object) if isinstance(values, NumberedIds) else values
    return whole[kept]


def _classes(prediction: Prediction, *, all_classes: bool, top_k: int | None) -> Columns:
    score = "probability" if prediction.are_probabilities else "score"
    names = np.array(prediction.labels, object)
    columns: Columns = {
        LABEL: names[prediction.label_index],
        "label_index": prediction.label_index,
        score: prediction.score,
    }
    if top_k:
        classes = len(prediction.labels)
        if top_k > classes:
            raise UsageError(
                f"--top-k must be at most {classes}, the classes there are, got {top_k}"
            )
        # Best first, and of equal ones the first.
        best = np.argsort(-prediction.scores, axis=1, kind="stable")[:, :top_k]
        columns["top_labels"] = names[best]
        several = "probabilities" if prediction.are_probabilities else "scores"
        columns[f"top_{several}"] = np.take_along_axis(prediction.scores, best, axis=1)
    if all_classes:
        for index, label in enumerate(prediction.labels):
            columns[f"{score}_{label}"] = prediction.scores[:, index]
    return columns


def _finite(arrays: Iterable[Array], rows: int) -> npt.NDArray[np.bool_]:
    """Whether all numbers of each row are finite, bool [rows]."""
    finite = np.ones(rows, np.bool_)
    for array in arrays:
        if array.dtype.kind == "f":
            finite &= np.isfinite(array.reshape(rows, -1)).all(axis=1)
    return finite
