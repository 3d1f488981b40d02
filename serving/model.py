"""A model that answers arrays: a bundle, or any ONNX file with one input.

    from serving import open_model
    answer = open_model("bundles/mnist-cnn").predict(images)    # a classifier: labels and scores
    answer.label, answer.probability
    open_model("bundles/mnist-autoencoder").answers(images)     # any model: its outputs by name
    open_model("models:/mnist-cnn@champion")                    # of the registry

A bundle runs as its profile for this machine says, if `ferry bench --tune` wrote one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from serving.bundles.finding import located, not_there
from serving.errors import InputError, IntegrityError, ModelError, UsageError
from serving.files import is_text, parse_json
from serving.runtime.classes import ClassOutputs, Task
from serving.runtime.kernels import needs_in, refuse_lacking
from serving.runtime.session import Session, open_session
from serving.runtime.settings import SessionSettings
from serving.runtime.shared import HINT
from serving.runtime.tensors import (
    PROBABILITIES,
    Array,
    Arrays,
    TensorInfo,
    answer_in_batches,
    described,
    strings_of,
)

if TYPE_CHECKING:
    from serving.bundles.profiles import Goal, Profile
    from serving.runtime.binding import BoundPool

ModelKind = Literal["classifier", "reconstruction", "other"]

BATCH_ROWS = 32
RECONSTRUCTION, ERROR = "reconstruction", "error"
PREDICTION = "prediction"
"""What a regression of ferry's answers, [rows, targets]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """What a classifier says of some rows: scores, the best class of each row, and its name."""

    labels: tuple[str, ...]
    """The name of every class."""
    label_index: npt.NDArray[np.int64]
    """int64 [rows], the class that the model itself says, else the one with the highest score."""
    scores: npt.NDArray[np.float32]
    """float32 [rows, classes], as the model gave them."""
    are_probabilities: bool
    """Whether the scores are named probabilities; softmax is never guessed."""

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
    """A model that is ready to run."""

    path: Path
    session: Session
    input: TensorInfo
    outputs: tuple[TensorInfo, ...]
    """The outputs that are arrays; of lists and maps those that ZipMap makes are tables."""
    classes: ClassOutputs
    """Which of them tell the class of a row, and what is known of it."""
    labels: tuple[str, ...] | None
    """The names of the classes, or None where nothing gives any; see `class_names`."""
    targets: tuple[str, ...] = ()
    """What the columns of `prediction` are called, the output of a regression of ferry's."""
    features: tuple[str, ...] = ()
    """What the columns of its input are called, where it was trained on a table with names."""
    profile: "Profile | None" = None
    """What the session's settings were taken from, or None where no profile fitted."""
    bound: "BoundPool | None" = None
    """Memory for full batches, where the settings have `binding` and the model allows it."""

    @property
    def left_out(self) -> tuple[TensorInfo, ...]:
        """The outputs that it does not answer: a state that would be fed next, or no array."""
        return tuple(info for info in self.session.outputs if info not in self.outputs)

    @property
    def kind(self) -> ModelKind:
        """What it is: `predict` is for a classifier, `answers` for any."""
        if self.classes.complete:
            return "classifier"
        return "reconstruction" if is_reconstruction(self.outputs) else "other"

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

    def answers(
        self, rows: Array, *, batch_rows: int | None = None, parallel: int | None = None
    ) -> dict[str, Array]:
        """Run `rows`, an array of the dtype and shape that `takes` names; all outputs by name.

        Each is [rows, ...] of its own dtype, in the model's order. Strings may be an array of
        numpy's text or of Python's `str`. The rows are run in batches of `batch_rows`, `parallel`
        at a time, by default the properties of these names. Raises InputError for another dtype or
        shape, and when the model refuses its input, and ModelError for an output that has not one
        entry a row.
        """
        self._check_rows(rows)
        if not len(rows):
            return {info.name: info.no_rows() for info in self.outputs}
        return self._answered(rows, batch_rows, parallel, self.outputs)

    def predict(
        self, rows: Array, *, batch_rows: int | None = None, parallel: int | None = None
    ) -> Prediction:
        """Classify `rows`, an array of the dtype and shape that `takes` names.

        The rows are run in batches of `batch_rows`, `parallel` at a time, by default the properties
        of these names, so that memory does not grow with their number. Raises InputError for
        another dtype or shape, and when the model refuses its input, and ModelError for a model
        that is no classifier.
        """
        scored = self.classes.scores
        if scored is None or not self.classes.complete:
            given = ", ".join(f"{one.name} {one.dtype} {list(one.shape)}" for one in self.outputs)
            raise ModelError(
                f"{self.path} is no classifier that ferry can read: none of its outputs ({given}) "
                f"is known to be the scores of its classes; `answers` gives its outputs, and "
                f'task="classification" says that its only table of floats is scores'
            )
        self._check_rows(rows)
        if len(rows):
            label = [self.classes.label] if self.classes.label else []
            found = self._answered(rows, batch_rows, parallel, [scored, *label])
            scores = found[scored.name]
            if scores.ndim != 2 or scores.shape[1] < 2:
                raise ModelError(
                    f"{self.path}: output {scored.name} has shape {list(scores.shape)}, a "
                    f"classifier gives [rows, classes]; the task regression takes it as it is"
                )
            label_index = self._said(found) if label else scores.argmax(axis=1)
        else:
            axis = scored.shape[1]
            classes = axis if isinstance(axis, int) else len(self.labels or ())
            scores, label_index = np.zeros((0, max(classes, 1))), np.zeros(0)
        return Prediction(
            labels=self.class_names(scores.shape[1]),
            label_index=label_index.astype(np.int64),
            scores=scores.astype(np.float32),
            are_probabilities=self.classes.are_probabilities,
        )

    def class_names(self, classes: int) -> tuple[str, ...]:
        """The labels, else each class's index; ModelError when there are not `classes` labels."""
        labels = self.labels or tuple(str(index) for index in range(classes))
        if len(labels) != classes:
            raise ModelError(
                f"{self.path} has {len(labels)} labels and gives {classes} scores a row"
            )
        return labels

    def _said(self, found: Arrays) -> Array:
        """The class that the model's own label says, for each row."""
        assert self.classes.label  # noqa: S101 - it is asked for where there is one
        number = {value: index for index, value in enumerate(self.classes.values)}
        said = [str(one) for one in found[self.classes.label.name].reshape(-1).tolist()]
        unknown = next((one for one in said if one not in number), None)
        if unknown is not None:
            raise ModelError(
                f"{self.path}: output {self.classes.label.name} says {unknown!r}, which is none of "
                f"its classes: {', '.join(self.classes.values)}"
            )
        return np.array([number[one] for one in said])

    def _check_rows(self, rows: Array) -> None:
        if not isinstance(rows, np.ndarray) or not self.input.accepts(rows.dtype, rows.shape[1:]):
            raise InputError(f"{self.path} takes {self.takes()}, got {described(rows)}")

    def _answered(
        self,
        rows: Array,
        batch_rows: int | None,
        parallel: int | None,
        wanted: Sequence[TensorInfo],
    ) -> dict[str, Array]:
        """The wanted outputs for all rows; there is at least one."""

        def call(feeds: Arrays) -> dict[str, Array]:
            outputs = self._outputs(feeds[self.input.name])
            return {info.name: outputs[info.name] for info in wanted}

        return answer_in_batches(
            call,
            {self.input.name: rows},
            batch_rows or self.batch_rows,
            name=str(self.path),
            fixed=self.fixed_batch,
            parallel=parallel or self.parallel,
        )

    def _outputs(self, rows: Array) -> dict[str, Array]:
        if self.input.is_text:
            rows = strings_of(rows)
        if self.bound and len(rows) == self.bound.batch_size:
            return self.bound.run(self.input.name, rows)
        return self.session.run({self.input.name: np.ascontiguousarray(rows)})


