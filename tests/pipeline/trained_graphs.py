"""Small graphs that really are trained, in a second, without the stages around them."""

from collections.abc import Callable
from copy import deepcopy
from functools import cache, wraps

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.models.parts.graph import (
    BinaryCrossEntropy,
    CrossEntropy,
    Graph,
    Head,
    MeanSquaredError,
)
from pipeline.records.ready import Split


class Flat(nn.Module):
    """One linear layer on all pixels, whose gradient has a closed form."""

    def __init__(self, features: int, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(features, outputs)

    def forward(self, planes: Tensor) -> Tensor:
        return self.linear(planes.flatten(start_dim=1))


def stripes(rows: int = 240, side: int = 6, seed: int = 0) -> Split:
    """Images with a bright upper half (class 0) or a bright lower half (class 1), and noise."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 2, rows)
    images = generator.integers(0, 130, (rows, side, side, 1))
    images[labels == 0, : side // 2] += 40
    images[labels == 1, side // 2 :] += 40
    return Split(images.astype(np.uint8), labels.astype(np.int64))


def graph_of(network: nn.Module, head: Head, mean: float = 85.0, std: float = 40.0) -> Graph:
    """An untrained graph of grey images."""
    graph = Graph(network, "image", head)
    graph.standardise((mean,), (std,))
    return graph


def fit(graph: Graph, split: Split, steps: int = 60, lr: float = 0.01) -> Graph:
    """Train on all rows at once, and return the graph in evaluation mode."""
    optimizer = torch.optim.Adam(graph.parameters(), lr)
    inputs = graph.inputs(graph.values(graph.tensor(split.inputs)))
    for _ in range(steps):
        loss = graph.head.loss(graph.network(inputs), inputs, torch.from_numpy(split.labels))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    optimizer.zero_grad()
    return graph.eval().requires_grad_(False)


def trained_once(make: Callable[..., Graph]) -> Callable[..., Graph]:
    """Train a graph once, and give each caller a copy of it to change as he likes."""
    kept = cache(make)

    @wraps(make)
    def copied(**options: bool) -> Graph:
        return deepcopy(kept(**options))

    return copied


@trained_once
def linear_graph(*, binary: bool = False) -> Graph:
    torch.manual_seed(0)
    head = BinaryCrossEntropy() if binary else CrossEntropy()
    return fit(graph_of(Flat(36, 1 if binary else 2), head), stripes())


@trained_once
def convolutional_graph() -> Graph:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(36, 2),
    )
    return fit(graph_of(network, CrossEntropy()), stripes())


@trained_once
def drawing_graph() -> Graph:
    """It gives back grey of one brightness, which it has learnt."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.Conv2d(3, 1, 3, padding=1), nn.Sigmoid()
    )
    return fit(graph_of(network, MeanSquaredError(), 0.0, 255.0), stripes())
