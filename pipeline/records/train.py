"""What `ferry train` measured: `metrics/E/train.json`."""

from dataclasses import dataclass

from pipeline.epoch import Epoch

__all__ = ["TrainReport", "Transfer"]


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
class TrainReport:
    """What a training reached: `metrics/E/train.json`."""

    experiment: str
    dataset: str
    accuracy: float | None
    """On the test set, 0 to 1; None where no class is predicted."""
    loss_name: str
    """As params.yaml calls it: cross_entropy, binary_cross_entropy or mean_squared_error."""
    loss: float
    """Mean on the test set: cross-entropies in nats, squared errors on pixels from 0 to 1."""
    validation_accuracy: float | None
    """At the best epoch."""
    validation_loss: float
    """At the best epoch."""
    parameters: int
    epochs: int
    """As params.yaml asks for."""
    stopped_after: int | None
    """Epochs after which early stopping ended the training; None when all were run."""
    best_epoch: int
    seconds: float
    """Training steps of all epochs, without validation, checkpoints and tracking."""
    rows_per_second: float
    tracking_seconds: float
    """Time spent in MLflow within this process."""
    device: str
    threads: int
    processes: int
    seed: int
    data_sha256: str
    weights_sha256: str
    init_from: Transfer | None
    git_revision: str
    mlflow_run_id: str | None
    labels: tuple[str, ...]
    """Of the classes; () where none is predicted."""
    history: tuple[Epoch, ...]
    confusion: tuple[tuple[int, ...], ...]
    """Rows of the test set: confusion[actual][predicted]; () where no class is predicted."""
