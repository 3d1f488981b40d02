"""Accuracy under attack: each pixel may change a little, in the direction that hurts most.

The fast gradient sign method is one step (Goodfellow, Shlens and Szegedy, "Explaining and
harnessing adversarial examples", 2014), projected gradient descent several from a random start
(Madry et al., "Towards deep learning models resistant to adversarial attacks", 2017).
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipeline.config.experiment import EvaluateConfig
from pipeline.network.graph import Graph
from pipeline.records.evaluate import Attack, Robustness
from pipeline.records.ready import Split

BATCH = 50
REACH = 2.5
"""How far all steps of PGD go together, in radii, so that they reach any side from any start."""


@dataclass(frozen=True, slots=True)
class Ball:
    """The images that an attack may show in place of the actual ones."""

    images: Tensor
    """Raw values, float32 [batch, C, H, W]."""
    radius: float
    """Largest change of a value."""
    largest: float
    """No value is above this or below 0."""

    def nearest(self, images: Tensor) -> Tensor:
        """The images of the ball that are nearest to these, value by value."""
        near = torch.clamp(images, self.images - self.radius, self.images + self.radius)
        return near.clamp(0, self.largest)


def fast_gradient(graph: Graph, ball: Ball, labels: Tensor) -> Tensor:
    """One step of the ball's radius along the sign of the gradient of the loss."""
    step = ball.radius * _gradient(graph, ball.images, labels).sign()
    return ball.nearest(ball.images + step)


def projected_gradient(
    graph: Graph, ball: Ball, labels: Tensor, *, start: Tensor, steps: int
) -> Tensor:
    """Go up the loss in small steps from `start`, back into the ball after each."""
    images = ball.nearest(start)
    for _ in range(steps):
        step = REACH * ball.radius / steps * _gradient(graph, images, labels).sign()
        images = ball.nearest(images + step)
    return images


def attack(graph: Graph, test: Split, config: EvaluateConfig, seed: int) -> Robustness:
    """Measure the accuracy on the first `config.rows` rows at each of `config.strengths`.

    Strengths are parts of the largest value of the test images, which for digits is 16 and not 255.
    """
    images = graph.values(graph.tensor(test.inputs[: config.rows]))
    labels = torch.from_numpy(np.array(test.labels[: config.rows]))
    largest = float(test.inputs.max())
    noise = _noise(images, seed)
    attacks = []
    for strength in config.strengths:
        radius = strength * largest

        def fgsm(part: slice, radius: float = radius) -> Tensor:
            return fast_gradient(graph, Ball(images[part], radius, largest), labels[part])

        def pgd(part: slice, radius: float = radius) -> Tensor:
            ball = Ball(images[part], radius, largest)
            start = images[part] + radius * noise[part]
            return projected_gradient(graph, ball, labels[part], start=start, steps=config.steps)

        for name, moved in (("FGSM", fgsm), ("PGD", pgd)):
            accuracy = _accuracy(graph, labels, moved)
            attacks.append(Attack(name=name, strength=strength, accuracy=accuracy))
    return Robustness(
        rows=len(labels),
        largest=largest,
        steps=config.steps,
        seed=seed,
        accuracy=_accuracy(graph, labels, lambda part: images[part]),
        attacks=tuple(attacks),
    )


def _noise(images: Tensor, seed: int) -> Tensor:
    """Evenly spread from -1 to 1."""
    return torch.rand(images.shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def _gradient(graph: Graph, images: Tensor, labels: Tensor) -> Tensor:
    """Of the loss with respect to raw values."""
    images = images.detach().requires_grad_()
    with torch.enable_grad():
        inputs = graph.inputs(images)
        loss = graph.head.loss(graph.network(inputs), inputs, labels)
        (gradient,) = torch.autograd.grad(loss, images)
    return gradient


def _accuracy(graph: Graph, labels: Tensor, images: Callable[[slice], Tensor]) -> float:
    """The part of the rows that is answered rightly, of images that are made batch by batch."""
    hits = 0
    for start in range(0, len(labels), BATCH):
        part = slice(start, start + BATCH)
        shown = images(part)
        with torch.inference_mode():
            inputs = graph.inputs(shown)
            _, probabilities = graph.head.answers(graph.network(inputs), inputs)
        hits += int(torch.eq(probabilities.argmax(dim=1), labels[part]).sum())
    return hits / len(labels)
