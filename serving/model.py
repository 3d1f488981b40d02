"""A classifier that answers arrays: a bundle, or any ONNX file with one input and class scores.

from serving import open_model
answer = open_model("bundles/mnist-cnn").predict(images)
answer.label, answer.probability
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from serving.bundle import open_bundle
from serving.errors import InputError, MissingInputError, ModelError
from serving.session import Session, TensorInfo, open_session

__all__ = ["BATCH_ROWS", "Model", "Prediction", "open_model"]

Array = npt.NDArray[Any]

BATCH_ROWS = 32
FLOATS = ("float32", "float16", "float64")
PROBABILITIES, LOGITS = "probabilities", "logits"


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A classifier that is ready to run."""

    path: Path
    session: Session
    input: TensorInfo
    output: TensorInfo
    """The one that holds the scores."""
    labels: tuple[str, ...] | None
    """The names of the classes, or None for a file that does not tell; see `class_names`."""

    @property
    def are_probabilities(self) -> bool:
        """Whether the scores are probabilities by the model's own word."""
        return self.output.name == PROBABILITIES

    @property
    def fixed_batch(self) -> int | None:
        """The one batch size that the model takes, or None for any."""
        axis = self.input.shape[0]
        return axis if isinstance(axis, int) else None

    def takes(self) -> str:
        """What rows must be, for messages: "uint8 [rows, 8, 8, 1]"."""
        axes = ", ".join(str(axis) for axis in self.input.shape[1:])
        dtype = "string" if self.input.dtype == "object" else self.input.dtype
        return f"{dtype} [rows{', ' if axes else ''}{axes}]"

    def accepts(self, dtype: np.dtype[Any], row_shape: tuple[int, ...]) -> bool:
        """Whether rows of that dtype and shape, without the batch axis, are what it takes."""
        if self.input.dtype == "object":
            right_dtype = dtype.kind in "OUT"
        else:
            right_dtype = dtype == np.dtype(self.input.dtype)
        axes = self.input.shape[1:]
        return (
            right_dtype
            and len(axes) == len(row_shape)
            and all(not isinstance(a, int) or a == b for a, b in zip(axes, row_shape, strict=True))
        )

    def predict(self, rows: Array, *, batch_rows: int = BATCH_ROWS) -> Prediction:
        """Classify `rows`, an array of the dtype and shape that `takes` tells.

        The rows are run in batches of `batch_rows`, so that memory does not grow with their number.
        Raises InputError for another dtype or shape, and when the model refuses its input.
        """
        if not isinstance(rows, np.ndarray) or not self.accepts(rows.dtype, rows.shape[1:]):
            raise InputError(f"{self.path} takes {self.takes()}, got {_describe(rows)}")
        size = self.fixed_batch or batch_rows
        batches = [self._scores(rows[at : at + size]) for at in range(0, len(rows), size)]
        scores = np.concatenate(batches) if batches else self._no_scores()
        labels = self.class_names(scores.shape[1])
        return Prediction(
            labels=labels,
            label_index=scores.argmax(axis=1).astype(np.int64),
            scores=scores,
            are_probabilities=self.are_probabilities,
        )

    def class_names(self, classes: int) -> tuple[str, ...]:
        """The labels; the class's index where the file has none.

        Raises ModelError when there are as many labels as there are not `classes`.
        """
        labels = self.labels or tuple(str(index) for index in range(classes))
        if len(labels) != classes:
            raise ModelError(
                f"{self.path} has {len(labels)} labels and gives {classes} scores a row"
            )
        return labels

    def _scores(self, rows: Array) -> npt.NDArray[np.float32]:
        """The scores of one batch, float32 [rows, classes]."""
        count = len(rows)
        if self.input.dtype == "object":
            rows = rows.astype(object)
        missing = (self.fixed_batch or count) - count
        if missing:
            # A model of one batch size: the last row again, and its extra answers dropped.
            rows = np.concatenate([rows, np.repeat(rows[-1:], missing, axis=0)])
        rows = np.ascontiguousarray(rows)
        scores: Array = self.session.run({self.input.name: rows})[self.output.name][:count]
        if scores.ndim != 2 or scores.shape[1] < 2:
            raise ModelError(
                f"{self.path}: output {self.output.name} has shape {list(scores.shape)}, "
                f"a classifier gives [rows, classes]"
            )
        return scores.astype(np.float32)

    def _no_scores(self) -> npt.NDArray[np.float32]:
        axis = self.output.shape[1]
        classes = axis if isinstance(axis, int) else len(self.labels or ())
        return np.zeros((0, max(classes, 1)), np.float32)


def open_model(path: Path | str, *, provider: str = "cpu", threads: int | None = None) -> Model:
    """Open a bundle's folder, whose every byte is checked, or an ONNX file.

    Raises MissingInputError when `path` is not there, IntegrityError for an altered bundle,
    ModelError for a file that cannot be run or is no classifier, and ProviderError when this
    machine cannot run it on `provider`.
    """
    path = Path(path)
    if not path.exists():
        raise MissingInputError(f"{path} is not there; it should be a bundle or an ONNX file")
    if path.is_dir():
        bundle = open_bundle(path)
        session = open_session(bundle.model, provider=provider, threads=threads)
        return _model(path, session, bundle.manifest.labels)
    session = open_session(path, provider=provider, threads=threads)
    return _model(path, session, _labels(path, session.metadata))


def _model(path: Path, session: Session, labels: tuple[str, ...] | None) -> Model:
    if len(session.inputs) != 1:
        names = ", ".join(info.name for info in session.inputs)
        raise ModelError(f"{path} has the inputs {names or '(none)'}; exactly one can be fed")
    if not session.inputs[0].shape:
        raise ModelError(f"{path}: input {session.inputs[0].name} has no batch axis")
    output = _scores_output(path, session.outputs)
    return Model(path=path, session=session, input=session.inputs[0], output=output, labels=labels)


def _scores_output(path: Path, outputs: Sequence[TensorInfo]) -> TensorInfo:
    """The output with the scores: `probabilities`, else `logits`, else the only one that can be."""
    tables = {info.name: info for info in outputs if _is_table(info)}
    for name in (PROBABILITIES, LOGITS):
        if name in tables:
            return tables[name]
    if len(tables) == 1:
        return next(iter(tables.values()))
    told = ", ".join(f"{info.name} {info.dtype} {list(info.shape)}" for info in outputs)
    raise ModelError(
        f"{path} is no classifier that ferry can read: of its outputs ({told}) none is named "
        f"{PROBABILITIES} or {LOGITS}, and not exactly one is a float [batch, classes]"
    )


def _is_table(info: TensorInfo) -> bool:
    return info.dtype in FLOATS and len(info.shape) == 2 and info.shape[1] != 1


def _labels(path: Path, metadata: Mapping[str, str]) -> tuple[str, ...] | None:
    """The class names that an exported model carries, or None."""
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


def _describe(rows: object) -> str:
    if isinstance(rows, np.ndarray):
        return f"{rows.dtype} {list(rows.shape)}"
    return f"a {type(rows).__name__}, not a numpy array"
