"""Rows on the training device, batch by batch, and how a graph does on them.

Nothing here is drawn at random: the order of the rows is given.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipeline.network.graph import Graph
from pipeline.network.vocabulary import PADDING
from pipeline.records.ready import Split

EVALUATION_BATCH = 250
"""Rows at once: few enough for the planes of a wide network to stay in the cache of a CPU."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """How a graph does on one split."""

    loss: float
    """Mean over the rows, without label smoothing."""
    accuracy: float | None
    """0 to 1; None where no class is predicted."""
    predicted: Tensor | None
    """int64 [rows], on the CPU; None where no class is predicted."""


class DeviceRows:
    """A split as tensors on the training device, as the graph takes them."""

    def __init__(self, graph: Graph, split: Split, device: torch.device) -> None:
        """Copy the memory-mapped rows: they are read once per epoch in random order."""
        inputs = graph.tensor(split.inputs)
        self.inputs = inputs.to(device)
        self.labels = torch.from_numpy(np.array(split.labels)).to(device)
        self.device = device
        self._lengths = _lengths(inputs) if graph.kind == "text" else None

    def __len__(self) -> int:
        return len(self.labels)

    def batches(
        self, order: Tensor, size: int, part: slice = slice(None)
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield inputs and labels of `size` rows after the other, or of the `part` of each batch.

        `order` is int64 [rows], on the CPU. Sentences are cut behind the longest of their batch;
        its length is known on the CPU, so that no step waits for a GPU.
        """
        on_device = order.to(self.device, non_blocking=True)
        for start in range(0, len(order), size):
            rows = on_device[start : start + size][part]
            # 14 times as fast as to index by a tensor, on a CPU.
            inputs = self.inputs.index_select(0, rows)
            if self._lengths is not None:
                inputs = inputs[:, : int(self._lengths[order[start : start + size]].max())]
            yield inputs, self.labels.index_select(0, rows)


def evaluate(graph: Graph, rows: DeviceRows) -> Evaluation:
    """Loss and accuracy in full precision and in evaluation mode."""
    was_training = graph.training
    graph.eval()
    losses, predictions = [], []
    with torch.inference_mode():
        for batch, labels in rows.batches(torch.arange(len(rows)), EVALUATION_BATCH):
            inputs = graph.inputs(graph.values(batch))
            output = graph.network(inputs)
            losses.append(graph.head.loss(output, inputs, labels) * len(labels))
            predictions.append(graph.head.predicted(output))
    graph.train(was_training)
    classes = [prediction for prediction in predictions if prediction is not None]
    predicted = torch.cat(classes) if classes else None
    hits = None if predicted is None else float((predicted == rows.labels).sum())
    return Evaluation(
        loss=float(torch.stack(losses).sum()) / len(rows),
        accuracy=None if hits is None else hits / len(rows),
        predicted=None if predicted is None else predicted.cpu(),
    )


def _lengths(sentences: Tensor) -> Tensor:
    """Words of each sentence of ids, int64 [rows]; at least 1, for one of padding alone."""
    return (sentences != PADDING).sum(dim=1).clamp(min=1)