def open_model(
    path: Path | str,
    *,
    provider: str = "cpu",
    threads: int | None = None,
    settings: SessionSettings | None = None,
    untuned: SessionSettings | None = None,
    goal: "Goal" = "throughput",
    task: Task | None = None,
    shared: Mapping[str, str] | None = None,
) -> Model:
    """Open a bundle's folder, whose every byte is checked, or an ONNX file.

    `path` may be a name as well, as `serving.bundles.finding.located` takes them.

    Given neither `threads` nor `settings`, a bundle runs with the settings of its profile for
    `goal` on `provider` and this kind of machine, if there is one: all of them but `cuda_graph`,
    which replays calls of one shape and no others. `binding` is for full batches. Where there is no
    profile, it runs with the settings `untuned`, by default one batch at a time on all cores.

    `task` is the caller's word of what the model tells, where its outputs, its metadata and the
    labels of a bundle do not say it: see `serving.runtime.classes`. `shared` are inputs that are
    the same for all rows, besides those that a bundle keeps: see `serving.runtime.shared`.

    Raises MissingInputError when `path` is not there, IntegrityError for an altered bundle,
    ModelError for a file that cannot be run or has not one input, ProviderError when this machine
    cannot run it on `provider` or lacks what it needs, and UsageError for settings that do not go
    together.
    """
    path = located(path)
    if not path.exists():
        raise not_there(path)
    if settings and settings.cuda_graph:
        raise UsageError(
            "cuda_graph=on replays calls of one shape; a model takes any number of rows"
        )
    if not path.is_dir():
        settings = settings or (untuned if threads is None else None)
        session = open_session(
            path, provider=provider, threads=threads, settings=settings, shared=shared
        )
        refuse_lacking(needs_in(session.metadata), str(path), provider)
        return _model(path, session, labels_of(path, session.metadata), None, task)
    from serving.bundles.bundle import open_bundle
    from serving.bundles.profiles import profile_for

    bundle = open_bundle(path)
    refuse_lacking(bundle.manifest.needs, str(path), provider)
    profile: Profile | None = None
    if threads is None and settings is None:
        profile = profile_for(bundle.manifest.profiles, provider, goal)
        settings = profile.applied if profile else untuned
    session = open_session(
        bundle.model,
        provider=provider,
        threads=threads,
        settings=settings,
        shared={**bundle.manifest.given, **(shared or {})},
    )
    return _model(path, session, bundle.manifest.labels, profile, task)


