"""What `ferry train` measured: `metrics/E/train.json`."""

from dataclasses import dataclass

from pipeline.epoch import Epoch

__all__ = ["TrainReport"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainReport:
    """What a training reached: `metrics/E/train.json`."""

    experiment: str
    dataset: str
    accuracy: float
    """On the test set, 0 to 1."""
    loss: float
    """Mean cross-entropy on the test set, in nats."""
    validation_accuracy: float
    parameters: int
    epochs: int
    best_epoch: int
    seconds: float
    """Training steps of all epochs, without validation, checkpoints and tracking."""
    rows_per_second: float
    tracking_seconds: float
    """Time spent in MLflow within this process."""
    device: str
    threads: int
    seed: int
    data_sha256: str
    weights_sha256: str
    git_revision: str
    mlflow_run_id: str | None
    labels: tuple[str, ...]
    history: tuple[Epoch, ...]
    confusion: tuple[tuple[int, ...], ...]
    """Rows of the test set: confusion[actual][predicted]."""
