"""What one epoch of a training measured: a record that is read where torch is not wanted.

The loop makes it, `metrics/E/train.json` keeps it, and figures and the report draw it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Epoch", "best_of"]


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
