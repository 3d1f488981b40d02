"""What `ferry train` measured: the report of a training, and of each of its epochs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Epoch:
    """What one epoch measured."""

    epoch: int
    """Counted from 1."""
    lr: float
    """At its last step."""
    loss: float
    """Mean over the epoch's steps, with augmentation and label smoothing."""
    accuracy: float | None
    """On the augmented rows, 0 to 1, while the weights moved; None where no class is predicted."""
    validation_loss: float
    validation_accuracy: float | None
    seconds: float
    """Training steps alone."""
    rows_per_second: float

    @property
    def rank(self) -> tuple[float, float]:
        """Grows as the epoch is better on validation: by accuracy, then by loss."""
        return self.validation_accuracy or 0.0, -self.validation_loss


def best_of(history: Sequence[Epoch]) -> Epoch:
    """The epoch whose weights are kept: the first of the best ones on validation."""
    return max(history, key=lambda epoch: (*epoch.rank, -epoch.epoch))


@dataclass(frozen=True, slots=True, kw_only=True)
class Transfer:
    """Weights that a training began with, where they were another experiment's."""

    experiment: str
    weights_sha256: str
    layers_taken: tuple[str, ...]
    """Layers that have the same name and shapes there."""
    layers_left: tuple[str, ...]
    """Layers that began at random."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Teaching:
    """A teacher's logits that a training follows, and what they are of."""

    experiment: str
    """The teacher."""
    weights_sha256: str
    validation_accuracy: float
    views: int
    """Random changes of each training row that it answered."""
    augment: Mapping[str, float | bool]
    """The settings of those changes."""
    data_sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetQuality:
    """How well one target of a regression is predicted, over the rows of the test set."""

    target: str
    r2: float | None
    """The part of its variance that is explained: 1 for all of it, 0 for no better than its mean,
    below for worse; None where it does not vary."""
    mean_absolute_error: float
    """In its own units, as the next one, squared."""
    mean_squared_error: float


def reached(accuracy: float | None, r2: float | None, loss: float) -> str:
    """How good a model is, in the measure that suits it: "98.89 %", "R² 0.431", "MSE 0.0042"."""
    if accuracy is not None:
        return f"{100 * accuracy:.2f} %"
    return f"MSE {loss:.4f}" if r2 is None else f"R² {r2:.3f}"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainReport:
    """What a training reached."""

    experiment: str
    dataset: str
    accuracy: float | None
    """On the test set, 0 to 1; None where no class is predicted."""
    loss_name: str
    """As params.yaml calls it: cross_entropy, binary_cross_entropy or mean_squared_error."""
    loss: float
    """Mean on the test set: cross-entropies in nats, squared errors on pixels from 0 to 1, or on
    targets in standard deviations of the training rows."""
    validation_accuracy: float | None
    """At the best epoch."""
    validation_loss: float
    """At the best epoch."""
    parameters: int
    epochs: int
    """As params.yaml asks for, or `overrides`."""
    settings: Mapping[str, str]
    """All that it was trained with, by the path below the experiment, as params.yaml has it."""
    overrides: Mapping[str, str]
    """Settings of this training alone that are not those of params.yaml, by their path."""
    stopped_after: int | None
    """Epochs after which early stopping ended the training; None when all were run."""
    best_epoch: int
    seconds: float
    """Training steps of all epochs, without validation, checkpoints and tracking."""
    rows_per_second: float
    tracking_seconds: float
    """How long the training took to record, and waited for it to be sent to MLflow."""
    device: str
    threads: int
    processes: int
    seed: int
    data_sha256: str
    weights_sha256: str
    init_from: Transfer | None
    teacher: Teaching | None
    machine: str
    """Its processor, cores and instruction sets."""
    git_revision: str
    run_id: str | None
    """Of the journal, and of the run in MLflow as its tag `ferry.run`; None where nothing was
    recorded."""
    labels: tuple[str, ...]
    """Of the classes; () where none is predicted."""
    history: tuple[Epoch, ...]
    confusion: tuple[tuple[int, ...], ...]
    """Rows of the test set: confusion[actual][predicted]; () where no class is predicted."""
    targets: tuple[TargetQuality, ...] = ()
    """Of a regression."""

    @property
    def r2(self) -> float | None:
        """The mean over the targets that vary; None where there are none."""
        known = [one.r2 for one in self.targets if one.r2 is not None]
        return sum(known) / len(known) if known else None

    @property
    def reached(self) -> str:
        """How good the weights are, in words: "98.89 %", "R² 0.431", "MSE 0.0042"."""
        return reached(self.accuracy, self.r2, self.loss)

    @property
    def short_id(self) -> str:
        """What tells these weights from others, to a person: "3f2a91"."""
        return self.weights_sha256[:6]

    @property
    def headline(self) -> Mapping[str, float | None]:
        """How good the weights are; errors of several targets have no one unit."""
        alone = self.targets[0] if len(self.targets) == 1 else None
        return {
            "accuracy": self.accuracy,
            "loss": self.loss,
            "r2": self.r2,
            "mean_absolute_error": alone.mean_absolute_error if alone else None,
        }
