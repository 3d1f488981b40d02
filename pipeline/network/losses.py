"""The end of a graph, one for each loss: what it answers, and how far that is from what is right.

A network gives logits or planes; the head makes the graph's outputs of them, so that no caller
applies a softmax of its own.
"""

from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from pipeline.config.experiment import Loss


class Head(Protocol):
    """What the graph does with the output of its network."""

    outputs: tuple[str, str]
    """The names of what the graph answers."""
    unit: str
    """Of the loss, for figures."""

    def width(self, classes: int) -> int:
        """How many values a row the network must give; 0 where the rows' shape says it."""

    def answers(self, output: Tensor, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """The graph's outputs, of the network's output and of the standardised inputs."""

    def loss(
        self, output: Tensor, inputs: Tensor, labels: Tensor, smoothing: float = 0.0
    ) -> Tensor:
        """Mean loss of a batch, a scalar; `labels` are int64 [batch]."""

    def predicted(self, output: Tensor) -> Tensor | None:
        """The class of each row, int64 [batch]; None where no class is answered."""


class CrossEntropy:
    """One logit per class: `logits` and their softmax, `probabilities`, both [batch, classes]."""

    outputs = ("logits", "probabilities")
    unit = "cross-entropy, nats"

    def width(self, classes: int) -> int:
        """One value per class."""
        return classes

    def answers(self, output: Tensor, _inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and probabilities, float32 [batch, classes]."""
        return output, output.softmax(dim=1)

    def loss(
        self, output: Tensor, _inputs: Tensor, labels: Tensor, smoothing: float = 0.0
    ) -> Tensor:
        """Mean cross-entropy in nats."""
        return functional.cross_entropy(output, labels, label_smoothing=smoothing)

    def predicted(self, output: Tensor) -> Tensor:
        """The class with the largest logit."""
        return output.argmax(1)


class BinaryCrossEntropy:
    """One logit for the second of two classes: `logits` [batch, 1], `probabilities` [batch, 2]."""

    outputs = ("logits", "probabilities")
    unit = "cross-entropy, nats"

    def width(self, _classes: int) -> int:
        """A single value."""
        return 1

    def answers(self, output: Tensor, _inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Logits float32 [batch, 1], and both classes' probabilities float32 [batch, 2]."""
        # Not 1 - p, which would be 0 where the logit is large.
        return output, torch.cat([-output, output], dim=1).sigmoid()

    def loss(
        self, output: Tensor, _inputs: Tensor, labels: Tensor, smoothing: float = 0.0
    ) -> Tensor:
        """Mean binary cross-entropy in nats."""
        targets = labels.to(output.dtype) * (1 - smoothing) + smoothing / 2
        return functional.binary_cross_entropy_with_logits(output.squeeze(1), targets)

    def predicted(self, output: Tensor) -> Tensor:
        """1 where the logit is above 0."""
        return (output.squeeze(1) > 0).long()


class MeanSquaredError:
    """The rows themselves again: `reconstruction` [batch, H, W, C] and `error` [batch]."""

    outputs = ("reconstruction", "error")
    unit = "mean squared error"

    def width(self, _classes: int) -> int:
        """As many values as a row has."""
        return 0

    def answers(self, output: Tensor, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels 0 to 1, float32 [batch, H, W, C], and each row's mean squared error [batch]."""
        return output.permute(0, 2, 3, 1), (output - inputs).square().mean(dim=(1, 2, 3))

    def loss(
        self, output: Tensor, inputs: Tensor, _labels: Tensor, _smoothing: float = 0.0
    ) -> Tensor:
        """Mean squared error on pixels from 0 to 1."""
        return functional.mse_loss(output, inputs)

    def predicted(self, _output: Tensor) -> None:
        """No class."""


def head_of(loss: Loss) -> Head:
    """The head that is trained with this loss."""
    heads: dict[Loss, Head] = {
        "cross_entropy": CrossEntropy(),
        "binary_cross_entropy": BinaryCrossEntropy(),
        "mean_squared_error": MeanSquaredError(),
    }
    return heads[loss]
