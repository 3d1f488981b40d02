"""A model that answers arrays: a bundle, or any ONNX file with one input.

from serving import open_model
answer = open_model("bundles/mnist-cnn").predict(images)  # a classifier: labels and scores
answer.label, answer.probability
open_model("bundles/mnist-autoencoder").answers(images)["error"]  # any model: its outputs by name

A bundle runs as its profile for this machine says, if `ferry bench --tune` wrote one.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from serving.bundles.profiles import Goal, Profile, profile_for
from serving.bundles.signature import (
    PROBABILITIES,
    Prediction,
    is_reconstruction,
    labels_of,
    no_scores,
    scores_of,
)
from serving.errors import InputError, MissingInputError, ModelError, UsageError
from serving.runtime.binding import BoundPool, can_bind
from serving.runtime.cores import ordered_map
from serving.runtime.session import Session, open_session
from serving.runtime.settings import SessionSettings
from serving.runtime.tensors import TensorInfo, described, strings_of

Array = npt.NDArray[Any]
ModelKind = Literal["classifier", "reconstruction", "other"]

BATCH_ROWS = 32
NO_TENSORS = ("seq(", "map(", "optional(", "sparse_tensor(")


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A model that is ready to run."""

    path: Path
    session: Session
    input: TensorInfo
    outputs: tuple[TensorInfo, ...]
    """Those that are arrays; a sequence or a map, as some converters add, is left out."""
    scores: TensorInfo | None
    """The output that holds the scores of a classifier, None where there are none."""
    labels: tuple[str, ...] | None
    """The names of the classes, or None for a file that does not tell; see `class_names`."""
    profile: Profile | None = None
    """What the session's settings were taken from, or None where no profile fitted."""
    bound: BoundPool | None = None
    """Memory for full batches, where the settings have `binding` and the model allows it."""

    @property
    def kind(self) -> ModelKind:
        """What it is: `predict` is for a classifier, `answers` for any."""
        if self.scores:
            return "classifier"
        return "reconstruction" if is_reconstruction(self.outputs) else "other"

    @property
    def are_probabilities(self) -> bool:
        """Whether the scores are probabilities by the model's own word."""
        return self.scores is not None and self.scores.name == PROBABILITIES

    @property
    def fixed_batch(self) -> int | None:
        """The one batch size that the model takes, or None for any."""
        axis = self.input.shape[0]
        return axis if isinstance(axis, int) else None

    @property
    def batch_rows(self) -> int:
        """Rows of a batch where the caller does not say: those of a profile for throughput."""
        tuned = self.profile is not None and self.profile.goal == "throughput"
        return self.profile.batch_size if self.profile and tuned else BATCH_ROWS

    @property
    def parallel(self) -> int:
        """The batches that run at a time."""
        return self.session.settings.parallel

    def takes(self) -> str:
        """What rows must be, for messages: "uint8 [rows, 8, 8, 1]"."""
        return self.input.takes()

    def accepts(self, dtype: np.dtype[Any], row_shape: tuple[int, ...]) -> bool:
        """Whether rows of that dtype and shape, without the batch axis, are what it takes."""
        return self.input.accepts(dtype, row_shape)

    def answers(
        self, rows: Array, *, batch_rows: int | None = None, parallel: int | None = None
    ) -> dict[str, Array]:
        """Run `rows`, an array of the dtype and shape that `takes` tells; all outputs by name.

        Each is [rows, ...] of its own dtype, in the model's order. Strings may be an array of
        numpy's text or of Python's `str`. The rows are run in batches of `batch_rows`, `parallel`
        at a time, by default the properties of these names. Raises InputError for another dtype or
        shape, and when the model refuses its input, and ModelError for an output that has not one
        entry a row.
        """
        batches = list(self._batches(rows, batch_rows, parallel, self.outputs))
        if not batches:
            return {info.name: info.no_rows() for info in self.outputs}
        return {
            info.name: self._joined(info.name, [batch[info.name] for batch in batches])
            for info in self.outputs
        }

    def predict(
        self, rows: Array, *, batch_rows: int | None = None, parallel: int | None = None
    ) -> Prediction:
        """Classify `rows`, an array of the dtype and shape that `takes` tells.

        The rows are run in batches of `batch_rows`, `parallel` at a time, by default the properties
        of these names, so that memory does not grow with their number. Raises InputError for
        another dtype or shape, and when the model refuses its input, and ModelError for a model
        that is no classifier.
        """
        if self.scores is None:
            raise ModelError(
                f"{self.path} is no classifier that ferry can read: {no_scores(self.outputs)}; "
                f"`answers` gives its outputs"
            )
        wanted = [self.scores]
        batches = [
            self._checked_scores(batch[self.scores.name])
            for batch in self._batches(rows, batch_rows, parallel, wanted)
        ]
        scores = np.concatenate(batches) if batches else self._no_rows(self.scores)
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

    def _batches(
        self,
        rows: Array,
        batch_rows: int | None,
        parallel: int | None,
        wanted: Sequence[TensorInfo],
    ) -> Iterator[dict[str, Array]]:
        """The wanted outputs of each batch of rows, in order."""
        if not isinstance(rows, np.ndarray) or not self.accepts(rows.dtype, rows.shape[1:]):
            raise InputError(f"{self.path} takes {self.takes()}, got {described(rows)}")
        size = self.fixed_batch or batch_rows or self.batch_rows
        starts = range(0, len(rows), size)
        yield from ordered_map(
            lambda at: self._run(rows[at : at + size], wanted),
            starts,
            # A single batch needs no thread of its own.
            parallel=max(1, min(parallel or self.parallel, len(starts))),
        )

    def _run(self, rows: Array, wanted: Sequence[TensorInfo]) -> dict[str, Array]:
        count = len(rows)
        if self.input.is_text:
            rows = strings_of(rows)
        missing = (self.fixed_batch or count) - count
        if missing:
            # A model of one batch size: the last row again, and its extra answers dropped.
            rows = np.concatenate([rows, np.repeat(rows[-1:], missing, axis=0)])
        outputs = self._outputs(rows)
        for info in wanted:
            shape = list(outputs[info.name].shape)
            if not shape or shape[0] != len(rows):
                raise ModelError(
                    f"{self.path}: output {info.name} has shape {shape} for {len(rows)} rows; "
                    f"its first axis must be the rows"
                )
        return {info.name: outputs[info.name][:count] for info in wanted}

    def _outputs(self, rows: Array) -> dict[str, Array]:
        if self.bound and len(rows) == self.bound.batch_size:
            return self.bound.run(self.input.name, rows)
        return self.session.run({self.input.name: np.ascontiguousarray(rows)})

    def _joined(self, name: str, parts: Sequence[Array]) -> Array:
        try:
            return np.concatenate(parts)
        except ValueError as error:
            raise ModelError(
                f"{self.path}: output {name} has another shape from batch to batch"
            ) from error

    def _checked_scores(self, scores: Array) -> npt.NDArray[np.float32]:
        """The scores of one batch, float32 [rows, classes]."""
        if scores.ndim != 2 or scores.shape[1] < 2:
            raise ModelError(
                f"{self.path}: output {self.scores.name if self.scores else ''} has shape "
                f"{list(scores.shape)}, a classifier gives [rows, classes]"
            )
        return scores.astype(np.float32)

    def _no_rows(self, scores: TensorInfo) -> npt.NDArray[np.float32]:
        axis = scores.shape[1]
        classes = axis if isinstance(axis, int) else len(self.labels or ())
        return np.zeros((0, max(classes, 1)), np.float32)


