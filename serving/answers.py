"""The answers of a model as named columns, which is what `ferry predict` writes.

A classifier gives a label and its score, any other model its outputs as they are.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from serving.model import ERROR, RECONSTRUCTION, Model
from serving.prediction import Prediction

__all__ = ["Columns", "answer"]

Array = npt.NDArray[Any]
Columns = dict[str, Array]
"""By name, in order: arrays of [rows] or, for a list a row, of [rows, ...]; text is object."""

ID = "id"


def answer(
    model: Model, ids: list[str], rows: Array, *, all_classes: bool = False
) -> tuple[Columns, npt.NDArray[np.bool_]]:
    """Run one batch; its columns, and whether each row's numbers are finite.

    A classifier gives id, label, label_index, probability (score where it is none) and, with
    `all_classes`, one column per class; a reconstruction id, error and reconstruction; any other
    model id and its outputs in their order. Raises what `Model.predict` and `Model.answers` raise.
    """
    columns: Columns = {ID: np.array(ids, object)}
    if model.kind == "classifier":
        prediction = model.predict(rows, batch_rows=len(rows))
        classes = _classes(prediction, all_classes=all_classes)
        return columns | classes, _finite([prediction.scores], len(rows))
    outputs = model.answers(rows, batch_rows=len(rows))
    first = [ERROR, RECONSTRUCTION] if model.kind == "reconstruction" else []
    for name in dict.fromkeys([*first, *outputs]):
        columns[f"output_{name}" if name == ID else name] = outputs[name]
    return columns, _finite(outputs.values(), len(rows))


def _classes(prediction: Prediction, *, all_classes: bool) -> Columns:
    score = "probability" if prediction.are_probabilities else "score"
    columns: Columns = {
        "label": np.array(prediction.label, object),
        "label_index": prediction.label_index,
        score: prediction.score,
    }
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
