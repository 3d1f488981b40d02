"""What the outputs of a model are by their names and shapes, and the labels that it carries.

`serving.model` runs it. The names are those that `ferry export` gives.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from serving.errors import ModelError
from serving.prediction import PROBABILITIES
from serving.tensors import TensorInfo

__all__ = [
    "ERROR",
    "RECONSTRUCTION",
    "is_reconstruction",
    "labels_of",
    "no_scores",
    "scores_of",
]

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
    told = ", ".join(f"{info.name} {info.dtype} {list(info.shape)}" for info in outputs)
    return (
        f"of its outputs ({told}) none is named {PROBABILITIES} or {LOGITS}, and not exactly one "
        f"is a float [batch, classes]"
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