def open_model(
    path: Path | str,
    *,
    provider: str = "cpu",
    threads: int | None = None,
    settings: SessionSettings | None = None,
    untuned: SessionSettings | None = None,
    goal: Goal = "throughput",
) -> Model:
    """Open a bundle's folder, whose every byte is checked, or an ONNX file.

    Given neither `threads` nor `settings`, a bundle runs with the settings of its profile for
    `goal` on `provider` and this kind of machine, if there is one: all of them but `cuda_graph`,
    which replays calls of one shape and no others. `binding` is for full batches. Where there is no
    profile, it runs with the settings `untuned`, by default one batch at a time on all cores.

    Raises MissingInputError when `path` is not there, IntegrityError for an altered bundle,
    ModelError for a file that cannot be run or has not one input, ProviderError when this machine
    cannot run it on `provider`, and UsageError for settings that do not go together.
    """
    path = Path(path)
    if not path.exists():
        raise MissingInputError(f"{path} is not there; it should be a bundle or an ONNX file")
    if settings and settings.cuda_graph:
        raise UsageError(
            "cuda_graph=on replays calls of one shape; a model takes any number of rows"
        )
    if not path.is_dir():
        settings = settings or (untuned if threads is None else None)
        session = open_session(path, provider=provider, threads=threads, settings=settings)
        return _model(path, session, labels_of(path, session.metadata), None)
    from serving.bundles.bundle import open_bundle

    bundle = open_bundle(path)
    profile: Profile | None = None
    if threads is None and settings is None:
        profile = profile_for(bundle.manifest.profiles, provider, goal)
        settings = profile.applied if profile else untuned
    session = open_session(bundle.model, provider=provider, threads=threads, settings=settings)
    return _model(path, session, bundle.manifest.labels, profile)


def _model(
    path: Path, session: Session, labels: tuple[str, ...] | None, profile: Profile | None
) -> Model:
    if len(session.inputs) != 1:
        names = ", ".join(info.name for info in session.inputs)
        raise ModelError(
            f"{path} has the inputs {names or '(none)'}; exactly one can be fed here, several by "
            f"`ferry bench --rows ROWS.npz` and by `serving.runtime.session.open_session`"
        )
    if not session.inputs[0].shape:
        raise ModelError(f"{path}: input {session.inputs[0].name} has no batch axis")
    outputs = tuple(info for info in session.outputs if not info.dtype.startswith(NO_TENSORS))
    if not outputs:
        raise ModelError(f"{path}: none of its outputs is an array")
    model = Model(
        path=path,
        session=session,
        input=session.inputs[0],
        outputs=outputs,
        scores=None if is_reconstruction(outputs) else scores_of(outputs),
        labels=labels,
        profile=profile,
    )
    if not session.settings.binding or not can_bind(session):
        return model
    return replace(model, bound=BoundPool(session, model.fixed_batch or model.batch_rows))
