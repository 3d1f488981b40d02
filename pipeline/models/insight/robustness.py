"""Accuracy under attack: each pixel may change a little, in the direction that hurts most.

The fast gradient sign method is one step (Goodfellow, Shlens and Szegedy, "Explaining and
harnessing adversarial examples", 2014), projected gradient descent several from a random start
(Madry et al., "Towards deep learning models resistant to adversarial attacks", 2017).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from torch import Tensor

from pipeline.config.experiment import EvaluateConfig
from pipeline.models.parts.graph import Graph
from pipeline.records.evaluate import Attack, Robustness
from pipeline.records.ready import Split
from pipeline.tracking.figures import COLORS, STYLE

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
    noise = torch.rand(images.shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    batches = list(zip(*(part.split(BATCH) for part in (images, noise, labels)), strict=True))

    def accuracy(strength: float, moved: Callable[[Ball, Tensor, Tensor], Tensor]) -> float:
        hits = 0
        for shown, start, actual in batches:
            ball = Ball(shown, strength * largest, largest)
            hits += _hits(graph, moved(ball, start, actual), actual)
        return hits / len(labels)

    def fgsm(ball: Ball, _start: Tensor, actual: Tensor) -> Tensor:
        return fast_gradient(graph, ball, actual)

    def pgd(ball: Ball, start: Tensor, actual: Tensor) -> Tensor:
        begin = ball.images + ball.radius * start
        return projected_gradient(graph, ball, actual, start=begin, steps=config.steps)

    return Robustness(
        rows=len(labels),
        largest=largest,
        steps=config.steps,
        seed=seed,
        accuracy=accuracy(0.0, lambda ball, _start, _actual: ball.images),
        attacks=tuple(
            Attack(name=name, strength=strength, accuracy=accuracy(strength, moved))
            for strength in config.strengths
            for name, moved in (("FGSM", fgsm), ("PGD", pgd))
        ),
    )


@mpl.rc_context(STYLE)
def draw_attacks(robustness: Robustness) -> Figure:
    """Draw the accuracy under each attack against its strength."""
    style: dict[str, Any] = {"markersize": 5, "clip_on": False}
    names = list(dict.fromkeys(attack.name for attack in robustness.attacks))
    figure = Figure(figsize=(5.2, 3.6), layout="constrained")
    axes = figure.subplots()
    for name, color, marker in zip(names, COLORS, "os", strict=False):
        found = sorted((a.strength, a.accuracy) for a in robustness.attacks if a.name == name)
        strengths, accuracies = zip((0.0, robustness.accuracy), *found, strict=True)
        axes.plot(strengths, accuracies, color=color, marker=marker, label=name, **style)
    axes.set(ylim=(0, 1.02), ylabel=f"accuracy on {robustness.rows} rows")
    axes.set_xlabel(f"largest change of a pixel, part of {robustness.largest:g}")
    axes.set_xlim(left=0)
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.legend()
    return figure


def _gradient(graph: Graph, images: Tensor, labels: Tensor) -> Tensor:
    """Of the loss with respect to raw values."""
    images = images.detach().requires_grad_()
    with torch.enable_grad():
        inputs = graph.inputs(images)
        loss = graph.head.loss(graph.network(inputs), inputs, labels)
        (gradient,) = torch.autograd.grad(loss, images)
    return gradient


def _hits(graph: Graph, images: Tensor, labels: Tensor) -> int:
    """How many rows are answered rightly."""
    with torch.inference_mode():
        inputs = graph.inputs(images)
        *_, probabilities = graph.head.answers(graph.network(inputs), inputs)
    return int(torch.eq(probabilities.argmax(dim=1), labels).sum())
