"""References of known distributions, and answers as `serving.batch.answers.answer` gives them."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from serving.bundles.reference import AnswerKind, Reference
from serving.drift.quantities import measure_answers, measure_rows, quantity_of

Array = np.ndarray[Any, Any]


def classified(label_index: Array, probability: Array | None = None) -> dict[str, Array]:
    """A classifier's columns; it is as sure of each answer, if nothing else is said."""
    sure = np.full(len(label_index), 0.9) if probability is None else probability
    return {
        "id": np.full(len(label_index), "", object),
        "label": label_index.astype(str).astype(object),
        "label_index": label_index.astype(np.int64),
        "probability": sure.astype(np.float32),
    }


def reference(
    rows: Array,
    columns: Mapping[str, Array],
    *,
    kind: AnswerKind = "classifier",
    known: str = "",
    classes: int = 10,
) -> Reference:
    """What the bundle stage would make of these rows and answers."""
    inputs = measure_rows(rows, frozenset(known.split()))
    quantities = {name: quantity_of(values, "inputs") for name, values in inputs.items()}
    for name, values in measure_answers(kind, columns).items():
        quantities[name] = quantity_of(values, "predictions")
    counts = np.bincount(columns["label_index"], minlength=classes) if "label" in columns else ()
    return Reference(
        data="toy",
        kind=kind,
        quantities=quantities,
        classes=tuple(int(one) for one in counts),
        known_words=known,
    )


def pictures(rng: np.random.Generator, rows: int, channels: int = 3) -> Array:
    """Photographs of sorts, uint8 [rows, 8, 8, channels]: each with a brightness and a contrast."""
    level = rng.normal(110, 30, (rows, 1, 1, 1))
    spread = rng.gamma(9, 5, (rows, 1, 1, 1))
    tint = rng.normal(0, 8, (rows, 1, 1, channels))
    noise = rng.normal(size=(rows, 8, 8, channels))
    return np.clip(level + tint + spread * noise, 0, 255).astype(np.uint8)
