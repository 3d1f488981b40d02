"""How the training data are distributed: measured once for a bundle, so that a run can tell drift.

A model answers the rows that it was fitted to otherwise than new ones. So its answers, and the
words that a text model does not know, are measured on rows that were held out.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from serving.batch.answers import answer
from serving.bundles.reference import Quantity, Reference, Side
from serving.drift.bins import quantity_of
from serving.drift.quantities import UNKNOWN_WORDS, Measured, measure_answers, measure_rows
from serving.errors import InputError
from serving.model import Model, open_model
from serving.runtime.cores import allowed_cores
from serving.runtime.settings import SessionSettings

Array = npt.NDArray[Any]

MOST_ROWS = 5000
"""Evenly spaced over the data; more would hardly change a decile."""


def reference_of(
    path: Path, training: Array, *, held_out: Array, data: str, known_words: Sequence[str] = ()
) -> Reference:
    """Measure rows of the training data `data`, and the model's answers to rows `held_out`.

    Both are [rows, ...] as the model takes them; `known_words` is the vocabulary of a text model.
    Raises InputError for no rows, and when the model gives a finite answer to none.
    """
    model = open_model(path, settings=SessionSettings(threads=1, parallel=allowed_cores()))
    words = frozenset(known_words)
    training, held_out = _spaced(training), _spaced(held_out)
    if not len(training) or not len(held_out):
        raise InputError(f"{data} has no rows to measure")
    inputs = measure_rows(training, words)
    if UNKNOWN_WORDS in inputs:
        inputs[UNKNOWN_WORDS] = measure_rows(held_out, words)[UNKNOWN_WORDS]
    columns = _answers(model, held_out)
    if not len(columns["id"]):
        raise InputError(f"{path} gave no finite answer to {len(held_out)} rows of {data}")
    predictions = measure_answers(model.kind, columns)
    return Reference(
        data=data,
        kind=model.kind,
        quantities=_quantities(inputs, "inputs") | _quantities(predictions, "predictions"),
        classes=_classes(model, columns) if model.kind == "classifier" else (),
        known_words=" ".join(known_words),
    )


def _spaced(rows: Array) -> Array:
    """At most MOST_ROWS of them, from the first to the last one."""
    if len(rows) <= MOST_ROWS:
        return np.asarray(rows)
    return np.asarray(rows[np.linspace(0, len(rows) - 1, MOST_ROWS).astype(np.int64)])


def _answers(model: Model, rows: Array) -> dict[str, Array]:
    """The columns of the rows whose answers are finite, as a run of `ferry predict` has them."""
    found = answer(
        model, [""] * len(rows), rows, batch_rows=model.batch_rows, parallel=model.parallel
    )
    return {name: np.asarray(values) for name, values in found.finite_columns().items()}


def _quantities(measured: Measured, of: Side) -> dict[str, Quantity]:
    return {name: quantity_of(values, of) for name, values in measured.items()}


def _classes(model: Model, columns: dict[str, Array]) -> tuple[int, ...]:
    axis = model.scores.shape[1] if model.scores else None
    classes = len(model.labels or ()) or (axis if isinstance(axis, int) else 0)
    counts = np.bincount(columns["label_index"], minlength=classes)
    return tuple(counts.tolist())