def _model(
    path: Path,
    session: Session,
    labels: tuple[str, ...] | None,
    profile: "Profile | None",
    task: Task | None,
) -> Model:
    if len(session.inputs) != 1:
        names = ", ".join(info.name for info in session.inputs)
        raise ModelError(
            f"{path} has the inputs {names or '(none)'}; exactly one can be fed rows here: {HINT}"
        )
    if not session.inputs[0].shape:
        raise ModelError(f"{path}: input {session.inputs[0].name} has no batch axis")
    outputs = session.answered(str(path))
    classes = session.tells(labels, task)
    model = Model(
        path=path,
        session=session,
        input=session.inputs[0],
        outputs=outputs,
        classes=classes,
        labels=labels or classes.values or None,
        targets=_targets_of(path, session),
        features=_names_of(path, session.metadata, "ferry.features") or (),
        profile=profile,
    )
    if not session.settings.binding:
        return model
    from serving.runtime.binding import BoundPool, can_bind

    if not can_bind(session):
        return model
    return replace(model, bound=BoundPool(session, model.fixed_batch or model.batch_rows))


def is_reconstruction(outputs: Sequence[TensorInfo]) -> bool:
    """Whether a model gives the rows again and the error of each, as an autoencoder does."""
    return {RECONSTRUCTION, ERROR} <= {info.name for info in outputs}


def labels_of(path: Path, metadata: Mapping[str, str]) -> tuple[str, ...] | None:
    """The class names that an exported model carries, or None; ModelError for what is none."""
    labels = _names_of(path, metadata, "ferry.labels")
    if labels and len(set(labels)) != len(labels):
        raise ModelError(f"{path}: two of its classes have the same label")
    return labels


def _targets_of(path: Path, session: Session) -> tuple[str, ...]:
    """What the columns of the prediction are called, where the model says it of as many."""
    targets = _names_of(path, session.metadata, "ferry.targets") or ()
    widths = [one.shape[-1] for one in session.outputs if one.name == PREDICTION and one.shape]
    return targets if widths == [len(targets)] else ()


def _names_of(path: Path, metadata: Mapping[str, str], key: str) -> tuple[str, ...] | None:
    """The list of names under a key of a model's metadata, or None; ModelError for no list."""
    text = metadata.get(key)
    if text is None:
        return None
    try:
        names = parse_json(text.encode(), key)
    except IntegrityError as error:
        raise ModelError(f"{path}: its {key} is not JSON: {text[:60]!r}") from error
    texts = isinstance(names, list) and all(isinstance(name, str) for name in names)
    if not texts or not is_text(names):
        raise ModelError(f"{path}: its {key} is not a list of names: {text[:60]!r}")
    return tuple(names)
